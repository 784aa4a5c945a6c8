"""clDice: how much of each mask's centreline the other mask holds."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from perfuse.metrics.overlap import check_shapes

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class CentrelineCounts:
    """Voxels of centrelines; those of disjoint blocks add. Scores without a denominator are NaN."""

    truth: int = 0
    truth_found: int = 0
    """Of the truth's, those that the prediction holds."""
    predicted: int = 0
    predicted_right: int = 0
    """Of the prediction's, those that the truth holds."""

    def __add__(self, other: "CentrelineCounts") -> "CentrelineCounts":
        return CentrelineCounts(
            self.truth + other.truth,
            self.truth_found + other.truth_found,
            self.predicted + other.predicted,
            self.predicted_right + other.predicted_right,
        )

    @property
    def precision(self) -> float:
        """Share of the prediction's centreline that lies in the truth."""
        return self.predicted_right / self.predicted if self.predicted else float("nan")

    @property
    def sensitivity(self) -> float:
        """Share of the truth's centreline that lies in the prediction."""
        return self.truth_found / self.truth if self.truth else float("nan")

    @property
    def cldice(self) -> float:
        """The harmonic mean of both; 0 when one mask alone has a centreline, NaN when neither has."""
        if not (self.truth and self.predicted):
            return 0.0 if self.truth or self.predicted else float("nan")
        both = self.precision + self.sensitivity
        return 2 * self.precision * self.sensitivity / both if both else 0.0


def centreline_counts(truth: Mask, predicted: Mask, known: Mask, owned: tuple[slice, slice, slice]) -> CentrelineCounts:
    """Count the voxels of the centrelines inside a part of a block; the rest of the block is there to thin them rightly.

    truth, predicted, known: bool[z, y, x]; voxels that are not known shape centrelines, but do not count. Raises
    ShapeMismatchError when the shapes differ.
    After Shit et al. 2021, "clDice – a novel topology-preserving loss function for tubular structure segmentation"; the
    centreline is the skeleton of Lee et al. 1994, "Building skeleton models via 3-D medial surface/axis thinning algorithms".
    """
    check_shapes(truth, predicted, known)
    counted = known[owned]
    (of_truth, found), (of_predicted, right) = (
        _counts(mask, other, owned, counted) for mask, other in ((truth, predicted), (predicted, truth))
    )
    return CentrelineCounts(of_truth, found, of_predicted, right)


def _counts(mask: Mask, other: Mask, owned: tuple[slice, slice, slice], counted: Mask) -> tuple[int, int]:
    from skimage.morphology import skeletonize

    if not (mask[owned] & counted).any():
        return 0, 0
    centreline = skeletonize(mask, method="lee")[owned].astype(np.bool_) & counted
    return int(np.count_nonzero(centreline)), int(np.count_nonzero(centreline & other[owned]))
