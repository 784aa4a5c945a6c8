"""Contrast-limited adaptive histogram equalisation of a volume, in three dimensions and slab by slab.

After Pizer et al. 1987, "Adaptive histogram equalization and its variations", and Zuiderveld 1994, "Contrast limited adaptive
histogram equalization". The volume is divided into blocks; each has a curve, the cumulated histogram of the block with its
peaks cut off; a voxel is mapped by the curves of the eight blocks around it, weighted by its distance to their centres. The
curves need a first reading of all slices. Intensities stay in the range that they had.
"""

from concurrent.futures import Executor
from functools import partial
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from perfuse import intensity
from perfuse.console import progress
from perfuse.geometry import Box, Index3, index3, runs
from perfuse_ingest.sources.source import Source, Voxels
from perfuse_ingest.transforms import Changed

BINS = 256
BLOCKS = 8
"""Along each axis, as far as a block has at least SMALLEST voxels there."""
SMALLEST = 32
CLIP = 0.01
"""Largest share of a block's voxels that one bin counts for."""
PLANES_AT_ONCE = 16

Curves = npt.NDArray[np.float32]


class Equalised(Changed):
    """A source after the equalisation; before `learn`, as it was."""

    def __init__(self, inner: Source) -> None:
        super().__init__(inner)
        self.cuts_rows = False
        self._grid = index3([max(1, min(BLOCKS, n // SMALLEST)) for n in inner.shape_zyx])
        self.passes += 1
        self._curves: Curves = np.tile(np.linspace(0, 1, BINS + 1, dtype=np.float32), (*self._grid, 1))
        self._range = (
            0.0,
            float(np.finfo(np.float32).max) if self.dtype.kind == "f" else float(np.iinfo(self.dtype).max),
        )

    def learn(self, pool: Executor) -> None:
        """See Source: all slices, for the curves."""
        super().learn(pool)
        counts = np.zeros((*self._grid, intensity.bins(self.dtype)), np.uint32)
        depth = self.shape_zyx[0]
        with progress("equalisation, slices", depth) as advance:
            for start, stop in runs(depth, PLANES_AT_ONCE):
                voxels, _ = self._inner.read(Box((start, 0, 0), (stop, *self.shape_zyx[1:])), pool)
                blocks = _edges(self.shape_zyx, self._grid)
                list(
                    pool.map(partial(_count_row, counts, intensity.bin_of(voxels), blocks, start), range(self._grid[1]))
                )
                advance(stop - start)
        values = intensity.values_of_bins(self.dtype)
        used = values[counts.any(axis=(0, 1, 2))]
        self._range = float(used[0]), float(used[-1])
        self._curves = _curves(counts, values, self._range)

    def read(self, box: Box, pool: Executor) -> tuple[Voxels, list[bytes] | None]:
        """See Source."""
        voxels, digests = self._inner.read(box, pool)
        out = np.empty_like(voxels)
        low, high = self._range
        curves, half = self._curves, 0.0 if self.dtype.kind == "f" else 0.5
        args = (curves, np.array(box.start), np.array(self.shape_zyx), low, high, half)
        list(pool.map(lambda k: _equalise(voxels[k : k + 1], out[k : k + 1], k, *args), range(len(voxels))))
        return out, digests


def _edges(shape_zyx: Index3, grid: Index3) -> list[npt.NDArray[np.int64]]:
    return [np.linspace(0, n, g + 1).astype(np.int64) for n, g in zip(shape_zyx, grid, strict=True)]


def _count_row(
    counts: npt.NDArray[np.uint32], bins: npt.NDArray[Any], edges: list[npt.NDArray[np.int64]], first: int, j: int
) -> None:
    """Add slices from `first` on to the blocks of one row of the grid."""
    (z, y, x), size = edges, counts.shape[-1]
    for k in range(len(bins)):
        i = int(np.searchsorted(z, first + k, side="right")) - 1
        for m in range(len(x) - 1):
            part = bins[k, y[j] : y[j + 1], x[m] : x[m + 1]]
            counts[i, j, m] += np.bincount(part.ravel(), minlength=size).astype(np.uint32)


def _curves(counts: npt.NDArray[np.uint32], values: npt.NDArray[np.float64], span: tuple[float, float]) -> Curves:
    """[blocks z, y, x, BINS + 1]: the share below each bin's edge, from 0 to 1."""
    low, high = span
    with np.errstate(invalid="ignore", divide="ignore"):
        place = np.nan_to_num((values - low) / (high - low) * BINS)
    bin_of = np.clip(place, 0, BINS - 1).astype(np.int64)
    grid = counts.shape[:3]
    coarse = np.zeros((*grid, BINS))
    for at in np.ndindex(grid):
        coarse[at] = np.bincount(bin_of, weights=counts[at], minlength=BINS)
    total = np.maximum(coarse.sum(axis=-1, keepdims=True), 1)
    share = coarse / total
    cut = np.minimum(share, CLIP)
    cut += (1 - cut.sum(axis=-1, keepdims=True)) / BINS
    edges = np.concatenate([np.zeros((*grid, 1)), np.cumsum(cut, axis=-1)], axis=-1)
    return np.asarray(edges / edges[..., -1:], np.float32)


@numba.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _equalise(
    voxels: Voxels,
    out: Voxels,
    plane: int,
    curves: Curves,
    origin: npt.NDArray[np.int64],
    shape: npt.NDArray[np.int64],
    low: float,
    high: float,
    half: float,
) -> None:
    gz, gy, gx, edges = curves.shape
    scale = (edges - 1) / max(high - low, 1e-30)
    z = (origin[0] + plane + 0.5) / shape[0] * gz - 0.5
    z0 = int(np.floor(z))
    wz = z - z0
    za, zb = min(max(z0, 0), gz - 1), min(max(z0 + 1, 0), gz - 1)
    for y in range(voxels.shape[1]):
        fy = (origin[1] + y + 0.5) / shape[1] * gy - 0.5
        y0 = int(np.floor(fy))
        wy = fy - y0
        ya, yb = min(max(y0, 0), gy - 1), min(max(y0 + 1, 0), gy - 1)
        for x in range(voxels.shape[2]):
            fx = (origin[2] + x + 0.5) / shape[2] * gx - 0.5
            x0 = int(np.floor(fx))
            wx = fx - x0
            xa, xb = min(max(x0, 0), gx - 1), min(max(x0 + 1, 0), gx - 1)
            place = min(max((voxels[0, y, x] - low) * scale, 0.0), edges - 1.0)
            b = min(int(place), edges - 2)
            f = place - b
            total = 0.0
            for kz, a in ((za, 1 - wz), (zb, wz)):
                for ky, c in ((ya, 1 - wy), (yb, wy)):
                    for kx, d in ((xa, 1 - wx), (xb, wx)):
                        curve = curves[kz, ky, kx]
                        total += a * c * d * (curve[b] + f * (curve[b + 1] - curve[b]))
            out[0, y, x] = low + total * (high - low) + half
