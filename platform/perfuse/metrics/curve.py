"""Dice and surface dice at all 255 thresholds, from one pass over a soft prediction.

A prediction is uint8, p = value / 255; a threshold is an integer v from 1 to 255: p ≥ t means value ≥ v = ⌈255·t⌉. As v grows, a
2×2×2 cube changes its code at most eight times: one entry per change in a difference array serves all thresholds.
"""

from dataclasses import dataclass, field
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from perfuse.metrics.areas import CLASS_AREA, CLASSES, CODE_CLASS
from perfuse.metrics.overlap import check_shapes

LEVELS = 256
PLATEAU_DROP = 0.01

Counts = npt.NDArray[np.int64]
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
    """Differences along the threshold, per area class: predicted surface cubes, those shared, the truth's shared."""

    def __add__(self, other: "CurveCounts") -> "CurveCounts":
        return CurveCounts(
            self.histogram + other.histogram, self.truth_cubes + other.truth_cubes, self.changes + other.changes
        )

    def curve(self) -> "Curve":
        """The scores at each threshold."""
        thresholds = np.arange(1, LEVELS)
        at_least = np.cumsum(self.histogram[:, ::-1], axis=1)[:, ::-1][:, 1:]
        dice = _ratio(2 * at_least[1], at_least.sum(0) + self.histogram[1].sum())
        predicted, shared, truth_shared = np.einsum("kct,c->kt", np.cumsum(self.changes, axis=2), CLASS_AREA)[
            :, 1:LEVELS
        ]
        surface = _ratio(shared + truth_shared, predicted + float(self.truth_cubes @ CLASS_AREA))
        return Curve(thresholds, dice, surface)


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
        """The threshold of the highest surface dice; of several, the lowest. 128 where there is nothing to score."""
        if np.isnan(self.surface_dice).all():
            return 128
        return int(self.thresholds[np.nanargmax(self.surface_dice)])

    @property
    def plateau(self) -> Plateau:
        """The run of good thresholds that contains the best."""
        good = (
            np.nan_to_num(self.surface_dice, nan=-1.0) >= np.nan_to_num(self.surface_dice[self.best - 1]) - PLATEAU_DROP
        )
        low = high = self.best - 1
        while low > 0 and good[low - 1]:
            low -= 1
        while high < len(good) - 1 and good[high + 1]:
            high += 1
        return Plateau(float(self.thresholds[low]) / 255, float(self.thresholds[high]) / 255)


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
    counted as voxels. Raises ShapeMismatchError when the shapes differ.
    """
    check_shapes(truth, predicted, known)
    own = tuple(slice(h, n - t) for h, t, n in zip(halo_zyx, tail_zyx, truth.shape, strict=True))
    mask = np.ones(truth.shape, np.bool_) if known is None else known
    counted = mask[own]
    pairs = truth[own][counted].astype(np.intp) * LEVELS + predicted[own][counted]
    histogram = np.bincount(pairs, minlength=2 * LEVELS).reshape(2, LEVELS)
    truth_cubes, changes = _count(
        np.ascontiguousarray(truth).view(np.uint8),
        np.ascontiguousarray(predicted),
        np.ascontiguousarray(mask).view(np.uint8),
        CODE_CLASS,
    )
    return CurveCounts(histogram, truth_cubes, changes)


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _count(truth: Any, predicted: Any, known: Any, code_class: Any) -> Any:
    truth_cubes = np.zeros(14, np.int64)
    changes = np.zeros((3, 14, 257), np.int64)
    values = np.zeros(8, np.int64)
    bits = np.zeros(8, np.int64)
    depth, rows, columns = truth.shape
    for z in range(depth - 1):
        for y in range(rows - 1):
            for x in range(columns - 1):
                code = k = n = 0
                for i in range(2):
                    for j in range(2):
                        for m in range(2):
                            code = 2 * code + truth[z + i, y + j, x + m]
                            k += known[z + i, y + j, x + m]
                            value = predicted[z + i, y + j, x + m]
                            at = n
                            while at > 0 and values[at - 1] > value:
                                values[at] = values[at - 1]
                                bits[at] = bits[at - 1]
                                at -= 1
                            values[at] = value
                            bits[at] = 128 >> n
                            n += 1
                if k < 8:
                    continue
                p = code_class[code]
                if p:
                    truth_cubes[p] += 1
                lit = 255
                for n in range(8):
                    # for thresholds above values[n − 1] up to values[n] the corners `lit` are set
                    low = values[n - 1] + 1 if n else 0
                    q = code_class[lit]
                    if q and values[n] >= low:
                        changes[0, q, low] += 1
                        changes[0, q, values[n] + 1] -= 1
                        if p:
                            changes[1, q, low] += 1
                            changes[1, q, values[n] + 1] -= 1
                            changes[2, p, low] += 1
                            changes[2, p, values[n] + 1] -= 1
                    lit -= bits[n]
    return truth_cubes, changes
