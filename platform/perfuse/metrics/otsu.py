"""The classical baseline: Otsu's thresholds, from a histogram.

After Otsu 1979, "A threshold selection method from gray-level histograms", and Liao, Chen and Chung 2001, "A fast algorithm for
multilevel thresholding".
"""

import numpy as np
import numpy.typing as npt

from perfuse.errors import ScanError

BINS = 256
"""Bins of the occupied range over which three classes are searched."""


def otsu_threshold(histogram: npt.NDArray[np.int64]) -> int:
    """The last intensity of the lower class, of two that are farthest apart. Voxels above it are the upper class.

    histogram: counts per intensity. ScanError when fewer than two intensities occur.
    """
    _check(histogram)
    weight, moment = np.cumsum(histogram, dtype=float), np.cumsum(histogram * np.arange(len(histogram)), dtype=float)
    below, above = weight[:-1], weight[-1] - weight[:-1]
    with np.errstate(divide="ignore", invalid="ignore"):
        apart = below * above * (moment[:-1] / below - (moment[-1] - moment[:-1]) / above) ** 2
    return int(np.nanargmax(apart))


def otsu_upper_of_three(histogram: npt.NDArray[np.int64]) -> int:
    """The last intensity of the middle class, of three that are farthest apart; exact to 1/256 of the occupied range."""
    _check(histogram)
    used = np.flatnonzero(histogram)
    first, width = int(used[0]), -(-(int(used[-1]) + 1 - int(used[0])) // BINS)
    padded = np.zeros(BINS * width, np.int64)
    part = histogram[first : first + BINS * width]
    padded[: len(part)] = part
    counts = padded.reshape(BINS, width).sum(1)
    weight = np.concatenate([[0], np.cumsum(counts)]).astype(float)
    moment = np.concatenate([[0], np.cumsum(counts * np.arange(BINS))]).astype(float)
    _, upper = np.unravel_index(np.argmax(_spread_of_three(weight, moment)), (BINS + 1, BINS + 1))
    return first + int(upper) * width - 1


def _spread_of_three(weight: npt.NDArray[np.float64], moment: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    low, high = np.triu_indices(BINS + 1)
    spread = np.zeros((BINS + 1, BINS + 1))
    with np.errstate(divide="ignore", invalid="ignore"):
        spread[low, high] = np.nan_to_num((moment[high] - moment[low]) ** 2 / (weight[high] - weight[low]))
    total = np.full_like(spread, -1.0)
    total[low, high] = spread[0, low] + spread[low, high] + spread[high, BINS]
    return total


def _check(histogram: npt.NDArray[np.int64]) -> None:
    if np.count_nonzero(histogram) < 2:
        raise ScanError(
            "Otsu's method needs at least two different intensities; the scored voxels hold "
            f"{np.flatnonzero(histogram).tolist() or 'none'}. Check the image, and where the truth is known."
        )
