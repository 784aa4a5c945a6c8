"""Every crop of a grid once an epoch: bricks in random order, and random order among the crops of a few bricks.

The crops of a step lie in its batch brick by brick, so that each rank's share of it is cut of few of them. Memory follows the
bricks, a few thousand for an organ, not the crops. Which crop is the i-th of an epoch is found by two searches.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from perfuse.geometry import along_axis, move_axis, runs
from perfuse.sampling.places import Place, Sizes, Window, bricks_at_once
from perfuse.sampling.random_order import GROUP_STEPS
from perfuse.sampling.sources import Opened, opened
from perfuse.training.job import TrainingJob

if TYPE_CHECKING:
    from perfuse.sampling.bricks import PlacedBrick

TILES = 2
"""Crops along each edge of a brick."""
PLANES = 128
"""Planes of a brick, with those that only complete the panels of others."""

Indices = npt.NDArray[np.int64]
Found = tuple[int, int, int]
"""A crop: the epoch, which brick of it, and which crop of that."""


class GridOrder:
    """The crop at a position of a step follows from the seed and the number of crops before it."""

    def __init__(self, job: TrainingJob) -> None:
        recipe = job.recipe
        self.seed, self.batch = recipe.seed, recipe.batch
        sources = [opened(sources, recipe.normalisation) for sources in job.scans()]
        self.extents = [source.extent for source in sources]
        self.sizes = Sizes.of(recipe, sources[0].scan.info.voxel_size_um)
        stride = max(round(recipe.crop * (1 - recipe.sampling.overlap)), 1)
        axes = ["zyx".index(axis) for axis in recipe.axes]
        self.bricks = [b for k, s in enumerate(sources) for a in axes for b in _bricks(k, s, a, self.sizes, stride)]
        self.counts = np.array([brick.count for brick in self.bricks], np.int64)
        self.length = int(self.counts.sum())
        """Crops of an epoch."""
        span = recipe.crop + (TILES - 1) * stride
        self._bricks_at_once = bricks_at_once((PLANES, span, span))
        self._epoch = lru_cache(maxsize=2)(self._draw_epoch)
        self._group = lru_cache(maxsize=4)(self._draw_group)
        self._step = lru_cache(maxsize=64)(self._sorted_step)

    def _find(self, index: int) -> Found:
        """The crop with `index` crops drawn before it, over all epochs."""
        epoch, at = divmod(index, self.length)
        _, ends = self._epoch(epoch)
        group = int(np.searchsorted(ends, at, side="right")) // self._bricks_at_once
        first = group * self._bricks_at_once
        begin = int(ends[first - 1]) if first else 0
        inside = int(self._group(epoch, group)[at - begin])
        rank = int(np.searchsorted(ends, begin + inside, side="right"))
        return epoch, rank, begin + inside - (int(ends[rank - 1]) if rank else 0)

    def _sorted_step(self, step: int) -> list[Found]:
        """The crops of a step, brick by brick."""
        return sorted(map(self._find, range(step * self.batch, (step + 1) * self.batch)), key=lambda found: found[:2])

    def _brick(self, epoch: int, rank: int) -> "GridBrick":
        order, _ = self._epoch(epoch)
        return self.bricks[int(order[rank])]

    def _draw_epoch(self, epoch: int) -> tuple[Indices, Indices]:
        order = np.random.default_rng([self.seed, 3, epoch]).permutation(len(self.bricks))
        return order, np.cumsum(self.counts[order])

    def _draw_group(self, epoch: int, group: int) -> Indices:
        order, _ = self._epoch(epoch)
        first = group * self._bricks_at_once
        rng = np.random.default_rng([self.seed, 4, epoch, group])
        counts = self.counts[order[first : first + self._bricks_at_once]]
        return np.argsort(np.concatenate([rng.permutation(n) / n + rng.random() / n for n in counts]))

    def read(self, batches: int, shares: Sequence[range] = ()) -> Iterator[Place]:
        """See `feeding.Order`."""
        for first in range(0, batches if shares else 0, GROUP_STEPS):
            steps = [self._step(step) for step in range(first, min(first + GROUP_STEPS, batches))]
            for share in shares:
                yield from (self._brick(*key).place for key in {step[p][:2] for step in steps for p in share})
        if shares:
            return
        crops = batches * self.batch
        for epoch in range(-(-crops // self.length)):
            order, ends = self._epoch(epoch)
            group = int(np.searchsorted(ends, crops - epoch * self.length)) // self._bricks_at_once
            yield from (self.bricks[k].place for k in order[: (group + 1) * self._bricks_at_once])

    def place(self, step: int, position: int) -> Place:
        """The brick of which the crop at a position of a step is cut."""
        return self._brick(*self._step(step)[position][:2]).place

    def window(self, step: int, position: int, brick: "PlacedBrick") -> Window:  # noqa: ARG002 - a random order looks at it
        """Where in its brick the crop at a position of a step lies."""
        epoch, rank, number = self._step(step)[position]
        return self._brick(epoch, rank).window(number)


@dataclass(frozen=True)
class GridBrick:
    """A brick and the crops of the grid that are cut of it."""

    place: Place
    crops: tuple[tuple[int, int, range], ...]
    """Row and column of a corner, and middle planes of the panels that are cut there: in the brick."""

    @property
    def count(self) -> int:
        """Crops."""
        return sum(len(planes) for _, _, planes in self.crops)

    def window(self, number: int) -> Window:
        """One of its crops."""
        for row, column, planes in self.crops:
            if number < len(planes):
                return Window(planes[number], row, column)
            number -= len(planes)
        raise IndexError(number)


def _bricks(number: int, source: Opened, axis: int, sizes: Sizes, stride: int) -> list[GridBrick]:
    """The bricks of a scan along an axis. Each plane is once the middle plane of every crop that meets labelled organ, chunk by chunk."""
    depth, height, width = move_axis(source.extent.shape, axis)
    found = []
    for first, stop in runs(depth, max(PLANES - sizes.before - sizes.after, 1)):
        above, below = max(first - sizes.before, 0), min(stop + sizes.after, depth)
        for rows in _groups(height, sizes.crop, stride):
            for columns in _groups(width, sizes.crop, stride):
                spans = _span(rows, sizes.crop, height), _span(columns, sizes.crop, width)
                crops = []
                for row, column in product(rows, columns):
                    ends = min(row + sizes.crop, height), min(column + sizes.crop, width)
                    box = along_axis(axis, (first, stop), (row, ends[0]), (column, ends[1])).shifted(
                        source.extent.start
                    )
                    crops += [
                        (row - rows[0], column - columns[0], range(first + a - above, first + b - above))
                        for a, b in source.held_along(axis, box)
                    ]
                if crops:
                    box = along_axis(axis, (above, below), *spans).shifted(source.extent.start)
                    found.append(GridBrick(Place(number, axis, box), tuple(crops)))
    return found


def _groups(length: int, crop: int, stride: int) -> list[list[int]]:
    """Where crops begin along an axis, a few neighbours at a time; the last ends with the scan."""
    last = max(length - crop, 0)
    starts = [*range(0, last, stride), last]
    return [starts[k : k + TILES] for k in range(0, len(starts), TILES)]


def _span(starts: list[int], crop: int, length: int) -> tuple[int, int]:
    return starts[0], min(starts[-1] + crop, length)
