"""clDice: by its formula on the skeletons of scikit-image, and tile by tile against the whole volume at once."""

import json
import math

import numpy as np
import pytest
from scipy import ndimage
from skimage.morphology import skeletonize
from typer.testing import CliRunner

from perfuse import centrelines
from perfuse.cli import build
from perfuse.metrics import CentrelineCounts, centreline_counts

SHAPE = (70, 84, 90)
WITHIN = 0.01
"""How far a tiled clDice may be from that of the whole, on tubes thinner than the overlap."""


def whole(truth: np.ndarray, predicted: np.ndarray) -> tuple[float, float, float]:
    """After the paper, on whole masks."""
    of_truth, of_predicted = skeletonize(truth) > 0, skeletonize(predicted) > 0
    precision, sensitivity = truth[of_predicted].mean(), predicted[of_truth].mean()
    return 2 * precision * sensitivity / (precision + sensitivity), precision, sensitivity


@pytest.fixture(scope="module")
def masks(tubes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """An image, tubes, and tubes of which one end is missing, with blobs that are none."""
    image, mask = tubes(4, SHAPE)
    soft = np.where(ndimage.gaussian_filter(np.random.default_rng(0).normal(size=SHAPE), 3) > 0.05, 255, mask)
    soft[:, 60:] = 0
    return image, mask, soft.astype(np.uint8)


def test_one_block_is_the_formula(masks):
    _, mask, soft = masks
    counts = centreline_counts(mask > 0, soft > 0, np.ones(SHAPE, np.bool_), np.s_[:, :, :])
    assert (counts.cldice, counts.precision, counts.sensitivity) == pytest.approx(whole(mask > 0, soft > 0), abs=1e-12)
    assert 0.3 < counts.precision != counts.sensitivity < 0.95


def test_unknown_voxels_do_not_count(masks):
    _, mask, soft = masks
    known = np.ones(SHAPE, np.bool_)
    known[:, 60:] = False
    counts = centreline_counts(mask > 0, soft > 0, known, np.s_[:, :, :])
    assert counts.truth == np.count_nonzero(skeletonize(mask > 0)[:, :60])
    assert counts.sensitivity > centreline_counts(mask > 0, soft > 0, known | True, np.s_[:, :, :]).sensitivity


def test_tiles_are_near_the_whole(masks, tmp_path, make_scan, monkeypatch):
    image, mask, soft = masks
    scan = make_scan(tmp_path, "s", image, {"human": mask, "soft": soft})
    monkeypatch.setattr(centrelines, "TILE", (32, 32, 32))
    monkeypatch.setattr(centrelines, "OVERLAP", 16)
    counts = centrelines.centrelines(scan, "soft", "human", 128)
    expected = whole(mask > 0, soft > 0)
    assert (counts.cldice, counts.precision, counts.sensitivity) == pytest.approx(expected, abs=WITHIN)
    assert counts.truth == pytest.approx(np.count_nonzero(skeletonize(mask > 0)), rel=0.05)
    monkeypatch.setattr(centrelines, "OVERLAP", 0)
    bare = centrelines.centrelines(scan, "soft", "human", 128)
    assert abs(bare.truth - counts.truth) > 0, "the voxels around a tile matter"


def test_the_verb_says_its_tiling(masks, tmp_path, make_scan):
    image, mask, soft = masks
    words = ["--prediction", "soft", "--truth", "human", "--threshold", "0.5", "--cldice", "--json"]
    expected = whole(mask > 0, soft > 0)
    for kind in ("dense", "sparse"):
        scan = make_scan(tmp_path / kind, "s", image, {"human": mask, "soft": soft}, kind=kind)
        shown = CliRunner().invoke(build(), ["evaluate", scan.url, *words], catch_exceptions=False)
        found = json.loads(shown.stdout)["cldice"]
        assert (found["tile_voxels"], found["overlap_voxels"]) == (256, 32)
        assert found["sensitivity"] == pytest.approx(expected[2])
        assert found["cldice"] == (pytest.approx(expected[0]) if kind == "dense" else None)


def test_nothing_to_score():
    assert math.isnan(CentrelineCounts().cldice)
    assert CentrelineCounts(truth=3).cldice == 0.0
    assert CentrelineCounts(3, 0, 4, 0).cldice == 0.0
