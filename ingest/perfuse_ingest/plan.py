"""Will it fit? Pure functions, asked before anything is written; and the tree of slabs that makes a pyramid."""

import os
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np

from perfuse import volumes
from perfuse.errors import PlanError
from perfuse.geometry import Box, Index3, index3, runs
from perfuse.volumes import Layout, Level
from perfuse_ingest.sources.source import Source

PROCESS_BYTES = 300 * 2**20
"""What Python and its libraries take before any voxel."""


@dataclass(frozen=True)
class Slab:
    """Planes of one level that one task alone writes: the thickness of a shard."""

    level: int
    index: int
    box: Box
    """In voxels of its level."""
    children: tuple[int, ...]
    """Slabs of the level above whose halves make this one; none at level 0."""


def slab_tree(levels: list[Level], layout: Layout) -> list[list[Slab]]:
    """The slabs of all levels, finest first. A child's planes begin on an even one, so that halves fit together."""
    tree: list[list[Slab]] = []
    for level, here in enumerate(levels):
        thickness = volumes.shard_shape(here.shape_zyx, layout)[0]
        above = volumes.shard_shape(levels[level - 1].shape_zyx, layout)[0]
        tree.append([])
        for index, (start, stop) in enumerate(runs(here.shape_zyx[0], thickness)):
            box = Box((start, 0, 0), (stop, *here.shape_zyx[1:]))
            factor = here.factor_zyx[0]
            children = range(start * factor // above, -(-stop * factor // above)) if level else ()
            known = len(tree[level - 1]) if level else 0
            tree[level].append(Slab(level, index, box, tuple(c for c in children if c < known)))
    return tree


@dataclass(frozen=True)
class IngestPlan:
    """What an ingest will take."""

    layout: Layout
    slabs: int
    """Tasks that decode slices."""
    in_bands: bool
    """True when a slab does not fit in memory whole: it is worked band by band, one shard high."""
    work_bytes: int
    """Memory of one slab in work, or of one band: its voxels and what is made of them."""
    threads: int
    thread_bytes: int
    """Memory of one thread that decodes a slice or writes a shard."""
    in_flight: int
    """Slabs in work at once."""
    scratch_bytes: int
    """On this machine's disk while a slab is in work, where slices cannot be decoded in part."""

    @property
    def peak_bytes(self) -> int:
        """Memory in all; it does not depend on the number of slices."""
        return PROCESS_BYTES + self.in_flight * self.work_bytes + self.threads * self.thread_bytes


def plan(
    source: Source,
    levels: list[Level],
    layout: Layout = volumes.LAYOUT,
    *,
    memory_bytes: int | None = None,
    threads: int | None = None,
) -> IngestPlan:
    """Choose how the slabs are worked: whole and several at once, or in bands of rows, as high as fits.

    memory_bytes: half the machine's unless told.
    Raises PlanError, with both numbers, when not even the lowest band fits.
    """
    limit = memory_bytes if memory_bytes is not None else machine_bytes() // 2
    threads = threads or os.cpu_count() or 1
    whole = _whole(source, levels, layout, threads)
    if (room := limit - whole.peak_bytes) >= 0:
        return replace(whole, in_flight=min(threads, whole.slabs, 1 + room // whole.work_bytes))
    most = layout.shard_chunks[1]
    lower = [replace(layout, shard_chunks=(layout.shard_chunks[0], n, layout.shard_chunks[2])) for n in _halves(most)]
    banded = [_banded(source, levels, form, threads) for form in lower]
    for one in banded:
        if one.peak_bytes <= limit:
            return one
    depth, rows, columns = _thickest(levels[0].shape_zyx, layout)
    raise PlanError(
        f"{depth} slices of {rows} × {columns} {source.dtype} need {_gib(banded[-1].peak_bytes)} of memory even in bands "
        f"of {volumes.shard_shape(levels[0].shape_zyx, banded[-1].layout)[1]} rows; {_gib(limit)} may be used. "
        "Raise --memory-limit, or use a machine with more memory."
    )


def _halves(most: int) -> list[int]:
    return [most >> k for k in range(most.bit_length())]


def _whole(source: Source, levels: list[Level], layout: Layout, threads: int) -> IngestPlan:
    sizes = [prod(_thickest(level.shape_zyx, layout)) * source.dtype.itemsize for level in levels]
    slice_bytes = source.largest_bytes + 2 * prod(source.shape_zyx[1:]) * source.dtype.itemsize
    return IngestPlan(
        layout=layout,
        slabs=len(runs(levels[0].shape_zyx[0], volumes.shard_shape(levels[0].shape_zyx, layout)[0])),
        in_bands=False,
        work_bytes=sizes[0] + 2 * sum(sizes[1:]),
        threads=threads,
        thread_bytes=max(slice_bytes, 3 * _shard_bytes(levels, layout, source.dtype)),
        in_flight=1,
        scratch_bytes=0,
    )


def _banded(source: Source, levels: list[Level], layout: Layout, threads: int) -> IngestPlan:
    depth, rows, columns = _thickest(levels[0].shape_zyx, layout)
    high = volumes.shard_shape(levels[0].shape_zyx, layout)[1]
    band = depth * min(high, rows) * columns * source.dtype.itemsize
    slice_bytes = source.largest_bytes + 2 * prod(source.shape_zyx[1:]) * source.dtype.itemsize
    shard = _shard_bytes(levels, layout, source.dtype)
    return IngestPlan(
        layout=layout,
        slabs=len(runs(levels[0].shape_zyx[0], depth)),
        in_bands=True,
        work_bytes=max(band, 9 * shard),
        threads=threads,
        thread_bytes=3 * shard if source.cuts_rows else max(slice_bytes, 3 * shard),
        in_flight=1,
        scratch_bytes=0 if source.cuts_rows else depth * rows * columns * source.dtype.itemsize,
    )


def _shard_bytes(levels: list[Level], layout: Layout, dtype: np.dtype[Any]) -> int:
    return prod(volumes.shard_shape(levels[0].shape_zyx, layout)) * dtype.itemsize


def _thickest(shape_zyx: Index3, layout: Layout) -> Index3:
    return index3([volumes.shard_shape(shape_zyx, layout)[0], *shape_zyx[1:]])


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"


def machine_bytes() -> int:
    """Memory of this machine, in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
