"""Every metric on the vessels of a real kidney, between a raw and a cleaned mask and one worn by a voxel: blocks are the whole."""

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from scipy import ndimage
from skimage.measure import euler_number

from perfuse.catalog import Scan
from perfuse.centrelines import OVERLAP
from perfuse.geometry import Box, Index3, blocks
from perfuse.metrics import (
    CentrelineCounts,
    ConfusionCounts,
    CurveCounts,
    NearCounts,
    SurfaceCounts,
    centreline_counts,
    confusion_counts,
    curve_counts,
    euler_eighths,
    near_counts,
    read_cubes,
    surface_counts,
    tolerance,
)
from perfuse.postprocessing import Cleaning, postprocess
from perfuse.topology import topology

BLOCK = (64, 256, 256)
Masks = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def masks(test_data: Path) -> Masks:
    """A part of the volume that holds all its columns, bool[z, y, x]."""
    cut = np.s_[300:430]
    raw, clean = (
        np.asarray(nibabel.load(test_data / f"rat_kidney/pred_{name}_1.nii.gz").dataobj)[cut] > 0
        for name in ("raw", "ccd")
    )
    return {"raw": raw, "clean": clean, "worn": ndimage.binary_erosion(raw)}


def cubes(mask: np.ndarray, box: Box) -> np.ndarray:
    return read_cubes(lambda b: mask[b.slices], box, mask.shape)


def tail(box: Box, shape: Index3) -> Index3:
    z, y, x = (int(b == n) for b, n in zip(box.stop, shape, strict=True))
    return z, y, x


@pytest.mark.parametrize("other", ["clean", "worn"])
def test_blocks_are_the_whole(masks: Masks, other: str) -> None:
    truth, predicted = masks["raw"], masks[other]
    soft = predicted * np.uint8(120) + truth * np.uint8(60)
    voxels, surface, curve = ConfusionCounts(), SurfaceCounts(), CurveCounts()
    for box in blocks(truth.shape, BLOCK):
        voxels += confusion_counts(truth[box.slices], predicted[box.slices])
        surface += surface_counts(cubes(truth, box), cubes(predicted, box))
        curve += curve_counts(cubes(truth, box), cubes(soft, box), tail_zyx=tail(box, truth.shape))
    both = int((truth & predicted).sum())
    assert voxels.dice == 2 * both / int(truth.sum() + predicted.sum())
    whole = surface_counts(np.pad(truth, 1), np.pad(predicted, 1))
    assert surface.surface_dice == whole.surface_dice
    assert 0.01 < whole.surface_dice < 0.99
    scores = curve.curve()
    assert scores.surface_dice[120 - 1] == whole.surface_dice
    assert scores.surface_dice[60 - 1] == 1.0
    assert scores.dice[120 - 1] == voxels.dice


def test_euler_number_of_blocks_is_that_of_the_whole(masks: Masks) -> None:
    mask = masks["raw"][:80]
    total = sum(euler_eighths(cubes(mask, box)) for box in blocks(mask.shape, BLOCK))
    assert total == 8 * euler_number(np.pad(mask, 1), connectivity=3)


def test_a_clean_label_and_its_topology_are_those_of_the_whole(masks: Masks, make_scan: Any, tmp_path: Path) -> None:
    """Of vessels whose walls alone are bright, so that there are cavities and tunnels, in the six shards of a stored label."""
    vessels, near = masks["raw"][:, 200:320], np.ones((3, 3, 3))
    walls = vessels & ~ndimage.binary_erosion(vessels)
    soft = ndimage.gaussian_filter(np.where(walls, np.float32(255), 0), 0.7).astype(np.uint8)
    scan = make_scan(tmp_path, "s", np.zeros(soft.shape, np.uint8), {"soft": soft}, kind="soft")
    labels, weak = ndimage.label(soft >= 90, near)
    strong = np.setdiff1d(labels[soft >= 199], 0)
    kept = np.isin(labels, strong)
    for fill, expected in ((False, kept), (True, ndimage.binary_fill_holes(kept))):
        postprocess(scan.url, "soft", "clean", Cleaning(hysteresis=(0.35, 0.78), fill_holes=fill))
        np.testing.assert_array_equal(Scan.open(scan.url).label("clean")[:], expected * 255)
        euler = euler_number(np.pad(expected, 1), connectivity=3)
        parts, cavities = (
            ndimage.label(expected, near)[1],
            ndimage.label(np.pad(~expected, 1, constant_values=True))[1] - 1,
        )
        found = topology(scan.url, "clean")
        assert (found.euler, found.betti) == (euler, (parts, parts + cavities - euler, cavities))
        assert 1 < parts < weak / 5
        assert found.betti[1] > 100
        assert (cavities > 50) != fill


@pytest.mark.parametrize("other", ["clean", "worn"])
def test_blocks_with_a_halo_are_the_whole_at_a_tolerance(masks: Masks, other: str) -> None:
    spacing, within = (2.0, 1.0, 1.5), 2.5
    truth, predicted = (masks[name][:70, :300, :400] for name in ("raw", other))
    known = np.ones(truth.shape, np.bool_)
    around = tolerance.reach(within, spacing)

    def near(owned: Box) -> NearCounts:
        box = owned.grown(around).intersect(Box.whole(truth.shape))
        own = owned.relative_to(box.start).slices
        ends = zip(own, tail(owned, truth.shape), strict=True)
        z, y, x = (slice(part.start, part.stop + last) for part, last in ends)
        seen = [read_cubes(lambda b, m=m: m[b.slices], box, truth.shape) for m in (truth, predicted)]
        everywhere = read_cubes(lambda b: known[b.slices], box, truth.shape, outside=1)
        return near_counts(*seen, everywhere, (z, y, x), within, spacing)

    parts = sum((near(box) for box in blocks(truth.shape, (32, 128, 128))), NearCounts())
    whole = near(Box.whole(truth.shape))
    np.testing.assert_array_equal(parts.truth_near, whole.truth_near)
    np.testing.assert_array_equal(parts.predicted_near, whole.predicted_near)
    assert parts.surface_dice(spacing) == whole.surface_dice(spacing)
    exact = surface_counts(np.pad(truth, 1), np.pad(predicted, 1)).surface_dice
    assert exact < whole.surface_dice(spacing) < 1


def test_tiled_centrelines_score_as_those_of_the_whole(masks: Masks) -> None:
    """Tiles with a halo do not give the very voxels of the whole's skeleton; what they score is within half a percent of it."""
    truth, predicted = (masks[name][:64, 100:260, 100:300] for name in ("raw", "worn"))
    known = np.ones(truth.shape, np.bool_)

    def count(owned: Box) -> CentrelineCounts:
        box = owned.grown((OVERLAP,) * 3).intersect(Box.whole(truth.shape))
        parts = (mask[box.slices] for mask in (truth, predicted, known))
        return centreline_counts(*parts, owned.relative_to(box.start).slices)

    tiled = sum((count(box) for box in blocks(truth.shape, (32, 80, 80))), CentrelineCounts())
    whole = count(Box.whole(truth.shape))
    assert 0.1 < whole.cldice < 0.99
    assert tiled.cldice == pytest.approx(whole.cldice, abs=0.005)
    assert tiled.truth == pytest.approx(whole.truth, rel=0.02)
