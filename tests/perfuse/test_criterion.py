"""What a checkpoint is chosen by, against scores of masks."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from perfuse.metrics import CurveCounts, curve_counts
from perfuse.metrics.surface import surface_counts
from perfuse.training.validation import score


def scan(seed: int) -> tuple[np.ndarray, np.ndarray]:
    field = gaussian_filter(np.random.default_rng(seed).standard_normal((20, 24, 22)), 2 + seed)
    field /= field.std()
    noise = np.random.default_rng(seed + 9).normal(0, 0.4, field.shape)
    return field > 0.8, (255 / (1 + np.exp(-2 * (field + noise - 0.8 + 0.3 * seed)))).astype(np.uint8)


def counts(truth: np.ndarray, soft: np.ndarray) -> CurveCounts:
    return curve_counts(np.pad(truth, 1), np.pad(soft, 1))


def surface_dice(truth: np.ndarray, mask: np.ndarray) -> float:
    return surface_counts(np.pad(truth, 1), np.pad(mask, 1)).surface_dice


def dice(truth: np.ndarray, mask: np.ndarray) -> float:
    return 2 * (truth & mask).sum() / (truth.sum() + mask.sum())


def test_the_mean_surface_dice_is_over_39_thresholds_and_over_scans_alike() -> None:
    scans = [scan(0), scan(1)]
    thresholds = [k * 0.025 for k in range(1, 40)]
    each = [surface_dice(truth, soft / 255 >= t - 1e-9) for truth, soft in scans for t in thresholds]
    found = score([counts(*s) for s in scans], "mean_surface_dice")
    assert found == pytest.approx(np.mean(each), abs=1e-6)


def test_the_best_is_of_all_scans_together_at_one_threshold() -> None:
    truth, soft = (np.concatenate(parts) for parts in zip(scan(0), scan(1), strict=True))
    best = max(dice(truth, soft >= v) for v in range(1, 256))
    both = [counts(*scan(0)), counts(*scan(1))]
    assert score(both, "best_dice") == pytest.approx(best, abs=1e-12)
    alone = max(surface_dice(scan(0)[0], scan(0)[1] >= v) for v in range(1, 256))
    assert score(both[:1], "best_surface_dice") == pytest.approx(alone, abs=1e-6)
    assert score(both, "best_surface_dice") >= score(both, "mean_surface_dice")


def test_nothing_to_score_is_no_score() -> None:
    nothing = counts(np.zeros((4, 4, 4), np.bool_), np.zeros((4, 4, 4), np.uint8))
    for criterion in ("best_dice", "best_surface_dice", "mean_surface_dice"):
        assert score([nothing], criterion) == 0
