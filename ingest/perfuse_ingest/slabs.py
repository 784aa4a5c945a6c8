"""The one pass: a tree of Dask tasks, one leaf a slab.

    leaf i:     decode slices → level 0 shards → done-mark → halves ─┐
    leaf i + 1: decode slices → level 0 shards → done-mark → halves ─┴▶ level 1 shards → halves ─▶ level 2 …

A leaf alone writes the shards of its slab. A leaf that is done is read back from level 0 instead of from its slices.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

import dask
import numpy as np
import numpy.typing as npt
import zarr

from perfuse import storage, volumes
from perfuse.geometry import Box, index3, runs
from perfuse_ingest.stack import Stack

Halves = npt.NDArray[Any] | None


@dataclass
class Pass:
    """Where slabs are written to, and what they add up to."""

    scan_url: str
    stack: Stack
    levels: list[volumes.Level]
    arrays: list[zarr.Array[Any]]
    marks: volumes.DoneMarks
    digests: zarr.Array[Any]
    occupancy: zarr.Array[Any]
    advance: Callable[[int], None]
    histogram: npt.NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        self.histogram = np.zeros(2 ** (8 * self.stack.dtype.itemsize), np.int64)
        self._adding = Lock()
        self.slabs = runs(self.stack.shape_zyx[0], index3(self.arrays[0].shards or self.arrays[0].chunks)[0])
        self._intact = self.marks.intact(self.stored)

    def stored(self, slab: int) -> bytes:
        """Digest of a slab's shards as they are stored now."""
        return volumes.stored_digest(storage.join(self.scan_url, "0"), self.arrays[0], self._box(slab))

    def _box(self, slab: int) -> Box:
        start, stop = self.slabs[slab]
        _, rows, columns = self.stack.shape_zyx
        return Box((start, 0, 0), (stop, rows, columns))

    def leaf(self, slab: int) -> Halves:
        """Do one slab; returns its share of level 1."""
        box = self._box(slab)
        if slab in self._intact:
            voxels = np.asarray(self.arrays[0][box.slices])
        else:
            voxels = self._decode(box)
            self.arrays[0][box.slices] = voxels
            self.occupancy[slab] = _extremes(voxels, index3(self.arrays[0].chunks))
            self.marks.mark(slab, self.stored(slab))
        counts = np.bincount(voxels.ravel(), minlength=len(self.histogram))
        with self._adding:
            self.histogram += counts
        self.advance(box.shape[0])
        return self._halve(voxels, 1)

    def _decode(self, box: Box) -> npt.NDArray[Any]:
        voxels = np.empty(box.shape, self.stack.dtype)
        digests = np.empty((box.shape[0], 32), np.uint8)
        for k in range(box.shape[0]):
            voxels[k], digest = self.stack.read(box.start[0] + k)
            digests[k] = np.frombuffer(digest, np.uint8)
        self.digests[box.start[0] : box.stop[0]] = digests
        return voxels

    def _halve(self, voxels: npt.NDArray[Any], level: int) -> Halves:
        if level == len(self.levels):
            return None
        return volumes.halve(voxels, self.levels[level].factor_zyx, "mean")

    def parent(self, level: int, at: int, parts: list[Halves]) -> Halves:
        """Write one run of planes of a coarser level, whole; returns its share of the next."""
        voxels = np.concatenate([p for p in parts if p is not None])
        thick = index3(self.arrays[level].shards or self.arrays[level].chunks)[0]
        self.arrays[level][at * thick : at * thick + voxels.shape[0]] = voxels
        return self._halve(voxels, level + 1)

    def run(self, workers: int) -> None:
        """Execute the tree on threads."""
        nodes = [dask.delayed(self.leaf)(i) for i in range(len(self.slabs))]
        for level in range(1, len(self.levels)):
            group = self._children(level)
            nodes = [
                dask.delayed(self.parent)(level, at, nodes[first : first + group])
                for at, first in enumerate(range(0, len(nodes), group))
            ]
        dask.compute(*nodes, scheduler="threads", num_workers=workers)

    def _children(self, level: int) -> int:
        """How many runs of the level above make one shard's thickness of this level."""
        above, here = (index3(self.arrays[k].shards or self.arrays[k].chunks)[0] for k in (level - 1, level))
        return max(1, -(-here * self.levels[level].factor_zyx[0] // above))


def _extremes(voxels: npt.NDArray[Any], chunk: tuple[int, int, int]) -> npt.NDArray[Any]:
    """Lowest and highest value of each chunk of a slab that is one chunk thick: [rows, columns, 2]."""
    low, high = voxels.min(0), voxels.max(0)
    for axis in (0, 1):
        cuts = np.arange(0, low.shape[axis], chunk[axis + 1])
        low, high = np.minimum.reduceat(low, cuts, axis), np.maximum.reduceat(high, cuts, axis)
    return np.stack([low, high], axis=-1)
