"""Passes over the blocks of a volume, on all cores: each voxel is read once, whatever the blocks share.

Metrics count 2×2×2 cubes, and those of a block begin one voxel before it. The faces that later blocks ask for are kept:

      x →                      kept are the last column of the block before (a), the last rows
    c c c c c c                of this layer's blocks, one voxel longer (b), and the last planes
    b b b b B B                of the layer before, one voxel longer and wider (c):
    a a a B . .                a cross-section of the volume, one voxel thick
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, repeat
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from perfuse.console import progress
from perfuse.geometry import Box, Index3, blocks
from perfuse.parallel import in_order

BLOCK = (64, 512, 512)
Arrays = tuple[npt.NDArray[Any], ...]
Part = TypeVar("Part")


def cut(shape_zyx: Index3) -> list[Box]:
    """The blocks of a volume, in C order."""
    return list(blocks(shape_zyx, BLOCK))


def over_blocks(shape_zyx: Index3, what: str, work: Callable[[Box], Part]) -> Iterator[Part]:
    """What `work` makes of each block, in order."""
    cuts = cut(shape_zyx)
    with progress(what, len(cuts)) as advance:
        for part in in_order(work, cuts):
            yield part
            advance()


def over_cubes(
    cuts: Sequence[Box],
    shape_zyx: Index3,
    what: str,
    read: Callable[[Box], Arrays],
    outside: Sequence[int],
    work: Callable[[Box, Arrays], Part],
) -> Iterator[Part]:
    """What `work` makes of each block and its voxels with those that its cubes need besides, in order.

    cuts: blocks that tile the volume, in C order. read: arrays [z, y, x] of a block. outside: what each holds in the padding;
    of further ones 0.
    """

    def decoded() -> Iterator[tuple[Box, Arrays]]:
        yield from zip(cuts, in_order(read, cuts), strict=True)

    with progress(what, len(cuts)) as advance:
        for part in in_order(lambda item: work(*item), cubes(decoded(), shape_zyx, outside)):
            yield part
            advance()


def cubes(
    decoded: Iterable[tuple[Box, Arrays]], shape_zyx: Index3, outside: Sequence[int]
) -> Iterator[tuple[Box, Arrays]]:
    """The voxels of the cubes that belong to each block: as `read_cubes` cuts them, but nothing is read again."""
    kept: dict[tuple[int, ...], npt.NDArray[Any]] = {}
    for box, arrays in decoded:
        last = [int(b == n) for b, n in zip(box.stop, shape_zyx, strict=True)]
        grown = []
        for number, (array, fill) in enumerate(zip(arrays, chain(outside, repeat(0)), strict=False)):
            out = np.pad(array, [(1, extra) for extra in last], constant_values=fill)
            for axis in (2, 1, 0):
                face = [slice(1, 1 + n) for n in box.shape[:axis]] + [0] + [slice(None)] * (2 - axis)
                place = (number, axis, *(start for other, start in enumerate(box.start) if other != axis))
                before = kept.pop(place, None)
                if before is not None:
                    out[tuple(face)] = before
                face[axis] = box.shape[axis]
                if not last[axis]:
                    kept[place] = out[tuple(face)].copy()
            grown.append(out)
        yield box, tuple(grown)
