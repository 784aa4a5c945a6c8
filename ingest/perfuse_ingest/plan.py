"""Will it fit? Pure functions, asked before anything is written; and the tree of slabs that makes a pyramid."""

import os
from dataclasses import dataclass
from math import prod

import numpy as np

from perfuse import volumes
from perfuse.errors import PlanError
from perfuse.geometry import Box, Index3, index3, runs


@dataclass(frozen=True)
class Slab:
    """Planes of one level that one task alone writes: the thickness of a shard."""

    level: int
    index: int
    box: Box
    """In voxels of its level."""
    children: tuple[int, ...]
    """Slabs of the level above whose halves make this one; none at level 0."""


def slab_tree(levels: list[volumes.Level]) -> list[list[Slab]]:
    """The slabs of all levels, finest first. A child's planes begin on an even one, so that halves fit together."""
    tree: list[list[Slab]] = []
    for level, here in enumerate(levels):
        thickness = volumes.shard_shape(here.shape_zyx)[0]
        above = volumes.shard_shape(levels[level - 1].shape_zyx)[0]
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

    slabs: int
    """Tasks that decode slices."""
    slab_bytes: int
    """Memory of one slab in work: its voxels and the halves on their way to the coarser levels."""
    threads: int
    thread_bytes: int
    """Memory of one thread that decodes a slice or writes a shard."""
    in_flight: int
    """Slabs in work at once."""

    @property
    def peak_bytes(self) -> int:
        """Memory in all; it does not depend on the number of slices."""
        return self.in_flight * self.slab_bytes + self.threads * self.thread_bytes


def plan(
    levels: list[volumes.Level],
    dtype: np.dtype[np.generic],
    slice_bytes: int,
    *,
    memory_bytes: int | None = None,
    threads: int | None = None,
) -> IngestPlan:
    """Choose how many slabs are in work at once.

    slice_bytes: stored bytes of the largest slice. memory_bytes: half the machine's unless told.
    Raises PlanError, with both numbers, when not even one slab fits.
    """
    limit = memory_bytes if memory_bytes is not None else machine_bytes() // 2
    threads = threads or os.cpu_count() or 1
    sizes = [prod(_thickest(level.shape_zyx)) * dtype.itemsize for level in levels]
    slab = sizes[0] + 2 * sum(sizes[1:])
    plane, shard = prod(levels[0].shape_zyx[1:]) * dtype.itemsize, prod(volumes.shard_shape(levels[0].shape_zyx))
    thread = max(slice_bytes + 2 * plane, 3 * shard * dtype.itemsize)
    if slab + threads * thread > limit:
        depth, rows, columns = _thickest(levels[0].shape_zyx)
        raise PlanError(
            f"A slab of {depth} slices of {rows} × {columns} {dtype} needs {_gib(slab + threads * thread)} of memory; "
            f"{_gib(limit)} may be used (half of what there is). Use a machine with more memory."
        )
    in_flight = min(threads, (limit - threads * thread) // slab)
    return IngestPlan(-(-levels[0].shape_zyx[0] // _thickest(levels[0].shape_zyx)[0]), slab, threads, thread, in_flight)


def _thickest(shape_zyx: Index3) -> Index3:
    return index3([volumes.shard_shape(shape_zyx)[0], *shape_zyx[1:]])


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"


def machine_bytes() -> int:
    """Memory of this machine, in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
