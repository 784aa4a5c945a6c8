"""Scores of predictions stored in scans: exact, block by block, in flat memory."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from perfuse import intensity
from perfuse.catalog import ORGAN, LabelInfo, Scan
from perfuse.console import progress
from perfuse.errors import ScanError
from perfuse.geometry import Box, blocks
from perfuse.metrics import (
    ConfusionCounts,
    Curve,
    CurveCounts,
    NearCounts,
    SurfaceCounts,
    confusion_counts,
    curve_counts,
    near_counts,
    otsu_threshold,
    otsu_upper_of_three,
    read_cubes,
    surface_counts,
    tolerance,
)
from perfuse.parallel import in_order
from perfuse.storage import digest_json

BLOCK = (64, 512, 512)
BETA = 0.5
Part = TypeVar("Part")
NAN = float("nan")


@dataclass(frozen=True)
class Baseline:
    """What a classical global threshold reaches on the same voxels."""

    method: str
    dice: float
    surface_dice: float


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


def data_digest(scan: Scan, truth: LabelInfo) -> str:
    """Identity of what a prediction is scored on: voxels, truth, and the organ, outside of which nothing is counted."""
    return digest_json([scan.info.digest, truth.digest, *scan.organ_identity])


def evaluate(scan: Scan, prediction: str, truth: str, threshold: int | None = None) -> Evaluation:
    """Score a soft prediction at a threshold: an integer of 255, by default that of the bundle that made it.

    Raises ScanError for missing labels, or when no threshold is given and none is known.
    """
    info, known = scan.label_info(prediction), scan.label_info(truth)
    at = threshold if threshold is not None else _own_threshold(info)
    voxels, surface = _counts(scan, truth, lambda box: scan.read_label(prediction, box) >= at)
    dense = known.kind != "sparse"
    unsaid = 0 if dense else _unsaid(scan, truth, lambda box: scan.read_label(prediction, box) >= at)
    dice_bounds, precision_bounds = _bounds(voxels, 1.0 if dense else known.coverage, unsaid)
    return Evaluation(
        scan=scan.info.id,
        scan_url=scan.url,
        prediction=prediction,
        truth=truth,
        truth_kind=known.kind,
        data_digest=data_digest(scan, known),
        model=info.model.uri if info.model else "",
        class_name=info.model.class_name if info.model else "",
        threshold=at / 255,
        dice=voxels.dice if dense else NAN,
        precision=voxels.precision if dense else NAN,
        recall=voxels.recall,
        fbeta=voxels.fbeta(BETA) if dense else NAN,
        surface_dice=surface.surface_dice if dense else NAN,
        truth_voxels=voxels.truth,
        predicted_voxels=voxels.predicted,
        dice_bounds=dice_bounds,
        precision_bounds=precision_bounds,
        baseline=_baseline(scan, truth) if dense else Baseline("none: the truth is sparse", NAN, NAN),
    )


def surface_dice_within(
    scan: Scan, prediction: str, truth: str, tolerance_um: float, threshold: int | None = None
) -> float:
    """Surface dice at a tolerance in µm, with the scan's voxel size as spacing; NaN where neither mask has a surface.

    threshold: as for `evaluate`. Raises ScanError for missing labels, and for truth that is sparse.
    """
    info = scan.label_info(prediction)
    at, spacing, shape = (
        threshold if threshold is not None else _own_threshold(info),
        scan.info.voxel_size_um,
        scan.shape_zyx,
    )
    if scan.label_info(truth).kind == "sparse":
        raise ScanError(f"Label {truth!r} of {scan.url} is sparse: no surface dice can be told by it. Use a dense one.")
    around = tolerance.reach(tolerance_um, spacing)

    def count(owned: Box) -> NearCounts:
        box = owned.grown(around).intersect(Box.whole(shape))
        cut, own = _cutter(scan, box), owned.relative_to(box.start).slices
        z, y, x = (slice(s.start, s.stop + (b == n)) for s, b, n in zip(own, owned.stop, shape, strict=True))
        return near_counts(
            cut(lambda b: _truth(scan, truth, b)),
            cut(lambda b: scan.read_label(prediction, b) >= at),
            cut(lambda b: _known(scan, truth, b), 1),
            (z, y, x),
            tolerance_um,
            spacing,
        )

    return sum(_over(scan, f"surface of {scan.info.id}", count), NearCounts()).surface_dice(spacing)


def tune(scans: Sequence[Scan], prediction: str, truth: str, within: Sequence[Box] = ()) -> Curve:
    """Scores at all 255 thresholds, the counts of all scans added; see `counts_by_scan`."""
    return sum(counts_by_scan(scans, prediction, truth, within), CurveCounts()).curve()


def counts_by_scan(scans: Sequence[Scan], prediction: str, truth: str, within: Sequence[Box] = ()) -> list[CurveCounts]:
    """What all 255 thresholds count in each scan. Truth must be dense.

    within: for each scan the box outside which nothing counts; empty: all counts.
    """
    found = []
    for scan, extent in zip(scans, within or [Box.whole(scan.shape_zyx) for scan in scans], strict=True):
        if scan.label_info(truth).kind == "sparse":
            raise ScanError(
                f"Label {truth!r} of {scan.url} is sparse: no threshold can be chosen by it. Use a dense one."
            )
        parts = _over(scan, f"tune {scan.info.id}", partial(_curve_counts, scan, prediction, truth, extent))
        found.append(sum(parts, CurveCounts()))
    return found


def _curve_counts(scan: Scan, prediction: str, truth: str, extent: Box, box: Box) -> CurveCounts:
    cut = _cutter(scan, box)
    z, y, x = (int(b == n) for b, n in zip(box.stop, scan.shape_zyx, strict=True))
    return curve_counts(
        cut(lambda b: _truth(scan, truth, b)),
        cut(lambda b: scan.read_label(prediction, b)),
        tail_zyx=(z, y, x),
        known=cut(lambda b: _known(scan, truth, b) & _inside(extent, b), 1),
    )


def _inside(extent: Box, box: Box) -> npt.NDArray[np.bool_]:
    inside = np.zeros(box.shape, np.bool_)
    common = extent.intersect(box)
    if not common.empty:
        inside[common.relative_to(box.start).slices] = True
    return inside


def _own_threshold(info: LabelInfo) -> int:
    if info.model is None:
        raise ScanError(f"Label {info.name!r} was made by no model, so it has no threshold. Give one: --threshold 0.5")
    return info.model.threshold


def _over(scan: Scan, what: str, work: Callable[[Box], Part]) -> Iterator[Part]:
    """What `work` makes of each block of a scan, in order, on all cores."""
    cuts = list(blocks(scan.shape_zyx, BLOCK))
    with progress(what, len(cuts)) as advance:
        for part in in_order(work, cuts):
            yield part
            advance()


def _cutter(scan: Scan, box: Box) -> Callable[..., npt.NDArray[Any]]:
    return lambda read, outside=0: read_cubes(read, box, scan.shape_zyx, outside)


def _truth(scan: Scan, truth: str, box: Box) -> npt.NDArray[np.bool_]:
    return scan.read_label(truth, box) >= np.uint8(128)


def _known(scan: Scan, truth: str, box: Box) -> npt.NDArray[np.bool_]:
    """Where scores are counted: where the label was given, sparse or not, and inside the organ if that is marked."""
    return scan.read_given(truth, box) & _organ(scan, box)


def _organ(scan: Scan, box: Box) -> npt.NDArray[np.bool_]:
    if ORGAN not in scan.labels():
        return np.ones(box.shape, np.bool_)
    return scan.read_label(ORGAN, box) >= np.uint8(128)


def _counts(
    scan: Scan, truth: str, predicted: Callable[[Box], npt.NDArray[np.bool_]]
) -> tuple[ConfusionCounts, SurfaceCounts]:
    def count(box: Box) -> tuple[ConfusionCounts, SurfaceCounts]:
        cut = _cutter(scan, box)
        arrays = [cut(lambda b: _truth(scan, truth, b)), cut(predicted), cut(lambda b: _known(scan, truth, b), 1)]
        own = tuple(slice(1, 1 + n) for n in box.shape)
        return confusion_counts(*(a[own] for a in arrays)), surface_counts(*arrays)

    voxels, surface = ConfusionCounts(), SurfaceCounts()
    for of_voxels, of_surface in _over(scan, f"score {scan.info.id}", count):
        voxels += of_voxels
        surface += of_surface
    return voxels, surface


def _unsaid(scan: Scan, truth: str, predicted: Callable[[Box], npt.NDArray[np.bool_]]) -> int:
    """Predicted voxels of which the truth says nothing, though it was given there: unmarked ones of sparse boxes."""

    def count(box: Box) -> int:
        return int(np.count_nonzero(predicted(box) & _known(scan, truth, box) & ~scan.read_known(truth, box)))

    return sum(_over(scan, f"bounds {scan.info.id}", count))


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


def _baseline(scan: Scan, truth: str) -> Baseline:
    """Otsu's threshold, of two or of the outer of three classes, bright or dark: whichever has the highest Dice."""
    bins = intensity.bins(np.dtype(scan.info.dtype))

    def count(box: Box) -> npt.NDArray[np.int64]:
        image, known, marked = scan.read_image(box), _known(scan, truth, box), _truth(scan, truth, box)
        return np.stack([np.bincount(image[known & (marked == value)], minlength=bins) for value in (False, True)])

    counts = np.zeros((2, bins), np.int64)
    for part in _over(scan, f"baseline {scan.info.id}", count):
        counts += part
    candidates = _candidates(counts.sum(0))
    best, at, bright = max(candidates, key=lambda c: np.nan_to_num(_threshold_dice(counts, c[1], bright=c[2])))
    _, surface = _counts(scan, truth, lambda box: (scan.read_image(box) > at) == bright)
    return Baseline(best, _threshold_dice(counts, at, bright=bright), surface.surface_dice)


def _candidates(histogram: npt.NDArray[np.int64]) -> list[tuple[str, int, bool]]:
    two, upper = otsu_threshold(histogram), otsu_upper_of_three(histogram)
    last = len(histogram) - 1
    lower = last - 1 - otsu_upper_of_three(histogram[::-1])
    return [
        ("Otsu, bright", two, True),
        ("Otsu, dark", two, False),
        ("Otsu, brightest of three", upper, True),
        ("Otsu, darkest of three", lower, False),
    ]


def _threshold_dice(counts: npt.NDArray[np.int64], at: int, *, bright: bool) -> float:
    chosen = counts[:, at + 1 :] if bright else counts[:, : at + 1]
    background, vessel = (int(n) for n in chosen.sum(1))
    return ConfusionCounts(vessel, background, int(counts[1].sum()) - vessel).dice
