"""Will it fit? Asked before anything is written."""

import os
from dataclasses import dataclass

import numpy as np

from perfuse import volumes
from perfuse.errors import PlanError
from perfuse.geometry import Index3, runs


@dataclass(frozen=True)
class IngestPlan:
    """What an ingest will take."""

    slabs: int
    slab_bytes: int
    """Memory of one slab in work: its voxels, the halves, and what the codec holds."""
    workers: int
    """Slabs in work at once."""
    peak_bytes: int


def plan(shape_zyx: Index3, dtype: np.dtype[np.generic], memory_bytes: int | None = None) -> IngestPlan:
    """Choose how many slabs are worked on at once, within half the machine's memory.

    Raises PlanError, with both numbers, when not even one fits.
    """
    limit = memory_bytes or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    _, rows, columns = shape_zyx
    thickness = volumes.shard_shape(shape_zyx)[0]
    slab = int(thickness * rows * columns * dtype.itemsize * 2.5)
    if slab > limit:
        raise PlanError(
            f"A slab of {thickness} slices of {rows} × {columns} needs {slab / 2**30:.2f} GiB; {limit / 2**30:.2f} GiB may be used "
            "(half the machine's memory). Use a machine with more memory."
        )
    workers = max(1, min(os.cpu_count() or 1, limit // slab))
    return IngestPlan(len(runs(shape_zyx[0], thickness)), slab, workers, slab * workers)
