"""Passes over the blocks of a volume, on all cores, of many machines too: each voxel is read once, whatever the blocks share.

Metrics count 2×2×2 cubes, and those of a block begin one voxel before it. The faces that later blocks ask for are kept:

      x →                      kept are the last column of the block before (a), the last rows
    c c c c c c                of this layer's blocks, one voxel longer (b), and the last planes
    b b b b B B                of the layer before, one voxel longer and wider (c):
    a a a B . .                a cross-section of the volume, one voxel thick

Elsewhere a run of blocks is done at a time; whoever does a run reads the plane before it, too.
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from importlib.metadata import entry_points
from itertools import chain, groupby, islice
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from perfuse.console import progress
from perfuse.errors import PerfuseError
from perfuse.geometry import Box, Index3, blocks
from perfuse.parallel import in_order

BLOCK = (64, 256, 512)
"""Half a shard of a label: of whole ones, the blocks at work took half as much memory again, and no less time."""
Arrays = tuple[npt.NDArray[Any], ...]
Item = TypeVar("Item")
Part = TypeVar("Part")

RUNS = 4
"""Of blocks, for each process elsewhere: some take longer than others."""


@dataclass(frozen=True)
class Spread:
    """Other processes that passes run in."""

    processes: int
    in_order: Callable[[Callable[[Any], Any], Sequence[Any]], Iterator[Any]]
    """As `perfuse.parallel.in_order`; what is called, with what, and what comes back are pickled."""


_SPREAD: ContextVar[Spread | None] = ContextVar("spread", default=None)


@contextmanager
def spread_over(processes: int | None) -> Iterator[None]:
    """Passes in this context run in so many processes, which the entry point `perfuse.spread` provides; None: in this one.

    Raises PerfuseError where nothing is installed that provides them.
    """
    if processes is None:
        yield
        return
    found = list(entry_points(group="perfuse.spread"))
    if not found:
        raise PerfuseError("--workers needs Ray, which is not installed here: pip install 'perfuse[train]'")
    token = _SPREAD.set(Spread(processes, found[0].load()(processes)))
    try:
        yield
    finally:
        _SPREAD.reset(token)


def cut(shape_zyx: Index3) -> list[Box]:
    """The blocks of a volume, in C order."""
    return list(blocks(shape_zyx, BLOCK))


def over_blocks(items: Sequence[Item], what: str, work: Callable[[Item], Part]) -> Iterator[Part]:
    """What `work` makes of each block, or of what stands for one, in order."""
    return _over(partial(in_order, work), [[item] for item in items], what)


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
    of_run = partial(_cubes, shape_zyx=shape_zyx, read=read, outside=outside, work=work)
    return _over(of_run, [list(layer) for _, layer in groupby(cuts, lambda box: box.start[0])], what)


def _over(of_run: Callable[[Sequence[Item]], Iterator[Part]], units: list[list[Item]], what: str) -> Iterator[Part]:
    """What `of_run` makes of all items, in order: here of all at once, elsewhere of runs of whole units."""
    spread = _SPREAD.get()
    size = max(1, len(units) if spread is None else -(-len(units) // (RUNS * spread.processes)))
    runs = [list(chain.from_iterable(units[n : n + size])) for n in range(0, len(units), size)]
    parts = map(of_run, runs) if spread is None else spread.in_order(partial(_listed, of_run), runs)
    with progress(what, sum(map(len, units))) as advance:
        for part in chain.from_iterable(parts):
            yield part
            advance()


def _listed(of_run: Callable[[Sequence[Item]], Iterator[Part]], items: Sequence[Item]) -> list[Part]:
    return list(of_run(items))


def _cubes(
    cuts: Sequence[Box],
    *,
    shape_zyx: Index3,
    read: Callable[[Box, Arrays], None],
    outside: Sequence[np.generic],
    work: Callable[[Box, Arrays], Part],
) -> Generator[Part]:
    """`over_cubes` of a run of whole layers of blocks."""

    def padded(box: Box) -> Arrays:
        arrays = tuple(_frame(box, shape_zyx, value) for value in outside)
        read(box, tuple(a[inside(box)] for a in arrays))
        return arrays

    first = cuts[0].start[0]
    layer = [box for box in cuts if first and box.start[0] == first]
    before = [Box((first - 1, *box.start[1:]), (first, *box.stop[1:])) for box in layer]
    all_cuts = [*before, *cuts]
    whole = _with_kept_faces(all_cuts, in_order(padded, all_cuts), shape_zyx)
    yield from in_order(lambda item: work(*item), islice(whole, len(before), None))


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
