"""Volumes in chunks: Zarr 2 and 3, OME-Zarr 0.4 and 0.5, N5. Tensorstore decodes; a part is read alone, wherever it lies."""

import hashlib
from collections.abc import Iterator
from concurrent.futures import Executor
from functools import cached_property
from itertools import pairwise, product
from math import prod
from typing import Any

import numpy as np

from perfuse import storage
from perfuse.errors import SliceError, SourceError
from perfuse.geometry import AXES, Box, Index3, index3
from perfuse_ingest.sources.source import Voxels
from perfuse_ingest.sources.volumes.layout import Axes, Layout, find_layout
from perfuse_ingest.sources.volumes.probes import spread
from perfuse_ingest.sources.volumes.stores import context, kvstore, reaching
from perfuse_ingest.sources.volumes.volume import Volume, check_finite, volume_shape

_READ_BYTES = 16 * 2**20
"""Roughly what a thread reads at once: several chunks side by side hide a store's latency."""


class ChunkedVolume(Volume):
    """One level of a volume."""

    _opened = ("_array",)

    def __init__(self, url: str, layout: Layout, level: int) -> None:
        super().__init__()
        self.url = url
        self._driver, self._axes, self._path = layout.driver, layout.axes, layout.levels[level].path
        self.voxel_size_um = layout.levels[level].voxel_size_um
        self._describe(url, index3(self._array.shape), np.dtype(self._array.dtype.numpy_dtype))
        self._chunk = index3(
            [c or n for c, n in zip(self._array.chunk_layout.read_chunk.shape, self.shape_zyx, strict=True)]
        )
        self.largest_bytes = 2 * prod(self._at_once) * self.dtype.itemsize

    @cached_property
    def _array(self) -> Any:
        """Seen as z, y, x. Opened again in every process."""
        import tensorstore

        place = storage.join(self.url, self._path) if self._path else self.url
        try:
            with reaching(place):
                spec = {"driver": self._driver, "kvstore": kvstore(place)}
                array = tensorstore.open(spec, open=True, read=True, context=context()).result()
        except ValueError as error:
            raise SourceError(f"{place} cannot be opened as {self._driver} ({_first_line(error)}).") from error
        return _as_zyx(array, self._axes, place)

    @property
    def _at_once(self) -> Index3:
        """Voxels that a thread reads at once: whole chunks."""
        z, y, x = self._chunk
        row = z * y * x * self.dtype.itemsize
        return z, y, x * max(1, min(_READ_BYTES // row, -(-self.shape_zyx[2] // x)))

    def rows(self, box: Box, pool: Executor) -> Voxels:
        """See Source; only the chunks that the box touches are read, several by a thread where a store is far."""
        voxels = np.empty(box.shape, self.dtype)

        def fill(part: Box) -> None:
            voxels[part.relative_to(box.start).slices] = self._part(part)

        list(pool.map(fill, _on_grid(box, self._at_once)))
        return voxels

    def _part(self, box: Box) -> Voxels:
        try:
            with reaching(self.url):
                voxels = np.asarray(self._array[box.slices].read().result())
        except ValueError as error:
            raise SliceError(
                f"Planes {box.start[0]} to {box.stop[0] - 1} of {self.url} cannot be decoded ({_first_line(error)}). "
                "Copy the volume again."
            ) from error
        check_finite(voxels, box, self.url)
        return voxels

    @cached_property
    def identity(self) -> str:  # type: ignore[override]
        """Digest of shape, dtype, voxel size, and the voxels of 16 chunks, evenly spread."""
        grid = [-(-n // c) for n, c in zip(self.shape_zyx, self._chunk, strict=True)]
        whole, digests = Box.whole(self.shape_zyx), []
        for probe in spread(prod(grid) - 1):
            start = index3([int(k) * c for k, c in zip(np.unravel_index(probe, grid), self._chunk, strict=True)])
            voxels = self._part(Box.whole(self._chunk).shifted(start).intersect(whole))
            digests.append(hashlib.sha256(voxels.tobytes()).hexdigest())
        return storage.digest_json([self.shape_zyx, str(self.dtype), self.voxel_size_um, digests])


def open_chunked(url: str, level: int) -> ChunkedVolume:
    """One level of a Zarr or N5 folder. Raises SourceError, SliceError, ServerError."""
    layout = find_layout(url)
    if layout is None:
        raise SourceError(f"{url} does not exist, or is no Zarr or N5 volume: its metadata were not found.")
    if not 0 <= level < len(layout.levels):
        raise SourceError(f"{url} has no level {level}. It holds {', '.join(_described(url, layout))}.")
    return ChunkedVolume(url, layout, level)


def _described(url: str, layout: Layout) -> Iterator[str]:
    for level in range(len(layout.levels)):
        one = ChunkedVolume(url, layout, level)
        size = " × ".join(map(str, one.shape_zyx))
        voxel = f" of {' × '.join(f'{v:g}' for v in one.voxel_size_um)} µm" if one.voxel_size_um else ""
        yield f"level {level}: {size}{voxel}"


def _as_zyx(array: Any, axes: Axes | None, place: str) -> Any:
    """The array with z, y, x as its axes; all others must have length 1."""
    rank, dtype = array.rank, np.dtype(array.dtype.numpy_dtype)
    names = axes[:rank] if axes and set(AXES) <= set(axes[:rank]) else ("",) * (rank - 3) + AXES
    others = [i for i, name in enumerate(names) if name not in AXES]
    shape = tuple(array.shape)
    volume_shape((*(shape[i] for i in others), *(n for i, n in enumerate(shape) if i not in others)), dtype, place)
    cut = array[tuple(0 if i in others else slice(None) for i in range(rank))]
    kept = [name for name in names if name in AXES]
    return cut.transpose([kept.index(axis) for axis in AXES])


def _on_grid(box: Box, block_zyx: Index3) -> Iterator[Box]:
    """A box cut where the blocks of a grid meet."""
    cuts = [
        list(pairwise([a, *range((a // n + 1) * n, b, n), b]))
        for a, b, n in zip(box.start, box.stop, block_zyx, strict=True)
    ]
    for part in product(*cuts):
        yield Box(index3([a for a, _ in part]), index3([b for _, b in part]))


def _first_line(error: Exception) -> str:
    return str(error).split(" [tensorstore_spec", 1)[0]
