"""Boxes of voxels, and the ways to cut a volume: slabs, blocks, tiles. Order is always z, y, x."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from math import prod

Index3 = tuple[int, int, int]
Spacing = tuple[float, float, float]

AXES = ("z", "y", "x")


def index3(values: "tuple[int, ...] | list[int]") -> Index3:
    """Three integers, as z, y, x."""
    z, y, x = (int(v) for v in values)
    return z, y, x


@dataclass(frozen=True)
class Box:
    """A half-open box of voxels: start ≤ voxel < stop on each axis."""

    start: Index3
    stop: Index3

    @classmethod
    def whole(cls, shape_zyx: Index3) -> "Box":
        """The box that covers a volume of this shape."""
        return cls((0, 0, 0), shape_zyx)

    @property
    def shape(self) -> Index3:
        """Voxels along each axis."""
        return index3([b - a for a, b in zip(self.start, self.stop, strict=True)])

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """Indices that cut this box out of an array."""
        z, y, x = (slice(a, b) for a, b in zip(self.start, self.stop, strict=True))
        return z, y, x

    @property
    def size(self) -> int:
        """Voxels inside; 0 when empty."""
        return prod(max(n, 0) for n in self.shape)

    @property
    def empty(self) -> bool:
        """True when no voxel lies inside."""
        return any(n <= 0 for n in self.shape)

    def intersect(self, other: "Box") -> "Box":
        """The part that both boxes cover; `empty` when they are disjoint."""
        start = index3([max(a, b) for a, b in zip(self.start, other.start, strict=True)])
        stop = index3([min(a, b) for a, b in zip(self.stop, other.stop, strict=True)])
        return Box(start, stop)

    def minus(self, other: "Box") -> "list[Box]":
        """What is left of this box without `other`: at most six boxes that do not overlap."""
        shared = self.intersect(other)
        if shared.empty:
            return [] if self.empty else [self]
        parts: list[Box] = []
        start, stop = list(self.start), list(self.stop)
        for axis in range(3):
            for a, b in ((start[axis], shared.start[axis]), (shared.stop[axis], stop[axis])):
                if a < b:
                    parts.append(
                        Box(
                            index3([*start[:axis], a, *start[axis + 1 :]]), index3([*stop[:axis], b, *stop[axis + 1 :]])
                        )
                    )
            start[axis], stop[axis] = shared.start[axis], shared.stop[axis]
        return parts

    def shifted(self, by: Index3) -> "Box":
        """The same box, moved."""
        return Box(
            index3([a + d for a, d in zip(self.start, by, strict=True)]),
            index3([b + d for b, d in zip(self.stop, by, strict=True)]),
        )

    def grown(self, by: Index3) -> "Box":
        """The box with so many voxels more on either side of each axis."""
        return Box(
            index3([a - d for a, d in zip(self.start, by, strict=True)]),
            index3([b + d for b, d in zip(self.stop, by, strict=True)]),
        )

    def relative_to(self, origin: Index3) -> "Box":
        """The same box in the coordinates of an array that begins at `origin`."""
        return self.shifted(index3([-o for o in origin]))


def runs(length: int, thickness: int) -> list[tuple[int, int]]:
    """Cut `length` planes into runs of `thickness`; the last may be thinner."""
    return [(k, min(k + thickness, length)) for k in range(0, length, thickness)]


def blocks(shape_zyx: Index3, block_zyx: Index3) -> Iterator[Box]:
    """The blocks of a regular grid, in C order; those at the far faces may be smaller."""
    for cut in product(*(runs(n, b) for n, b in zip(shape_zyx, block_zyx, strict=True))):
        yield Box(index3([a for a, _ in cut]), index3([b for _, b in cut]))


def tile_starts(length: int, tile: int, stride: int) -> list[int]:
    """Where the tiles of a lattice begin that is absolute in the scan: 0, stride, 2·stride, … until all is covered.

    The last tile may reach beyond `length`; what lies outside is padded. A tile's place never depends on the region
    that is worked on, which is what makes results independent of how the work is cut.
    """
    beyond = max(length - tile, 0)
    return list(range(0, beyond + stride, stride)) if beyond % stride else list(range(0, beyond + 1, stride))


def in_plane(spacing: Spacing, axis: str) -> tuple[float, float]:
    """The two edges of a pixel of planes across one of the axes z, y and x."""
    rows, columns = (edge for name, edge in zip("zyx", spacing, strict=True) if name != axis)
    return rows, columns


def move_axis(zyx: Index3, axis: int) -> Index3:
    """Sizes as seen along `axis`: (along it, rows, columns)."""
    along = zyx[axis]
    rows, columns = (n for a, n in enumerate(zyx) if a != axis)
    return along, rows, columns


def along_axis(axis: int, planes: tuple[int, int], rows: tuple[int, int], columns: tuple[int, int]) -> Box:
    """The box in z, y, x of planes × rows × columns seen along `axis`."""
    cut = [rows, columns]
    cut.insert(axis, planes)
    return Box(index3([a for a, _ in cut]), index3([b for _, b in cut]))
