"""Where bricks and crops lie: geometry without voxels.

    a brick, seen along its axis            a panel of 3 planes in it, stride 2

    planes ┌──────────────┐                 ──────────  plane − 2      `Sizes.before`, `Sizes.after`: what a
      ↓    │  ┌──────┐    │  rows →         ──────────  plane          panel needs around its middle plane
           │  │ crop │    │  columns        ──────────  plane + 2
           │  └──────┘    │
           └──────────────┘

A brick is whole chunks where it can be, so that each is decoded for one brick only. In a brick that is turned, planes are parallel to
a random plane of the scan instead of two of its axes.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from perfuse.geometry import Box, Index3, Spacing, along_axis, index3, move_axis
from perfuse.recipes import Recipe
from perfuse.volumes import CHUNK

CROPS_PER_BRICK = 4
"""Of each step, at least: neighbours in the batch."""
MOST_BRICKS = 8
"""Of which the crops of a step are cut."""
HELD_VOXELS = 1 << 30
"""Of all bricks that are held at a time: those of this group of steps, and those of the next."""


@dataclass(frozen=True)
class Sizes:
    """How large crops and bricks of a recipe are, in voxels of the scan."""

    crop: int
    reach: int
    """Voxels in the plane that the widest crop covers, with what resampling needs around it."""
    margin: int
    """What resampling needs on each side; 0 where crops are not resampled."""
    before: int
    """Planes of the widest panel before its middle plane, with what resampling needs."""
    after: int

    @classmethod
    def of(cls, recipe: Recipe, voxel_size_um: Spacing) -> "Sizes":
        """The sizes for the widest scale of crops of a scan with such voxels."""
        scale, network = recipe.sampling.factors(voxel_size_um), recipe.network
        margin = 0 if scale == (1, 1) else math.ceil(max(scale[1], 1))
        before, after = (
            math.ceil(n * network.plane_stride * scale[1]) + margin
            for n in ((network.planes - 1) // 2, network.planes // 2)
        )
        return cls(recipe.crop, math.ceil(recipe.crop * scale[1]) + 2 * margin, margin, before, after)

    @property
    def brick(self) -> Index3:
        """Planes, rows and columns of a brick of which random crops are cut: whole chunks."""
        edge = _chunks(self.reach + self.crop // 2)
        beside = self.before + self.after
        return (_chunks(CHUNK + beside) if beside else CHUNK), edge, edge


def _chunks(voxels: int) -> int:
    return -(-voxels // CHUNK) * CHUNK


def bricks_at_once(brick: Index3) -> int:
    """How many bricks of this size crops are cut of by turns."""
    return min(max(HELD_VOXELS // (2 * math.prod(brick)), 1), MOST_BRICKS)


@dataclass(frozen=True)
class Place:
    """Where a brick lies."""

    source: int
    """Index among the sources of the job."""
    axis: int
    """Across the planes."""
    box: Box
    """In z, y, x; of a turned brick, as it would lie unturned: it may reach beyond the scan then."""
    foreground: float = 0.0
    """Share of its crops that are laid over a vessel."""
    turn: tuple[float, float, float, float] | None = None
    """Unit quaternion by which it is turned about its middle."""
    class_number: int = 0
    """Of the class whose vessels these are."""

    @property
    def shape(self) -> Index3:
        """Planes, rows, columns."""
        return move_axis(self.box.shape, self.axis)

    def ends(self, extent: Box) -> tuple[tuple[bool, bool], ...]:
        """For planes, rows and columns: whether the brick begins, and ends, where the scan does."""
        if self.turn is not None:
            return ((False, False),) * 3
        lower = move_axis(index3([a == b for a, b in zip(self.box.start, extent.start, strict=True)]), self.axis)
        upper = move_axis(index3([a == b for a, b in zip(self.box.stop, extent.stop, strict=True)]), self.axis)
        return tuple((bool(a), bool(b)) for a, b in zip(lower, upper, strict=True))

    def steps(self, voxel_size_um: Spacing) -> npt.NDArray[np.float64]:
        """float64[3, 3]: from one plane, row, column of a turned brick to the next, in voxels z, y, x.

        Pixels and planes of a turned brick are as far apart as the finest voxels of the scan.
        """
        assert self.turn is not None
        w, x, y, z = self.turn
        rotation = np.array(
            [
                [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
                [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
                [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
            ]
        )
        order = [self.axis, *(a for a in range(3) if a != self.axis)]
        return np.asarray(rotation[order] * min(voxel_size_um) / np.array(voxel_size_um))

    def origin(self, voxel_size_um: Spacing) -> npt.NDArray[np.float64]:
        """float64[3]: where the first voxel of a turned brick lies, in voxels z, y, x."""
        middle = np.add(self.box.start, self.box.stop) / 2 - 0.5
        return np.asarray(middle - (np.array(self.shape) - 1) / 2 @ self.steps(voxel_size_um))


def around(point: npt.NDArray[np.float64], axis: int, size: Index3, extent: Box) -> Box:
    """A box of whole chunks, seen along an axis of this size, about a point; moved into the extent, and no larger than it."""
    planes, rows, columns = size
    wanted = along_axis(axis, (0, planes), (0, rows), (0, columns)).shape
    start, stop = [], []
    for place, length, low, high in zip(point, wanted, extent.start, extent.stop, strict=True):
        aligned = round((float(place) - length / 2) / CHUNK) * CHUNK
        start.append(max(min(aligned, high - length), low))
        stop.append(min(start[-1] + length, high))
    return Box(index3(start), index3(stop))


@dataclass(frozen=True)
class Window:
    """Where a crop lies in its brick."""

    plane: int
    """The middle plane of the panel: of 4, the second."""
    row: float
    column: float
    """The upper left corner, in voxels; whole numbers where the scale is 1."""
    scale: float = 1.0
    """Size of a pixel, in voxels."""


@dataclass(frozen=True)
class Room:
    """Where the middle planes and corners of crops may lie in a brick: from the first to the last, inclusive."""

    planes: tuple[int, int]
    rows: tuple[float, float]
    columns: tuple[float, float]

    @classmethod
    def of(cls, place: Place, extent: Box, sizes: Sizes, scale: float = 1.0) -> "Room":
        """Panels and crops stay inside the brick, except where the scan ends with it: that is how it ends for inference too."""
        needs = ((sizes.before, sizes.after), (sizes.margin, sizes.margin), (sizes.margin, sizes.margin))
        lengths = (1.0, sizes.crop * scale, sizes.crop * scale)
        spans = []
        for n, need, length, ends in zip(place.shape, needs, lengths, place.ends(extent), strict=True):
            first = 0 if ends[0] else need[0]
            spans.append((first, max(n - length - (0 if ends[1] else need[1]), first)))
        planes, rows, columns = spans
        return cls((int(planes[0]), int(planes[1])), rows, columns)
