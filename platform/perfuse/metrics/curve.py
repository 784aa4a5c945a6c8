"""Dice and surface dice at all 255 thresholds, from one pass over a soft prediction.

A prediction is uint8, p = value / 255; a threshold is an integer v from 1 to 255: p ≥ t means value ≥ v = ⌈255·t⌉. As v grows, a
2×2×2 cube changes its code at most eight times: one entry per change in a difference array serves all thresholds.
"""

from dataclasses import dataclass, field
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from perfuse.metrics.areas import CLASSES, area
from perfuse.metrics.changes import LEVELS, Counts, count_changes
from perfuse.metrics.overlap import check_shapes, mask_bytes

PLATEAU_DROP = 0.01
MIDDLE = 128
"""The threshold p ≥ ½."""
STEADY = [-(-255 * k // 40) - 1 for k in range(1, 40)]
"""Where a curve holds the thresholds 0.025, 0.050 … 0.975, by which 5th place of SenNet + HOA 2023 chose."""

Scores = npt.NDArray[np.float64]


def _changes() -> Counts:
    return np.zeros((3, CLASSES, LEVELS + 1), np.int64)


@dataclass(frozen=True)
class CurveCounts:
    """Counts behind a curve; those of disjoint blocks add, exactly."""

    histogram: Counts = field(default_factory=lambda: np.zeros((2, LEVELS), np.int64))
    """Voxels by truth (0, 1) and predicted value."""
    truth_cubes: Counts = field(default_factory=lambda: np.zeros(CLASSES, np.int64))
    """Surface cubes of the truth per area class."""
    changes: Counts = field(default_factory=_changes)
    """Differences along the threshold, per area class, of predicted surface cubes where the truth has none, of predicted
    surface cubes where the truth has one too, and of the truth's there."""

    def __add__(self, other: "CurveCounts") -> "CurveCounts":
        return CurveCounts(
            self.histogram + other.histogram, self.truth_cubes + other.truth_cubes, self.changes + other.changes
        )

    @property
    def _at_least(self) -> Counts:
        """Voxels by truth (0, 1) whose value reaches each threshold."""
        return np.cumsum(self.histogram[:, ::-1], axis=1)[:, ::-1][:, 1:]

    def fbeta(self, beta: float) -> Scores:
        """(1 + β²) TP / ((1 + β²) TP + β² FN + FP) at each of the thresholds 1 … 255; NaN where both masks are empty."""
        wrong, hit = self._at_least
        return _ratio((1 + beta**2) * hit, hit + wrong + beta**2 * self.histogram[1].sum())

    def curve(self) -> "Curve":
        """The scores at each threshold."""
        thresholds = np.arange(1, LEVELS)
        alone, shared, truth_shared = np.cumsum(self.changes, axis=2)[:, :, 1:LEVELS].transpose(0, 2, 1)
        surface = _ratio(area(shared + truth_shared), area(alone + shared + self.truth_cubes))
        return Curve(thresholds, self.fbeta(1), surface)


def _ratio(part: npt.NDArray[Any], whole: npt.NDArray[Any]) -> Scores:
    scores: Scores = np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)
    return scores


@dataclass(frozen=True)
class Plateau:
    """The run of thresholds around the best whose surface dice lies within 0.01 of it; fractions of 1, both included."""

    low: float
    high: float

    @property
    def width(self) -> float:
        """How far the threshold may move."""
        return self.high - self.low


@dataclass(frozen=True)
class Curve:
    """Scores at the thresholds 1 … 255; NaN where both masks are empty."""

    thresholds: npt.NDArray[np.int64]
    """Integers v: vessel where the predicted value is at least v."""
    dice: Scores
    surface_dice: Scores

    @property
    def best(self) -> int:
        """The threshold of the highest surface dice, the middle of a run of equals; 128 where there is nothing to score."""
        scores = np.nan_to_num(self.surface_dice, nan=-1.0)
        equals = scores == scores.max()
        low, high = _run(equals, int(np.argmax(equals)))
        return int(self.thresholds[(low + high) // 2])

    @property
    def mean_surface_dice(self) -> float:
        """Over the thresholds 0.025, 0.050 … 0.975, none counting as 0: what is reached when nobody finds the best one."""
        return float(np.nan_to_num(self.surface_dice[STEADY]).mean())

    @property
    def plateau(self) -> Plateau:
        """The run of good thresholds that contains the best; of width 0 where there is nothing to score."""
        low, high = self._good
        return Plateau(float(self.thresholds[low]) / 255, float(self.thresholds[high]) / 255)

    @property
    def chosen(self) -> int:
        """The threshold of the plateau that is nearest to ½, which is where the loss puts it for organs not seen yet."""
        low, high = self._good
        return int(np.clip(MIDDLE, self.thresholds[low], self.thresholds[high]))

    @property
    def _good(self) -> tuple[int, int]:
        at = self.best - 1
        return _run(self.surface_dice >= self.surface_dice[at] - PLATEAU_DROP, at)


def _run(good: npt.NDArray[np.bool_], at: int) -> tuple[int, int]:
    """The first and last index of the run of True around `at`."""
    low = high = at
    while low > 0 and good[low - 1]:
        low -= 1
    while high < len(good) - 1 and good[high + 1]:
        high += 1
    return low, high


def curve_counts(
    truth: npt.NDArray[np.bool_],
    predicted: npt.NDArray[np.uint8],
    halo_zyx: tuple[int, int, int] = (1, 1, 1),
    tail_zyx: tuple[int, int, int] = (1, 1, 1),
    known: npt.NDArray[np.bool_] | None = None,
) -> CurveCounts:
    """Count a block as `read_cubes` cuts it.

    truth: bool[z, y, x]; predicted: uint8 of the same shape; known: bool, cubes and voxels that are not known do not count.
    halo_zyx, tail_zyx: voxels before and after that belong to other blocks or to the padding: they shape cubes, but are not
    counted as voxels. Raises ShapeMismatchError when the shapes differ, TypeError for other dtypes.
    """
    check_shapes(truth, predicted, known)
    mask = np.ones(truth.shape, np.bool_) if known is None else known
    values = predicted.astype(np.uint8, order="C", casting="safe", copy=False)
    block = (mask_bytes(truth), values, mask_bytes(mask))
    own = tuple(slice(h, n - t) for h, t, n in zip(halo_zyx, tail_zyx, truth.shape, strict=True))
    return CurveCounts(_histogram(*(a[own] for a in block)), *count_changes(*block))


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _histogram(truth: Any, predicted: Any, known: Any) -> Any:
    counts = np.zeros((2, LEVELS), np.int64)
    depth, rows, width = truth.shape
    for z in range(depth):
        for y in range(rows):
            for x in range(width):
                if known[z, y, x]:
                    counts[truth[z, y, x], predicted[z, y, x]] += 1
    return counts
