"""Passes over the blocks of a volume, on all cores: each voxel is read once, whatever the blocks share.

Metrics count 2×2×2 cubes, and those of a block begin one voxel before it. The faces that later blocks ask for are kept:

      x →                      kept are the last column of the block before (a), the last rows
    c c c c c c                of this layer's blocks, one voxel longer (b), and the last planes
    b b b b B B                of the layer before, one voxel longer and wider (c):
    a a a B . .                a cross-section of the volume, one voxel thick
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from perfuse.console import progress
from perfuse.geometry import Box, Index3, blocks
from perfuse.parallel import in_order

BLOCK = (64, 256, 512)
"""Half a shard of a label: of whole ones, the blocks at work took half as much memory again, and no less time."""
Arrays = tuple[npt.NDArray[Any], ...]
Part = TypeVar("Part")


def cut(shape_zyx: Index3) -> list[Box]:
    """The blocks of a volume, in C order."""
    return list(blocks(shape_zyx, BLOCK))


def over_blocks(cuts: Sequence[Box], what: str, work: Callable[[Box], Part]) -> Iterator[Part]:
    """What `work` makes of each block, in order."""
    with progress(what, len(cuts)) as advance:
        for part in in_order(work, cuts):
            yield part
            advance()


def over_cubes(
    cuts: Sequence[Box],
    shape_zyx: Index3,
    what: str,
    read: Callable[[Box, Arrays], None],
    outside: Sequence[np.generic],
    work: Callable[[Box, Arrays], Part],
) -> Iterator[Part]:
    """What `work` makes of each block and its voxels with those that its cubes need besides, in order.

    cuts: blocks that tile the volume, in C order. read: fills arrays [z, y, x] with a block. outside: what each holds in the
    padding, in its dtype. work is given them as `read_cubes` cuts them, but nothing is read again.
    """

    def padded(box: Box) -> Arrays:
        arrays = tuple(_frame(box, shape_zyx, value) for value in outside)
        read(box, tuple(a[inside(box)] for a in arrays))
        return arrays

    with progress(what, len(cuts)) as advance:
        whole = _with_kept_faces(cuts, in_order(padded, cuts), shape_zyx)
        for part in in_order(lambda item: work(*item), whole):
            yield part
            advance()


def inside(box: Box) -> tuple[slice, slice, slice]:
    """Where a block's own voxels are in the arrays that `over_cubes` gives."""
    z, y, x = (slice(1, 1 + n) for n in box.shape)
    return z, y, x


def _frame(box: Box, shape_zyx: Index3, value: np.generic) -> npt.NDArray[Any]:
    """An array for a block and what is around it, of which only that is set."""
    array = np.empty(
        [n + 1 + (b == whole) for n, b, whole in zip(box.shape, box.stop, shape_zyx, strict=True)], value.dtype
    )
    for axis, own in enumerate(inside(box)):
        along = np.moveaxis(array, axis, 0)
        along[0] = along[own.stop :] = value
    return array


def _with_kept_faces(cuts: Sequence[Box], padded: Iterable[Arrays], shape_zyx: Index3) -> Iterator[tuple[Box, Arrays]]:
    """The blocks, their faces filled with what the blocks before hold there; what lies outside the volume stays."""
    kept: dict[tuple[int, ...], npt.NDArray[Any]] = {}
    for box, arrays in zip(cuts, padded, strict=True):
        for number, array in enumerate(arrays):
            for axis in (2, 1, 0):
                face = [slice(1, 1 + n) for n in box.shape[:axis]] + [0] + [slice(None)] * (2 - axis)
                place = (number, axis, *(start for other, start in enumerate(box.start) if other != axis))
                before = kept.pop(place, None)
                if before is not None:
                    array[tuple(face)] = before
                if box.stop[axis] < shape_zyx[axis]:
                    face[axis] = box.shape[axis]
                    kept[place] = array[tuple(face)].copy()
        yield box, arrays
