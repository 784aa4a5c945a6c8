"""Resampling agrees with an independent implementation, keeps constants, and does not alias."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from perfuse.resampling import AxisWeights, resample_plane


@settings(deadline=None)
@given(st.integers(20, 60), st.integers(20, 60), st.floats(0.5, 4))
def test_as_torch_does_with_antialiasing(rows: int, columns: int, factor: float) -> None:
    import torch

    plane = np.random.default_rng(rows).integers(0, 60000, (rows, columns)).astype(np.uint16)
    wanted = torch.nn.functional.interpolate(
        torch.tensor(plane.astype(np.float32))[None, None],
        scale_factor=1 / factor,
        mode="bilinear",
        antialias=True,
        recompute_scale_factor=False,
    )[0, 0].numpy()
    assume(all(n != m for n, m in zip(plane.shape, wanted.shape, strict=True)))  # which torch leaves as they are
    down, across = (AxisWeights.of(n, m, factor) for n, m in zip(plane.shape, wanted.shape, strict=True))
    np.testing.assert_allclose(resample_plane(plane, down, across), wanted, atol=2)


@pytest.mark.parametrize("factor", [1.0, 1.26, 2.5, 0.7])
def test_weights_sum_to_one(factor: float) -> None:
    weights = AxisWeights.of(50, round(50 / factor), factor)
    np.testing.assert_allclose(weights.weights.sum(axis=1), 1, rtol=1e-6)
    assert (weights.first >= 0).all()
    assert (weights.first + weights.counts <= 50).all()


def test_equal_sizes_change_nothing() -> None:
    plane = np.random.default_rng(0).integers(0, 9, (7, 8)).astype(np.uint16)
    same = (AxisWeights.of(7, 7, 1.0), AxisWeights.of(8, 8, 1.0))
    np.testing.assert_array_equal(resample_plane(plane, *same), plane)


def test_structure_finer_than_a_voxel_becomes_its_mean() -> None:
    stripes = np.tile(np.array([0, 1000], np.uint16), (60, 30))
    coarse = resample_plane(stripes, AxisWeights.of(60, 24, 2.5), AxisWeights.of(60, 24, 2.5))
    assert np.abs(coarse[:, 2:-2] - 500).max() < 60, "plain linear interpolation would beat between 0 and 1000"
