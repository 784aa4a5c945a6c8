"""Every metric on the vessels of a real kidney, between a raw and a cleaned mask and one worn by a voxel: blocks are the whole."""

from pathlib import Path

import nibabel
import numpy as np
import pytest
from scipy import ndimage
from skimage.measure import euler_number

from perfuse.geometry import Box, Index3, blocks
from perfuse.metrics import (
    ConfusionCounts,
    CurveCounts,
    SurfaceCounts,
    confusion_counts,
    curve_counts,
    euler_eighths,
    read_cubes,
    surface_counts,
)

BLOCK = (64, 256, 256)
Masks = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def masks(test_data: Path) -> Masks:
    """A part of the volume that holds all its columns, bool[z, y, x]."""
    cut = np.s_[300:430]
    raw, clean = (
        np.asarray(nibabel.load(test_data / f"rat_kidney/pred_{name}_1.nii.gz").dataobj[cut]) > 0
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
