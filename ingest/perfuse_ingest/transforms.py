"""Sources that change another source on the way in: a crop, a coarser voxel size, an eight-bit window."""

from concurrent.futures import Executor
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from perfuse.errors import SourceError
from perfuse.geometry import Box, Spacing, index3, runs
from perfuse.resampling import AxisWeights, resample_plane
from perfuse_ingest.sources.source import Source, Voxels

PLANES_AT_ONCE = 16
"""Slices that are decoded together while resampling."""


class Changed(Source):
    """What stays as it was."""

    def __init__(self, inner: Source) -> None:
        super().__init__()
        self._inner = inner
        self.url, self.names, self.shape_zyx, self.dtype = inner.url, inner.names, inner.shape_zyx, inner.dtype
        self.identity, self.largest_bytes, self.cuts_rows = inner.identity, inner.largest_bytes, inner.cuts_rows
        self.passes, self.passed_over, self.missing = inner.passes, inner.passed_over, inner.missing
        self.voxel_size_um = inner.voxel_size_um
        self._files.enter_context(inner)

    def learn(self, pool: Executor) -> None:
        """See Source."""
        self._inner.learn(pool)

    def slices_of(self, start: int, stop: int) -> range:
        """See Source."""
        return self._inner.slices_of(start, stop)

    def digests(self, start: int, stop: int, pool: Executor) -> list[bytes] | None:
        """See Source."""
        return self._inner.digests(start, stop, pool)


class Cropped(Changed):
    """The voxels inside a box."""

    def __init__(self, inner: Source, box: Box) -> None:
        super().__init__(inner)
        if box.empty:
            raise SourceError(
                f"The crop leaves no voxel of {inner.url}, whose shape is {inner.shape_zyx} (z, y, x): it begins at "
                f"{box.start} and ends before {box.stop}."
            )
        self._box, self.shape_zyx = box, box.shape
        self.names = inner.names[box.start[0] : box.stop[0]]
        self.missing = tuple(k - box.start[0] for k in inner.missing if box.start[0] <= k < box.stop[0])

    def read(self, box: Box, pool: Executor) -> tuple[Voxels, list[bytes] | None]:
        """See Source."""
        return self._inner.read(box.shifted(self._box.start), pool)

    def rows(self, box: Box, pool: Executor) -> Voxels:
        """See Source."""
        return self._inner.rows(box.shifted(self._box.start), pool)

    def digests(self, start: int, stop: int, pool: Executor) -> list[bytes] | None:
        """See Source."""
        first = self._box.start[0]
        return self._inner.digests(first + start, first + stop, pool)


class Windowed(Changed):
    """Eight bits: a window of intensities, mapped linearly and rounded half up; what lies outside is 0 or 255."""

    def __init__(self, inner: Source, window: tuple[float, float]) -> None:
        super().__init__(inner)
        low, high = window
        if not low < high:
            raise SourceError(f"A window is LOW,HIGH with LOW below HIGH; got {low:g},{high:g}.")
        self._low, self._high = low, high
        self.dtype = np.dtype(np.uint8)
        self._table = None if inner.dtype.kind == "f" else self._mapped(np.arange(1 << 8 * inner.dtype.itemsize))

    def _mapped(self, voxels: npt.NDArray[Any]) -> Voxels:
        share = (voxels.astype(np.float64) - self._low) / (self._high - self._low)
        return np.floor(np.clip(share, 0, 1) * 255 + 0.5).astype(np.uint8)

    def _window(self, voxels: Voxels, pool: Executor) -> Voxels:
        mapped = np.empty(voxels.shape, np.uint8)

        def fill(k: int) -> None:
            mapped[k] = self._mapped(voxels[k]) if self._table is None else self._table[voxels[k]]

        list(pool.map(fill, range(len(voxels))))
        return mapped

    def read(self, box: Box, pool: Executor) -> tuple[Voxels, list[bytes] | None]:
        """See Source."""
        voxels, digests = self._inner.read(box, pool)
        return self._window(voxels, pool), digests

    def rows(self, box: Box, pool: Executor) -> Voxels:
        """See Source."""
        return self._window(self._inner.rows(box, pool), pool)


class Resampled(Changed):
    """Cubic voxels of another size: trilinear interpolation, over a window as wide as the larger voxel.

    Where voxels become coarser, the triangle of the interpolation is as much wider, which is the low-pass that keeps
    finer structure from folding into what is stored. Slices at the border of two slabs are decoded for both.
    """

    def __init__(self, inner: Source, voxel_size_um: Spacing, target_um: float) -> None:
        super().__init__(inner)
        self.factors = [target_um / v for v in voxel_size_um]
        self.shape_zyx = index3([max(1, int(n / f + 0.5)) for n, f in zip(inner.shape_zyx, self.factors, strict=True)])
        self.cuts_rows = False

    @cached_property
    def _weights(self) -> tuple[AxisWeights, AxisWeights, AxisWeights]:
        z, y, x = (
            AxisWeights.of(n, m, f) for n, m, f in zip(self._inner.shape_zyx, self.shape_zyx, self.factors, strict=True)
        )
        return z, y, x

    def slices_of(self, start: int, stop: int) -> range:
        """See Source: those whose centres lie in the planes."""
        return range(self._first(start), self._first(stop))

    def _first(self, plane: int) -> int:
        count = self._inner.shape_zyx[0]
        return count if plane >= self.shape_zyx[0] else min(count, int(plane * self.factors[0] + 0.5))

    def read(self, box: Box, pool: Executor) -> tuple[Voxels, list[bytes] | None]:
        """See Source."""
        along, down, across = self._weights
        start, stop = box.start[0], box.stop[0]
        owned = self.slices_of(start, stop)
        first = min(along.first[start], owned.start)
        last = max(along.first[stop - 1] + along.counts[stop - 1], owned.stop)
        digests: list[bytes] = []
        total = np.zeros((stop - start, *self.shape_zyx[1:]), np.float32)
        for a, b in runs(last - first, PLANES_AT_ONCE):
            part = Box((first + a, 0, 0), (first + b, *self._inner.shape_zyx[1:]))
            voxels, found = self._inner.read(part, pool)
            digests += [d for k, d in zip(range(first + a, first + b), found or [], strict=False) if k in owned]
            planes = list(pool.map(lambda plane: resample_plane(plane, down, across), voxels))

            def gather(k: int, first: int = first + a, planes: list[Voxels] = planes) -> None:
                for j, weight in along.of_output(start + k):
                    if first <= j < first + len(planes):
                        total[k] += weight * planes[j - first]

            list(pool.map(gather, range(stop - start)))
        rows, columns = (slice(a, b) for a, b in zip(box.start[1:], box.stop[1:], strict=True))
        return self._rounded(total[:, rows, columns]), digests or None

    def _rounded(self, values: npt.NDArray[np.float32]) -> Voxels:
        return values if self.dtype.kind == "f" else np.floor(values + np.float32(0.5)).astype(self.dtype)
