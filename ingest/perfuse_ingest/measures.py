"""What falls out of the pass over the slices: exact histograms, occupancy, slice digests. All lie in Zarr arrays.

perfuse/slices          uint8[slice, 32]        SHA-256 of each slice's bytes
perfuse/slice_names     uint8[slice, longest]   UTF-8, filled up with zeros
perfuse/histograms      int64[slab, intensity]  exact counts of each slab of level 0
perfuse/histogram       int64[intensity]        their sum, written last
perfuse/occupancy       [slab, rows, columns, 2]  lowest and highest value of each chunk of level 0
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from perfuse import volumes
from perfuse.errors import ScanError
from perfuse_ingest.plan import Slab
from perfuse_ingest.sources import Source

Counts = npt.NDArray[np.int64]
PERCENTS = (0.5, 1.0, 5.0, 50.0, 95.0, 99.0, 99.5)
_PIECE = 1 << 20


@dataclass(frozen=True)
class Band:
    """Chunk-high rows of a slab: counts int64[intensity]; extremes [columns of chunks, 2]."""

    counts: Counts
    extremes: npt.NDArray[Any]


def measure(voxels: npt.NDArray[Any], chunk_columns: int) -> Band:
    """Counts and extremes of a band: uint8 or uint16 [z, y, x], one chunk thick and high."""
    counts = np.zeros(1 << (8 * voxels.dtype.itemsize), np.int64)
    flat = np.ascontiguousarray(voxels).ravel()
    for start in range(0, flat.size, _PIECE):  # bincount makes int64 of what it counts
        counts += np.bincount(flat[start : start + _PIECE], minlength=len(counts))
    cuts = np.arange(0, voxels.shape[2], chunk_columns)
    low = np.minimum.reduceat(voxels.min(axis=(0, 1)), cuts)
    high = np.maximum.reduceat(voxels.max(axis=(0, 1)), cuts)
    return Band(counts, np.stack([low, high], axis=-1))


@dataclass(frozen=True)
class Measures:
    """The arrays of measures; each slab alone writes its rows."""

    group: zarr.Group

    @classmethod
    def create(cls, group: zarr.Group, stack: Source) -> "Measures":
        """Empty arrays, and the names of the slices."""
        shape = stack.shape_zyx
        thickness = volumes.shard_shape(shape)[0]
        slabs, rows, columns = (-(-n // c) for n, c in zip(shape, volumes.chunk_shape(shape), strict=True))
        bins = 1 << (8 * stack.dtype.itemsize)
        _create(group, "slices", (shape[0], 32), (thickness, 32), "uint8")
        _create(group, "histograms", (slabs, bins), (1, bins), "int64")
        _create(group, "occupancy", (slabs, rows, columns, 2), (1, rows, columns, 2), stack.dtype)
        names = np.array([n.encode() for n in stack.names])
        packed = names.view(np.uint8).reshape(len(names), names.itemsize)
        _create(group, "slice_names", packed.shape, packed.shape, "uint8")[...] = packed
        return cls(group)

    def store(self, slab: Slab, digests: Sequence[bytes], bands: Sequence[Band]) -> None:
        """Write a slab's rows: the digest of each of its slices, and its bands from the first row to the last."""
        start, stop = slab.box.start[0], slab.box.stop[0]
        self._array("slices")[start:stop] = np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32)
        self._array("histograms")[slab.index] = sum(b.counts for b in bands)
        self._array("occupancy")[slab.index] = np.stack([b.extremes for b in bands])

    def finish(self) -> Counts:
        """Sum the slabs' histograms, store and return the sum."""
        stored = self._array("histograms")
        total = np.zeros(stored.shape[1], np.int64)
        for slab in range(stored.shape[0]):
            total += np.asarray(stored[slab], np.int64)
        _create(self.group, "histogram", total.shape, total.shape, "int64")[...] = total
        return total

    def slices_root(self) -> str:
        """The digest over all slice digests: the identity of the source's bytes."""
        return volumes.merkle(row.tobytes() for row in np.asarray(self._array("slices")[:]))

    def _array(self, name: str) -> zarr.Array[Any]:
        array = self.group.get(name)
        if not isinstance(array, zarr.Array):
            raise ScanError(f"{self.group.store_path} is damaged: {name} is missing. Remove the scan and ingest again.")
        return array


def _create(
    group: zarr.Group, name: str, shape: tuple[int, ...], chunks: tuple[int, ...], dtype: npt.DTypeLike
) -> zarr.Array[Any]:
    return group.create_array(name, shape=shape, chunks=chunks, dtype=np.dtype(dtype), fill_value=0, overwrite=True)


def intensity(counts: Counts) -> dict[str, float]:
    """Lowest, highest, mean and percentiles, exactly, from a histogram."""
    used, total = np.flatnonzero(counts), np.cumsum(counts)
    return {
        "min": float(used[0]),
        "max": float(used[-1]),
        "mean": float(counts @ np.arange(len(counts), dtype=np.float64) / total[-1]),
        **{f"p{p:g}": float(np.searchsorted(total, p / 100 * total[-1])) for p in PERCENTS},
    }
