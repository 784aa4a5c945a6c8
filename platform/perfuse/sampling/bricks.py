"""Bricks: boxes of a scan and its label that are read once and give many crops, in memory as they are cut, in the scan's dtype."""

import math
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from threading import RLock
from typing import Any

import numpy as np
import numpy.typing as npt

from perfuse.geometry import Box, Index3, blocks, index3
from perfuse.sampling import kernels
from perfuse.sampling.places import Place
from perfuse.sampling.sources import Labelled, Opened
from perfuse.shards import ShardFormat

Voxels = npt.NDArray[Any]
EVERYWHERE = np.empty((0, 0, 0), np.uint8)
"""Instead of a mask of what is known, where all is."""
TURNED_BLOCK = 64
"""Edge of the blocks in which a turned brick is sampled."""
BRICKS_KEPT = 2
"""Whose memory waits for the next ones."""
CHUNKS_KEPT = 256
"""Decoded chunks that neighbouring blocks of a turned brick share."""


@dataclass(frozen=True)
class PlacedBrick:
    """A brick, wherever its voxels are held, that finds the vessels of its place's class."""

    place: Place

    @property
    def vessel_sums(self) -> npt.NDArray[np.int64]:
        """Known vessel voxels up to and with each row: int64[planes · rows + 1], beginning with 0."""
        raise NotImplementedError

    def vessel_columns(self, plane: int, row: int) -> npt.NDArray[np.int64]:
        """Where a row is known vessel."""
        raise NotImplementedError

    def vessel(self, rng: np.random.Generator, first: int, last: int) -> tuple[int, int, int] | None:
        """A known vessel voxel of the planes first … last, all equally likely; None where there is none."""
        sums, rows = self.vessel_sums, self.place.shape[1]
        begin, end = int(sums[first * rows]), int(sums[(last + 1) * rows])
        if begin == end:
            return None
        number = int(rng.integers(begin, end))
        line = int(np.searchsorted(sums, number, side="right")) - 1
        plane, row = divmod(line, rows)
        return plane, row, int(self.vessel_columns(plane, row)[number - int(sums[line])])


@dataclass(frozen=True)
class BrickLabel:
    """The label of a class in a brick, [planes, rows, columns]."""

    values: npt.NDArray[np.uint8]
    known: npt.NDArray[np.uint8]
    """As values, 0 or 1; or `EVERYWHERE`."""


@dataclass(frozen=True)
class Brick(PlacedBrick):
    """Voxels [planes, rows, columns], seen along the brick's axis."""

    image: Voxels
    labels: tuple[BrickLabel | None, ...]
    """By class; None where the scan has none."""

    @property
    def _foreground(self) -> BrickLabel:
        label = self.labels[self.place.class_number]
        assert label is not None
        return label

    @cached_property
    def vessel_sums(self) -> npt.NDArray[np.int64]:
        """See PlacedBrick."""
        label = self._foreground
        counts = np.empty(label.values.shape[:2], np.int64)
        kernels.vessels_per_row(label.values, label.known, counts)
        return np.concatenate([[0], np.cumsum(counts)])

    def vessel_columns(self, plane: int, row: int) -> npt.NDArray[np.int64]:
        """See PlacedBrick."""
        label = self._foreground
        marked = label.values[plane, row] >= 128
        if label.known.size:
            marked &= label.known[plane, row] > 0
        return np.flatnonzero(marked)

    @property
    def nbytes(self) -> int:
        """Memory of its voxels."""
        return self.image.nbytes + sum(n.values.nbytes + n.known.nbytes for n in self.labels if n is not None)


class Memory:
    """Memory of bricks that are gone, for the next ones: to touch fresh memory costs as much as to decode into it."""

    def __init__(self) -> None:
        self._free: list[npt.NDArray[np.uint8]] = []
        self._lock = RLock()  # a brick may go while this thread is in here

    def take(self, shape: Index3, dtype: np.dtype[Any]) -> Voxels:
        """An array with anything in it."""
        size = math.prod(shape) * dtype.itemsize
        with self._lock:
            fits = next((part for part in self._free if part.nbytes == size), None)
            self._free = [part for part in self._free if part is not fits]
        return (np.empty(size, np.uint8) if fits is None else fits).view(dtype).reshape(shape)

    def lend(self, brick: Brick) -> Brick:
        """Take the memory of image and labels back when a brick is gone; nobody holds views of it longer."""
        parts = [brick.image, *(label.values for label in brick.labels if label is not None)]
        weakref.finalize(brick, self._give, [part.reshape(-1).view(np.uint8) for part in parts])
        return brick

    def _give(self, parts: list[npt.NDArray[np.uint8]]) -> None:
        with self._lock:
            self._free = [*self._free, *parts][-len(parts) * BRICKS_KEPT :]


def read_brick(source: Opened, place: Place, memory: Memory) -> Brick:
    """Read and decode a brick; ScanError where a chunk is damaged."""
    image = memory.take(place.shape, source.image.dtype)
    if place.turn is None:
        _read(source, source.image, place, image)
    else:
        _turned_image(source, place, image)
    read_label = _straight_label if place.turn is None else _turned_label
    labels = tuple(
        None if label is None else read_label(source, label, place, memory.take(place.shape, label.form.dtype))
        for label in source.labels
    )
    return memory.lend(Brick(place, image, labels))


def _straight_label(source: Opened, label: Labelled, place: Place, values: Voxels) -> BrickLabel:
    seen = _read(source, label.form, place, values)
    if label.is_known(place.box):
        return BrickLabel(values, EVERYWHERE)
    return BrickLabel(values, np.ascontiguousarray(np.moveaxis(label.read_known(place.box, seen), place.axis, 0)))


def _read(source: Opened, form: ShardFormat, place: Place, voxels: Voxels) -> Voxels:
    """Read the box of a place, and return it as z, y, x."""
    voxels[...] = 0
    seen = np.moveaxis(voxels, 0, place.axis)
    source.scan.read_stored(form, place.box, seen)
    return seen


def _turned_image(source: Opened, place: Place, image: Voxels) -> None:
    half = 0.5 if image.dtype.kind == "u" else 0.0
    read = _by_chunks(source, source.image)
    for block, box, inside, steps in _turned_blocks(source, place):
        kernels.turned_image(read(box), inside, steps, half, image[block.slices])


def _turned_label(source: Opened, label: Labelled, place: Place, values: Voxels) -> BrickLabel:
    known = np.empty(place.shape, np.uint8)
    read = _by_chunks(source, label.form)
    for block, box, inside, steps in _turned_blocks(source, place):
        seen = read(box)
        stated = EVERYWHERE if label.is_known(box) else label.read_known(box, seen)
        kernels.turned_label(seen, stated, inside, steps, values[block.slices], known[block.slices])
    return BrickLabel(values, known)


def _turned_blocks(
    source: Opened, place: Place
) -> Iterator[tuple[Box, Box, npt.NDArray[np.float64], npt.NDArray[np.float64]]]:
    """Blocks of a turned brick: each with the box of the scan that it shows, where it begins in that, and its steps."""
    steps = place.steps(source.scan.info.voxel_size_um)
    origin = place.origin(source.scan.info.voxel_size_um)
    for block in blocks(place.shape, (TURNED_BLOCK,) * 3):
        begin = origin + np.array(block.start) @ steps
        box = _around(begin, steps, block.shape, source.extent)
        yield block, box, begin - box.start, steps


def _around(begin: npt.NDArray[np.float64], steps: npt.NDArray[np.float64], shape: Index3, extent: Box) -> Box:
    """All voxels that interpolation at the positions of a turned block asks for; at least the nearest one of the extent."""
    corners = begin + np.stack(np.meshgrid(*((0, n - 1) for n in shape), indexing="ij"), -1).reshape(-1, 3) @ steps
    start = np.clip(np.floor(corners.min(0)), extent.start, np.subtract(extent.stop, 1)).astype(int)
    stop = np.clip(np.floor(corners.max(0)) + 2, start + 1, extent.stop).astype(int)
    return Box(index3(start.tolist()), index3(stop.tolist()))


def _by_chunks(source: Opened, form: ShardFormat) -> Callable[[Box], Voxels]:
    """A reader of boxes that keeps the chunks it decoded last."""

    @lru_cache(maxsize=CHUNKS_KEPT)
    def chunk(start: Index3) -> tuple[Box, Voxels]:
        stop = index3([min(a + c, n) for a, c, n in zip(start, form.chunk_zyx, form.shape_zyx, strict=True)])
        return Box(start, stop), source.scan.read_stored(form, Box(start, stop))

    def read(box: Box) -> Voxels:
        voxels = np.empty(box.shape, form.dtype)
        first = index3([a // c * c for a, c in zip(box.start, form.chunk_zyx, strict=True)])
        for block in blocks(index3([b - a for a, b in zip(first, box.stop, strict=True)]), form.chunk_zyx):
            part, values = chunk(block.shifted(first).start)
            common = part.intersect(box)
            voxels[common.relative_to(box.start).slices] = values[common.relative_to(part.start).slices]
        return voxels

    return read
