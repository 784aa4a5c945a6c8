"""What falls out of the pass over the slices: exact histograms, occupancy, slice digests. All lie in Zarr arrays.

perfuse/slices            uint8[slice, 32]          SHA-256 of each slice's bytes; zeros where a slice is missing, or the source a volume
perfuse/slice_names       uint8[slice, longest]     UTF-8, filled up with zeros
perfuse/histogram         int64[bin]                exact counts of level 0
perfuse/occupancy         [layers, rows, columns, 2]  lowest and highest value of each chunk of level 0
perfuse/slabs/histogram   int64[slab, bin]          what `histogram` is the sum of
perfuse/slabs/slices      uint8[slab, most, 32]     what `slices` is put together from
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from perfuse import intensity, volumes
from perfuse.errors import ScanError
from perfuse.intensity import Counts
from perfuse.volumes import Layout
from perfuse_ingest.plan import Slab
from perfuse_ingest.sources.source import Source

Extremes = npt.NDArray[Any]


@dataclass(frozen=True)
class Measures:
    """The arrays of measures; each slab alone writes its rows."""

    group: zarr.Group

    @classmethod
    def create(cls, group: zarr.Group, source: Source, slabs: Sequence[Slab], layout: Layout) -> "Measures":
        """Empty arrays, and the names of the slices."""
        chunk, bins = volumes.chunk_shape(source.shape_zyx, layout), intensity.bins(source.dtype)
        layers, rows, columns = (-(-n // c) for n, c in zip(source.shape_zyx, chunk, strict=True))
        most = max(len(source.slices_of(s.box.start[0], s.box.stop[0])) for s in slabs)
        _create(group, "slabs/histogram", (len(slabs), bins), (1, bins), "int64")
        _create(group, "slabs/slices", (len(slabs), most, 32), (1, most, 32), "uint8")
        in_slab = min(layout.shard_chunks[0], layers)
        _create(group, "occupancy", (layers, rows, columns, 2), (in_slab, rows, columns, 2), source.dtype)
        names = np.array([name.encode() for name in source.names])
        packed = names.view(np.uint8).reshape(len(names), names.itemsize)
        _create(group, "slice_names", packed.shape, packed.shape, "uint8")[...] = packed
        return cls(group)

    def store(self, slab: Slab, layer: int, digests: Sequence[bytes], counts: Counts, extremes: Extremes) -> None:
        """Write a slab's rows; layer: its first layer of chunks; extremes: [layers, rows, columns, 2]."""
        packed = np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32)
        self._array("slabs/slices")[slab.index, : len(packed)] = packed
        self._array("slabs/histogram")[slab.index] = counts
        self._array("occupancy")[layer : layer + len(extremes)] = extremes

    def finish(self, source: Source, slabs: Sequence[Slab]) -> Counts:
        """Put the slabs' rows together, and return the histogram."""
        digests = np.zeros((len(source.names), 32), np.uint8)
        total = np.zeros(intensity.bins(source.dtype), np.int64)
        for slab in slabs:
            owned = source.slices_of(slab.box.start[0], slab.box.stop[0])
            digests[owned.start : owned.stop] = self._array("slabs/slices")[slab.index, : len(owned)]
            total += np.asarray(self._array("slabs/histogram")[slab.index], np.int64)
        _create(self.group, "slices", digests.shape, digests.shape, "uint8")[...] = digests
        _create(self.group, "histogram", total.shape, total.shape, "int64")[...] = total
        return total

    def slices_root(self) -> str:
        """The digest over all slice digests: the identity of the source's bytes."""
        return volumes.merkle(self.slice_digests())

    def slice_digests(self) -> list[bytes]:
        """The SHA-256 of each slice's bytes, in order."""
        return [row.tobytes() for row in np.asarray(self._array("slices")[:])]

    def _array(self, name: str) -> zarr.Array[Any]:
        array = self.group.get(name)
        if not isinstance(array, zarr.Array):
            raise ScanError(f"{self.group.store_path} is damaged: {name} is missing. Remove the scan and ingest again.")
        return array


def _create(
    group: zarr.Group, name: str, shape: tuple[int, ...], chunks: tuple[int, ...], dtype: npt.DTypeLike
) -> zarr.Array[Any]:
    return group.create_array(name, shape=shape, chunks=chunks, dtype=np.dtype(dtype), fill_value=0, overwrite=True)
