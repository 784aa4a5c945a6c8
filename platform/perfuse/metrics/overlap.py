"""Counts of voxels that two masks share, and the scores derived from them."""

from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from perfuse.errors import ShapeMismatchError

NOTHING = np.empty((0, 0, 0), np.uint8)
"""For a kernel: the mask that limits nothing."""


@dataclass(frozen=True)
class ConfusionCounts:
    """Voxels by truth and prediction; counts of disjoint blocks add. Scores without a denominator are NaN."""

    true_positive: int = 0
    false_positive: int = 0
    false_negative: int = 0
    true_negative: int = 0

    def __add__(self, other: "ConfusionCounts") -> "ConfusionCounts":
        return ConfusionCounts(
            self.true_positive + other.true_positive,
            self.false_positive + other.false_positive,
            self.false_negative + other.false_negative,
            self.true_negative + other.true_negative,
        )

    @classmethod
    def of_planes(cls, planes: npt.NDArray[np.int64]) -> "ConfusionCounts":
        """The sum of what `plane_counts` counted."""
        return cls(*(int(n) for n in planes.sum(0)))

    @property
    def truth(self) -> int:
        """Voxels that are vessel."""
        return self.true_positive + self.false_negative

    @property
    def predicted(self) -> int:
        """Voxels that were predicted to be vessel."""
        return self.true_positive + self.false_positive

    @property
    def precision(self) -> float:
        """Share of the predicted voxels that are vessel; NaN when nothing was predicted."""
        return _ratio(self.true_positive, self.predicted)

    @property
    def recall(self) -> float:
        """Share of the vessel voxels that were found; NaN when there is no vessel."""
        return _ratio(self.true_positive, self.truth)

    @property
    def dice(self) -> float:
        """2 |A ∩ B| / (|A| + |B|); NaN when both masks are empty."""
        return self.fbeta(1.0)

    @property
    def iou(self) -> float:
        """|A ∩ B| / |A ∪ B|; NaN when both masks are empty."""
        return _ratio(self.true_positive, self.true_positive + self.false_positive + self.false_negative)

    def fbeta(self, beta: float) -> float:
        """(1 + β²) TP / ((1 + β²) TP + β² FN + FP); NaN when both masks are empty."""
        weight = beta * beta
        hit = (1 + weight) * self.true_positive
        return _ratio(hit, hit + weight * self.false_negative + self.false_positive)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")


def confusion_counts(
    truth: npt.NDArray[np.bool_], predicted: npt.NDArray[np.bool_], known: npt.NDArray[np.bool_] | None = None
) -> ConfusionCounts:
    """Count a block's voxels; all arrays bool of one shape. Voxels where `known` is False do not count at all.

    Raises ShapeMismatchError when the shapes differ.
    """
    return ConfusionCounts.of_planes(plane_counts(truth, predicted, known))


def plane_counts(
    truth: npt.NDArray[np.bool_], predicted: npt.NDArray[np.bool_], known: npt.NDArray[np.bool_] | None = None
) -> npt.NDArray[np.int64]:
    """The same, plane by plane: int64[z, 4] of true positives, false positives, false negatives and true negatives."""
    check_shapes(truth, predicted, known)
    masks = truth.view(np.uint8), predicted.view(np.uint8), NOTHING if known is None else known.view(np.uint8)
    both, marked, found, counted = _of_planes(*masks).T
    return np.stack([both, found - both, marked - both, counted - marked - found + both], 1)


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _of_planes(truth: Any, predicted: Any, known: Any) -> Any:
    """Voxels of each plane in both masks, in one, in the other, and known: int64[z, 4]. known: of no voxels where all are."""
    depth, rows, width = truth.shape
    counts = np.zeros((depth, 4), np.int64)
    for z in range(depth):
        for y in range(rows):
            both = marked = found = counted = np.uint32(0)
            one, other = truth[z, y], predicted[z, y]
            if known.size:
                mask = known[z, y]
                for x in range(width):
                    a, b = one[x] & mask[x], other[x] & mask[x]
                    both = np.uint32(both + (a & b))
                    marked, found = np.uint32(marked + a), np.uint32(found + b)
                    counted = np.uint32(counted + mask[x])
            else:
                counted = np.uint32(width)
                for x in range(width):
                    both = np.uint32(both + (one[x] & other[x]))
                    marked, found = np.uint32(marked + one[x]), np.uint32(found + other[x])
            counts[z] += np.array([both, marked, found, counted])
    return counts


def check_shapes(*arrays: npt.NDArray[np.generic] | None) -> None:
    """Raise ShapeMismatchError when arrays differ in shape; None is passed over."""
    shapes = {a.shape for a in arrays if a is not None}
    if len(shapes) > 1:
        raise ShapeMismatchError(f"Masks must have one shape; got {' and '.join(map(str, sorted(shapes)))}.")


def mask_bytes(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    """A mask as contiguous zeros and ones, for a kernel that indexes by them. TypeError for other dtypes."""
    return mask.astype(np.bool_, order="C", casting="safe", copy=False).view(np.uint8)
