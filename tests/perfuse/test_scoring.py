"""Scores of stored predictions are those of the whole arrays; unknown is not background."""

import json
import math

import numpy as np
import pytest
from typer.testing import CliRunner

from perfuse import passes, scoring
from perfuse.catalog import LabelInfo, ModelRef, Scan
from perfuse.cli import build
from perfuse.errors import ScanError
from perfuse.geometry import Box
from perfuse.labels import writer_for
from perfuse.metrics import confusion_counts, curve_counts, otsu_threshold, otsu_upper_of_three, surface_counts
from perfuse.validity import LabelBox, summary

SHAPE = (70, 40, 44)
MODEL = ModelRef(uri="", forward_digest="f", bundle_digest="b", threshold=100, backend="eager-fp32")


def write_soft(scan: Scan, name: str, values: np.ndarray, model: ModelRef | None = MODEL, box=None) -> None:
    writer = writer_for(scan, name, name)
    for task in writer.todo():
        writer.write(task, values[writer.tasks[task].slices])
    writer.finish(
        lambda share, digest: LabelInfo(
            name=name, kind="soft", foreground=share, digest=digest, key=name, model=model, box=box
        )
    )


def soft_of(mask: np.ndarray) -> np.ndarray:
    noise = np.random.default_rng(3).normal(0, 60, mask.shape)
    return np.clip(mask * 0.7 + 30 + noise, 0, 255).astype(np.uint8)


@pytest.fixture
def case(tmp_path, make_scan, tubes):
    image, mask = tubes(4, SHAPE)
    scan = make_scan(tmp_path, "organ", image, {"human": mask})
    soft = soft_of(mask)
    write_soft(scan, "soft", soft)
    return scan, image, mask >= 128, soft


def test_evaluate_is_the_whole_array(case, monkeypatch):
    scan, _, truth, soft = case
    monkeypatch.setattr(passes, "BLOCK", (32, 16, 24))
    scores = scoring.evaluate(scan, "soft", "human")
    whole = confusion_counts(truth, soft >= 100)
    assert scores.threshold == 100 / 255
    assert (scores.dice, scores.precision, scores.recall) == (whole.dice, whole.precision, whole.recall)
    assert scores.fbeta == whole.fbeta(0.5)
    assert (scores.truth_voxels, scores.predicted_voxels) == (whole.truth, whole.predicted)
    assert scores.surface_dice == surface_counts(np.pad(truth, 1), np.pad(soft >= 100, 1)).surface_dice
    assert scores.dice_bounds == (scores.dice, scores.dice)
    moved = scoring.evaluate(scan, "soft", "human", 180)
    assert moved.dice == confusion_counts(truth, soft >= 180).dice


def test_baseline_is_otsu_at_its_best(case):
    from skimage.filters import threshold_otsu

    scan, image, truth, _ = case
    baseline = scoring.evaluate(scan, "soft", "human").baseline
    otsu = confusion_counts(truth, image > threshold_otsu(image, nbins=1 << 16)).dice
    assert baseline.dice >= otsu - 0.01
    histogram = scan.histogram()
    two, three = (image > at(histogram) for at in (otsu_threshold, otsu_upper_of_three))
    found, method = max((two, "Otsu, bright"), (three, "Otsu, brightest of three"), key=lambda c: _dice(truth, c[0]))
    assert (baseline.method, baseline.dice) == (method, _dice(truth, found))
    assert baseline.surface_dice == surface_counts(np.pad(truth, 1), np.pad(found, 1)).surface_dice


def test_baseline_finds_dark_vessels_as_it_finds_bright_ones(tmp_path, make_scan, case):
    bright, image, truth, _ = case
    dark = make_scan(tmp_path, "dark", np.uint16(65_535) - image, {"human": truth.astype(np.uint8) * np.uint8(255)})
    write_soft(dark, "soft", soft_of(truth * 255))
    one, other = (scoring.evaluate(scan, "soft", "human").baseline for scan in (bright, dark))
    assert "dark" in other.method
    assert other.dice == pytest.approx(one.dice, abs=0.01)
    assert other.surface_dice == pytest.approx(one.surface_dice, abs=0.01)


def _dice(truth, found):
    return confusion_counts(truth, found).dice


def test_tune_is_the_whole_curve(case, monkeypatch):
    scan, _, truth, soft = case
    monkeypatch.setattr(passes, "BLOCK", (32, 16, 24))
    curve = scoring.tune([scan, scan], "soft", "human")
    whole = curve_counts(np.pad(truth, 1), np.pad(soft, 1)).curve()
    np.testing.assert_allclose(curve.dice, whole.dice)
    np.testing.assert_allclose(curve.surface_dice, whole.surface_dice)
    assert curve.best == whole.best


def test_what_scans_lose_by_a_common_threshold(tmp_path, make_scan, tubes):
    """Two scans whose best thresholds differ; the regret is what scoring both masks says."""
    scans, arrays = [], []
    for seed, shift in ((1, -60), (2, 60)):
        image, mask = tubes(seed, SHAPE)
        noise = np.random.default_rng(seed).normal(0, 40, SHAPE)
        soft = np.clip(90 + 80 * (mask > 0) + shift + noise, 0, 255).astype(np.uint8)
        scan = make_scan(tmp_path, f"s{seed}", image, {"human": mask})
        write_soft(scan, "soft", soft)
        scans.append(scan.url)
        arrays.append((mask > 0, soft))
    words = ["tune", *scans, "--prediction", "soft", "--truth", "human", "--plot", str(tmp_path / "tune.png"), "--json"]
    report = json.loads(CliRunner().invoke(build(), words, catch_exceptions=False).stdout)
    common = round(255 * report["best"]["threshold"])
    for (truth, soft), found in zip(arrays, report["scans"], strict=True):
        scores = [surface_counts(np.pad(truth, 1), np.pad(soft >= v, 1)).surface_dice for v in range(1, 256)]
        assert found["best"]["surface_dice"] == pytest.approx(max(scores))
        assert found["regret"] == pytest.approx(max(scores) - scores[common - 1])
        assert found["regret"] > 0.01
    assert (tmp_path / "tune.png").read_bytes().startswith(b"\x89PNG")


def test_sparse_truth_gives_recall_and_bounds(tmp_path, make_scan, tubes):
    image, mask = tubes(4, SHAPE)
    half = mask.copy()
    half[:, 20:] = 0
    scan = make_scan(tmp_path, "sparse", image, {"human": half}, kind="sparse", coverage=0.5)
    write_soft(scan, "soft", mask)
    scores = scoring.evaluate(scan, "soft", "human")
    assert scores.recall == 1.0
    assert all(math.isnan(v) for v in (scores.dice, scores.precision, scores.surface_dice, scores.baseline.dice))
    low, high = scores.precision_bounds
    assert low == pytest.approx(np.count_nonzero(half) / np.count_nonzero(mask))
    assert low < high <= 1
    with pytest.raises(ScanError, match="sparse"):
        scoring.tune([scan], "soft", "human")


def test_a_dense_slab_in_a_sparse_whole_gives_tighter_bounds(tmp_path, make_scan, tubes):
    """In the slab, what is not marked is no vessel: what is predicted there wrongly stays wrong."""
    image, mask = tubes(4, SHAPE)
    half = mask.copy()
    half[20:, 20:] = 0
    soft = mask.copy()
    soft[:20] = 255
    slab, whole, beyond = Box((0, 0, 0), (20, 40, 44)), Box((0, 0, 0), (60, 40, 44)), np.s_[60:]
    half[beyond] = 0
    marked = [int((half[20:60] > 0).sum()), int((half[:20] > 0).sum())]
    hidden = int((mask[20:60] > 0).sum()) - marked[0]
    share = marked[0] / (marked[0] + hidden)
    kinds = [("sparse", share, whole), ("dense", 1.0, slab)]
    boxes = [
        LabelBox(version=k + 1, start=b.start, stop=b.stop, kind=kind, coverage=c, marked=n, added=n, removed=0)
        for k, ((kind, c, b), n) in enumerate(zip(kinds, marked, strict=True))
    ]
    about = {k: v for k, v in summary(boxes, SHAPE).items() if k != "foreground"}
    scan = make_scan(tmp_path, "mixed", image, {"human": half}, boxes=boxes, **about)
    write_soft(scan, "soft", soft)
    scores = scoring.evaluate(scan, "soft", "human")
    real = confusion_counts(mask[:60] > 0, soft[:60] > 0)
    assert scores.truth_kind == "sparse"
    assert scores.recall == 1.0
    assert math.isnan(scores.dice)
    assert scores.predicted_voxels == real.predicted, "what lies outside all boxes is not counted"
    assert scores.precision_bounds[1] == pytest.approx(real.precision)
    assert scores.dice_bounds[1] == pytest.approx(real.dice)
    assert scores.precision_bounds[0] == pytest.approx(sum(marked) / real.predicted)
    few = soft * (half > 0)
    few[:20] = 255
    write_soft(scan, "few", few.astype(np.uint8))
    low, high = scoring.evaluate(scan, "few", "human").precision_bounds
    assert low == high, "all that is wrong lies in the slab, where it is certain"


def test_errors_name_what_is_there(case):
    scan, *_ = case
    with pytest.raises(ScanError, match="Its labels: human, soft"):
        scoring.evaluate(scan, "nothing", "human")
    write_soft(scan, "by-hand", np.zeros(SHAPE, np.uint8), None)
    with pytest.raises(ScanError, match="--threshold"):
        scoring.evaluate(scan, "by-hand", "human")


def test_organ_limits_what_counts(tmp_path, make_scan, tubes):
    image, mask = tubes(4, SHAPE)
    organ = np.zeros(SHAPE, np.uint8)
    organ[:30] = 255
    scan = make_scan(tmp_path, "organ", image, {"human": mask, "organ": organ})
    write_soft(scan, "soft", np.where(organ > 0, mask, 255 - mask).astype(np.uint8))
    assert scoring.evaluate(scan, "soft", "human").dice == 1.0
    plain, truth = make_scan(tmp_path / "plain", "organ", image, {"human": mask}), scan.label_info("human")
    assert scoring.data_digest(plain, truth) != scoring.data_digest(scan, truth), "other voxels are counted"


def test_a_prediction_of_a_region_is_scored_inside_it(case):
    scan, _, truth, soft = case
    box = Box((10, 0, 8), (50, 33, 40))
    part = np.zeros_like(soft)
    part[box.slices] = soft[box.slices]
    write_soft(scan, "part", part, box=(box.start, box.stop))
    inside = np.zeros(SHAPE, bool)
    inside[box.slices] = True
    scores = scoring.evaluate(scan, "part", "human")
    whole = confusion_counts(truth, part >= 100, inside)
    assert (scores.dice, scores.iou, scores.recall) == (whole.dice, whole.iou, whole.recall)
    assert scores.truth_voxels == truth[box.slices].sum() < truth.sum()
    assert scores.data_digest != scoring.evaluate(scan, "soft", "human").data_digest
    part_of, given = scan.label_info("part"), scan.label_info("human")
    assert scoring.box_that_cuts(scan, part_of, given) == part_of.box
    inner = given.model_copy(update={"box": ((12, 0, 8), (50, 30, 40))})
    assert scoring.box_that_cuts(scan, part_of, inner) is None, "all of the truth is counted, as in the whole"
    assert scoring.tune([scan], "part", "human").dice[99] == whole.dice
    assert scoring.surface_dice_within(scan, "part", "human", 0.0) == pytest.approx(scores.surface_dice, abs=1e-6)


def test_fbeta_over_thresholds_is_that_of_each_mask(case):
    scan, _, truth, soft = case
    (counts,) = scoring.counts_by_scan([scan], "soft", "human")
    for at in (1, 60, 128, 255):
        for beta in (0.5, 2.0):
            assert counts.fbeta(beta)[at - 1] == pytest.approx(confusion_counts(truth, soft >= at).fbeta(beta))
