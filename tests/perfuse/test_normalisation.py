"""What the network sees of intensities: the same window, whatever the scan's scale and offset."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfuse.contract import Normalisation
from perfuse.normalisation import bounds_of, normalise

KNEES = st.sampled_from([None, 0.02, 0.2, 5.0])
SEEDS = st.integers(0, 10_000)


def voxels(seed: int) -> Any:
    return np.random.default_rng(seed).integers(100, 3000, (5, 9, 11)).astype(np.uint16)


@given(SEEDS, KNEES)
def test_the_window_becomes_0_to_1_in_order(seed: int, knee: float | None) -> None:
    settings, image = Normalisation(knee=knee, clip=9), voxels(seed)
    low, high = bounds_of(image, settings)
    seen = normalise(image, (low, high), settings)
    np.testing.assert_allclose(normalise(np.array([low, high]), (low, high), settings), [0, 1], atol=1e-6)
    order = np.argsort(image, axis=None)
    assert (np.diff(seen.ravel()[order]) >= 0).all()


@given(SEEDS, KNEES, st.integers(2, 10), st.integers(0, 5000))
def test_scale_and_offset_of_a_scan_do_not_matter(seed: int, knee: float | None, scale: int, offset: int) -> None:
    settings, image = Normalisation(knee=knee), voxels(seed)
    other = image * scale + offset
    seen = [normalise(part, bounds_of(part, settings), settings) for part in (image, other)]
    np.testing.assert_allclose(*seen, atol=1e-4)


def test_above_the_knee_factors_are_steps() -> None:
    settings = Normalisation(knee=0.001)
    seen = normalise(np.array([0.0, 0.1, 0.2, 0.4, 0.8, 1.0]), (0.0, 1.0), settings)
    np.testing.assert_allclose(np.diff(seen[1:5]), np.log(2) / np.arcsinh(1000), rtol=1e-3)


def test_tails_are_kept_up_to_the_clip_and_a_constant_is_0() -> None:
    seen = normalise(np.array([-500.0, 5.0, 500.0]), (0.0, 10.0), Normalisation(clip=0.5))
    assert seen.tolist() == [-0.5, 0.5, 1.5]
    assert not normalise(np.full((3, 4), 7), (7.0, 7.0), Normalisation()).any()


def test_a_window_that_is_upside_down_is_refused() -> None:
    with pytest.raises(ValueError, match="must lie below"):
        Normalisation(lower_percent=60, upper_percent=40)


def test_a_divisor_counts_whatever_the_percentiles_are() -> None:
    settings, image = Normalisation(divisor=4000), voxels(3)
    np.testing.assert_allclose(normalise(image, bounds_of(image, settings), settings), image / 4000, rtol=1e-6)
