"""Exact statistics of intensities: 65,536 bins for 16 bits, 256 for 8; floats by the upper half of their bits.

A float32's sign and upper fifteen bits, ordered, are its bin: 128 bins an octave, so that a percentile is exact to 1 %.
"""

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from perfuse.errors import SourceError

Counts = npt.NDArray[np.int64]
PERCENTS = (0.5, 1.0, 5.0, 50.0, 95.0, 99.0, 99.5)
DTYPES = ("uint8", "uint16", "float32")
"""What an image may hold."""


def bins(dtype: np.dtype[Any]) -> int:
    """How many bins a histogram of this dtype has."""
    return 256 if dtype.itemsize == 1 else 65536


def bin_of(voxels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The bin of each voxel, as unsigned integers: of integers the value itself."""
    if voxels.dtype.kind != "f":
        return voxels
    upper = voxels.view(np.uint16)[..., 1::2]
    return np.where(upper & 0x8000, ~upper, upper | 0x8000).astype(np.uint16)


def values_of_bins(dtype: np.dtype[Any]) -> npt.NDArray[np.float64]:
    """The lowest intensity of each bin: float64[bins]; bins that hold no finite float are NaN."""
    numbers = np.arange(bins(dtype), dtype=np.uint32)
    if dtype.kind != "f":
        return numbers.astype(np.float64)
    upper = np.where(numbers & 0x8000, numbers & 0x7FFF, ~numbers & 0xFFFF).astype(np.uint32)
    lowest = (upper << 16) | np.where(upper & 0x8000, np.uint32(0xFFFF), np.uint32(0))
    values = lowest.astype(np.uint32).view(np.float32)
    return np.where(np.isfinite(values), values, np.float32(np.nan)).astype(np.float64)


def measure(voxels: npt.NDArray[Any], chunk_columns: int) -> tuple[Counts, npt.NDArray[Any]]:
    """Counts and extremes of a band: [z, y, x], one chunk thick and high, each plane of it in one piece.

    Returns counts int64[bins], and the lowest and highest value of each chunk [chunks, 2]. Raises SourceError for
    floats that are not finite.
    """
    low, high = voxels[0].copy(), voxels[0].copy()
    for plane in voxels[1:]:
        np.minimum(low, plane, out=low)
        np.maximum(high, plane, out=high)
    cuts = np.arange(0, voxels.shape[2], chunk_columns)
    extremes = [np.minimum.reduceat(low.min(axis=0), cuts), np.maximum.reduceat(high.max(axis=0), cuts)]
    if not np.isfinite(extremes).all():
        raise SourceError("An intensity is not a finite number.")
    counts = np.zeros((2, bins(voxels.dtype)), np.uint32)
    for plane in voxels:
        _count(bin_of(plane).ravel(), counts)
    return counts.sum(axis=0, dtype=np.int64), np.stack(extremes, axis=-1)


def _count(numbers: npt.NDArray[Any], counts: npt.NDArray[np.uint32]) -> None:
    """Add up how often each number stands in a row of uint8 or uint16; most of it is read eight bytes at a time."""
    first = min(-numbers.ctypes.data % 8 // numbers.itemsize, len(numbers))
    last = first + (len(numbers) - first) * numbers.itemsize // 8 * 8 // numbers.itemsize
    for rest in (numbers[:first], numbers[last:]):
        np.add.at(counts[0], rest, 1)
    (_count_bytes if numbers.itemsize == 1 else _count_words)(numbers[first:last].view(np.uint64), counts)


@numba.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _count_words(words: npt.NDArray[np.uint64], counts: npt.NDArray[np.uint32]) -> None:
    """Four numbers a word, into two tables by turns: neighbours are often equal, and would wait for one another."""
    even, odd, mask = counts[0], counts[1], np.uint64(0xFFFF)
    for word in words:
        even[word & mask] += np.uint32(1)
        odd[word >> np.uint64(16) & mask] += np.uint32(1)
        even[word >> np.uint64(32) & mask] += np.uint32(1)
        odd[word >> np.uint64(48)] += np.uint32(1)


@numba.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _count_bytes(words: npt.NDArray[np.uint64], counts: npt.NDArray[np.uint32]) -> None:
    even, odd, mask = counts[0], counts[1], np.uint64(0xFF)
    for word in words:
        for shift in range(0, 64, 16):
            even[word >> np.uint64(shift) & mask] += np.uint32(1)
            odd[word >> np.uint64(shift + 8) & mask] += np.uint32(1)


def summary(counts: Counts, dtype: np.dtype[Any]) -> dict[str, float]:
    """Lowest, highest, mean and percentiles from a histogram: exact for integers, to 1 % for floats."""
    used, total, values = np.flatnonzero(counts), np.cumsum(counts), values_of_bins(dtype)
    return {
        "min": float(values[used[0]]),
        "max": float(values[used[-1]]),
        "mean": float(counts[used] @ values[used] / total[-1]),
        **{f"p{p:g}": percentile(counts, dtype, p) for p in PERCENTS},
    }


def percentile(counts: Counts, dtype: np.dtype[Any], percent: float) -> float:
    """The intensity below or at which `percent` % of what was counted lies."""
    total = np.cumsum(counts)
    return float(values_of_bins(dtype)[np.searchsorted(total, percent / 100 * total[-1])])
