"""Scores of predictions stored in scans: exact, block by block, in flat memory."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from perfuse.baseline import Baseline, baseline
from perfuse.catalog import LabelInfo, Scan
from perfuse.counting import NO, YES, Part, Tally, at_least, counted_mask, tally, threshold_or_own, truth_mask
from perfuse.errors import ScanError
from perfuse.geometry import Box, Index3
from perfuse.metrics import (
    ConfusionCounts,
    Curve,
    CurveCounts,
    NearCounts,
    curve_counts,
    near_counts,
    read_cubes,
    tolerance,
)
from perfuse.passes import Arrays, cut, over_blocks, over_cubes
from perfuse.storage import digest_json

BETA = 0.5
NAN = float("nan")


@dataclass(frozen=True)
class Evaluation:
    """Scores of one prediction against one truth. Against sparse truth, what would need all vessels is NaN."""

    scan: str
    scan_url: str
    prediction: str
    truth: str
    truth_kind: str
    """dense or sparse: given by people; soft: made by a model."""
    data_digest: str
    """Identity of the voxels and the truth: scores are comparable when it is equal."""
    model: str
    class_name: str
    """Which of the model's classes; empty for an only one."""
    threshold: float
    dice: float
    iou: float
    precision: float
    recall: float
    fbeta: float
    """β = 0.5: precision counts more."""
    surface_dice: float
    """At tolerance 0 and unit spacing."""
    truth_voxels: int
    predicted_voxels: int
    dice_bounds: tuple[float, float]
    """Equal to `dice` twice where the truth is dense; else what is possible under the stated coverage."""
    precision_bounds: tuple[float, float]
    baseline: Baseline


def data_digest(scan: Scan, truth: LabelInfo, within: tuple[Index3, Index3] | None = None) -> str:
    """Identity of what a prediction is scored on: voxels, truth, and the organ and box outside of which nothing is counted."""
    return digest_json([scan.info.digest, truth.digest, *scan.organ_identity, *(within or ())])


def box_that_cuts(scan: Scan, prediction: LabelInfo, truth: LabelInfo) -> tuple[Index3, Index3] | None:
    """The box of a prediction that leaves out some of where the truth was given; None where it holds all of that."""
    given = Box(*truth.box) if truth.box else Box.whole(scan.shape_zyx)
    whole = prediction.box is None or Box(*prediction.box).intersect(given) == given
    return None if whole else prediction.box


def evaluate(scan: Scan, prediction: str, truth: str, threshold: int | None = None) -> Evaluation:
    """Score a soft prediction at a threshold: an integer of 255, by default that of the bundle that made it.

    Raises ScanError for missing labels, or when no threshold is given and none is known.
    """
    return score(scan, prediction, truth, count(scan, prediction, truth, threshold), threshold)


def count(
    scan: Scan,
    prediction: str,
    truth: str,
    threshold: int | None = None,
    width: tuple[int, int] | None = None,
    each: Part | None = None,
) -> Tally:
    """What `score` is derived from; width, each: as for `tally`, when parts of the scan are looked at."""
    scan.label_info(truth)
    return tally(scan, (truth, prediction), at_least(scan, prediction, threshold), width, each)


def score(scan: Scan, prediction: str, truth: str, counts: Tally, threshold: int | None = None) -> Evaluation:
    """The scores of what `count` counted, at the same threshold, and the baseline."""
    info, known = scan.label_info(prediction), scan.label_info(truth)
    voxels, dense = counts.voxels, known.kind != "sparse"
    unsaid = 0 if dense else _unsaid(scan, truth, prediction, threshold)
    dice_bounds, precision_bounds = _bounds(voxels, 1.0 if dense else known.coverage, unsaid)
    return Evaluation(
        scan=scan.info.id,
        scan_url=scan.url,
        prediction=prediction,
        truth=truth,
        truth_kind=known.kind,
        data_digest=data_digest(scan, known, box_that_cuts(scan, info, known)),
        model=info.model.uri if info.model else "",
        class_name=info.model.class_name if info.model else "",
        threshold=threshold_or_own(info, threshold) / 255,
        dice=voxels.dice if dense else NAN,
        iou=voxels.iou if dense else NAN,
        precision=voxels.precision if dense else NAN,
        recall=voxels.recall,
        fbeta=voxels.fbeta(BETA) if dense else NAN,
        surface_dice=counts.surface.surface_dice if dense else NAN,
        truth_voxels=voxels.truth,
        predicted_voxels=voxels.predicted,
        dice_bounds=dice_bounds,
        precision_bounds=precision_bounds,
        baseline=baseline(scan, (truth, prediction)) if dense else Baseline("none: the truth is sparse", NAN, NAN),
    )


def surface_dice_within(
    scan: Scan, prediction: str, truth: str, tolerance_um: float, threshold: int | None = None
) -> float:
    """Surface dice at a tolerance in µm, with the scan's voxel size as spacing; NaN where neither mask has a surface.

    threshold: as for `evaluate`. Raises ScanError for missing labels, and for truth that is sparse.
    """
    predicted, spacing, shape = (
        at_least(scan, prediction, threshold),
        scan.info.voxel_size_um,
        scan.shape_zyx,
    )
    check_surface(scan, truth)
    around = tolerance.reach(tolerance_um, spacing)

    def near(owned: Box) -> NearCounts:
        box = owned.grown(around).intersect(Box.whole(shape))
        own = owned.relative_to(box.start).slices
        z, y, x = (slice(s.start, s.stop + (b == n)) for s, b, n in zip(own, owned.stop, shape, strict=True))
        return near_counts(
            read_cubes(partial(truth_mask, scan, truth), box, shape),
            read_cubes(predicted, box, shape),
            read_cubes(partial(counted_mask, scan, (truth, prediction)), box, shape, outside=1),
            (z, y, x),
            tolerance_um,
            spacing,
        )

    return sum(over_blocks(cut(shape), f"surface of {scan.info.id}", near), NearCounts()).surface_dice(spacing)


def tune(scans: Sequence[Scan], prediction: str, truth: str, within: Sequence[Box] = ()) -> Curve:
    """Scores at all 255 thresholds, the counts of all scans added; see `counts_by_scan`."""
    return sum(counts_by_scan(scans, prediction, truth, within), CurveCounts()).curve()


def counts_by_scan(scans: Sequence[Scan], prediction: str, truth: str, within: Sequence[Box] = ()) -> list[CurveCounts]:
    """What all 255 thresholds count in each scan. Truth must be dense.

    within: for each scan the box outside which nothing counts; empty: all counts.
    """
    found = []
    for scan, extent in zip(scans, within or [Box.whole(scan.shape_zyx) for scan in scans], strict=True):
        check_dense(scan, truth)
        (counts,) = curves(scan, (truth, prediction), 1, partial(_values, scan, prediction), extent)
        found.append(counts)
    return found


def _values(scan: Scan, prediction: str, box: Box) -> Arrays:
    return (scan.read_label(prediction, box),)


def check_dense(scan: Scan, truth: str, wanted: str = "threshold can be chosen") -> None:
    """ScanError unless all vessels are marked, so that what is wanted can be."""
    if scan.label_info(truth).kind == "sparse":
        raise ScanError(f"Label {truth!r} of {scan.url} is sparse: no {wanted} by it. Use a dense one.")


def check_surface(scan: Scan, truth: str) -> None:
    """ScanError unless all vessels are marked, so that surface dice can be told."""
    check_dense(scan, truth, "surface dice can be told")


def curves(
    scan: Scan, labels: Sequence[str], number: int, values: Callable[[Box], Arrays], extent: Box | None = None
) -> list[CurveCounts]:
    """What all 255 thresholds count of so many predictions, in one pass. values: each one's uint8[z, y, x] of a block.

    labels: the truth, then others; what counts is where all of them were given, inside the extent.
    """
    shape = scan.shape_zyx
    whole = extent or Box.whole(shape)

    def read(box: Box, into: Arrays) -> None:
        into[0][...] = truth_mask(scan, labels[0], box)
        into[1][...] = counted_mask(scan, labels, box) & _inside(whole, box)
        for place, predicted in zip(into[2:], values(box), strict=True):
            place[...] = predicted

    def work(box: Box, arrays: Arrays) -> list[CurveCounts]:
        z, y, x = (int(b == n) for b, n in zip(box.stop, shape, strict=True))
        marked, counted, *predicted = arrays
        return [curve_counts(marked, each, tail_zyx=(z, y, x), known=counted) for each in predicted]

    total = [CurveCounts()] * number
    outside = (NO, YES, *[np.uint8(0)] * number)
    for counts in over_cubes(cut(shape), shape, f"tune {scan.info.id}", read, outside, work):
        total = [a + b for a, b in zip(total, counts, strict=True)]
    return total


def _inside(extent: Box, box: Box) -> npt.NDArray[np.bool_]:
    inside = np.zeros(box.shape, np.bool_)
    common = extent.intersect(box)
    if not common.empty:
        inside[common.relative_to(box.start).slices] = True
    return inside


def _unsaid(scan: Scan, truth: str, prediction: str, threshold: int | None) -> int:
    """Predicted voxels of which the truth says nothing, though it was given there: unmarked ones of sparse boxes."""
    predicted = at_least(scan, prediction, threshold)

    def count(box: Box) -> int:
        return int(
            np.count_nonzero(
                predicted(box) & counted_mask(scan, (truth, prediction), box) & ~scan.read_known(truth, box)
            )
        )

    return sum(over_blocks(cut(scan.shape_zyx), f"bounds {scan.info.id}", count))


def _bounds(voxels: ConfusionCounts, coverage: float, unsaid: int) -> tuple[tuple[float, float], tuple[float, float]]:
    """Dice and precision, lowest and highest, when the truth marks only `coverage` of the vessels.

    unsaid: predicted voxels that may be vessels which are not marked.
    """
    hidden = voxels.truth * (1 - coverage) / coverage
    extra = min(unsaid, hidden)
    whole = voxels.predicted + voxels.truth + hidden
    if not voxels.predicted or not whole:
        return (NAN, NAN), (NAN, NAN)
    low, high = voxels.true_positive, voxels.true_positive + extra
    return (2 * low / whole, 2 * high / whole), (low / voxels.predicted, high / voxels.predicted)
