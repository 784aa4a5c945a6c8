"""Crops at random: each step draws its own, from bricks that are kept for a group of steps."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from perfuse.geometry import Box, index3
from perfuse.sampling.places import CROPS_PER_BRICK, Place, Room, Sizes, Window, around, bricks_at_once
from perfuse.sampling.sources import opened
from perfuse.training.job import TrainingJob

if TYPE_CHECKING:
    from perfuse.sampling.bricks import PlacedBrick

GROUP_STEPS = 32
"""Steps for which bricks are kept."""


class RandomOrder:
    """Bricks follow from seed, group of steps and position in the batch; crops from seed, step and position."""

    def __init__(self, job: TrainingJob) -> None:
        self.recipe = job.recipe
        self.sources = [opened(sources, job.recipe.normalisation) for sources in job.scans()]
        self.sizes = [Sizes.of(job.recipe, source.scan.info.voxel_size_um) for source in self.sources]
        shares = [s.annotated if job.recipe.sampling.by_coverage else 1.0 for s in self.sources]
        self._shares = np.divide(shares, sum(shares))
        weights = job.recipe.sampling.axis_weights or (1.0,) * len(job.recipe.axes)
        self._axes = np.divide(weights, sum(weights))
        at_once = min(bricks_at_once(sizes.brick) for sizes in self.sizes)
        self._per_brick = max(CROPS_PER_BRICK, -(-job.recipe.batch // at_once))
        self._brick = lru_cache(maxsize=1024)(self._draw)

    def place(self, step: int, position: int) -> Place:
        """The brick of which the crop at a position of a step is cut."""
        return self._brick(step // GROUP_STEPS, position // self._per_brick)

    def read(self, batches: int, shares: Sequence[range] = ()) -> Iterator[Place]:
        """See `feeding.Order`."""
        for group in range(-(-batches // GROUP_STEPS)):
            for share in shares or [range(self.recipe.batch)]:
                for slot in range(share[0] // self._per_brick, share[-1] // self._per_brick + 1):
                    yield self._brick(group, slot)

    def _draw(self, group: int, slot: int) -> Place:
        sampling = self.recipe.sampling
        rng = np.random.default_rng([self.recipe.seed, 1, group, slot])
        number = int(rng.choice(len(self.sources), p=self._shares))
        axis = "zyx".index(self.recipe.axes[rng.choice(len(self._axes), p=self._axes)])
        source, sizes, share = self.sources[number], self.sizes[number], sampling.foreground_share
        over_vessels = (1 + share) / 2 if share else 0.0
        at = source.at_vessel(rng) if rng.random() < over_vessels else None
        foreground = 0.0 if at is None else share / over_vessels
        class_number, point = (0, source.somewhere(rng)) if at is None else at
        if rng.random() < sampling.oblique:
            w, x, y, z = (float(v) for v in _unit(rng.normal(size=4)))
            return Place(number, axis, _about(point, axis, sizes), foreground, (w, x, y, z), class_number)
        box = around(point, axis, sizes.brick, source.extent)
        return Place(number, axis, box, foreground, class_number=class_number)

    def window(self, step: int, position: int, brick: "PlacedBrick") -> Window:
        """Where in its brick the crop at a position of a step lies."""
        rng = np.random.default_rng([self.recipe.seed, 2, step, position])
        source, sizes = self.sources[brick.place.source], self.sizes[brick.place.source]
        low, high = np.log(self.recipe.sampling.factors(source.scan.info.voxel_size_um))
        scale = float(np.exp(rng.uniform(low, high)))
        room = Room.of(brick.place, source.extent, sizes, scale)
        first, last = room.planes
        vessel = brick.vessel(rng, first, last) if rng.random() < brick.place.foreground else None
        if vessel is None:
            plane = int(rng.integers(first, last + 1))
            row, column = (rng.uniform(*span) for span in (room.rows, room.columns))
        else:
            plane = vessel[0]
            row, column = np.add(vessel[1:], 0.5) - rng.random(2) * self.recipe.crop * scale
        if scale == 1:
            row, column = np.floor((row + 0.5, column + 0.5))
        row, column = (float(np.clip(v, *span)) for v, span in ((row, room.rows), (column, room.columns)))
        return Window(plane, row, column, scale)


def _unit(vector: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.asarray(vector / np.linalg.norm(vector))


def _about(point: npt.NDArray[np.float64], axis: int, sizes: Sizes) -> Box:
    planes, rows, columns = sizes.brick
    shape = [rows, columns]
    shape.insert(axis, planes)
    start = index3([round(float(p) - n / 2) for p, n in zip(point, shape, strict=True)])
    return Box(start, index3([a + n for a, n in zip(start, shape, strict=True)]))
