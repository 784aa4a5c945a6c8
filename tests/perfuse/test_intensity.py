"""Histograms count every voxel once, whatever the shape, dtype and cut."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from perfuse import intensity
from perfuse.errors import SourceError

shapes = st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 70))


@settings(deadline=None)
@given(st.data(), st.sampled_from(["uint8", "uint16"]), st.integers(1, 40))
def test_counts_and_extremes_of_integers(data: st.DataObject, dtype: str, chunk: int) -> None:
    volume = data.draw(hnp.arrays(dtype, shapes))
    whole = np.pad(volume, ((0, 0), (1, 0), (0, 0)))
    band = whole[:, 1:]  # which begins at any address
    counts, extremes = intensity.measure(band, chunk)
    np.testing.assert_array_equal(counts, np.bincount(volume.ravel(), minlength=intensity.bins(volume.dtype)))
    cuts = [volume[..., a : a + chunk] for a in range(0, volume.shape[2], chunk)]
    assert extremes.tolist() == [[c.min(), c.max()] for c in cuts]


@settings(deadline=None)
@given(hnp.arrays("float32", shapes, elements=st.floats(-(2.0**99), 2.0**99, width=32)))
def test_a_float_lies_in_its_bin(volume: np.ndarray[Any, Any]) -> None:
    low = intensity.values_of_bins(volume.dtype)
    assert (np.diff(low[~np.isnan(low)]) >= 0).all()
    bins = intensity.bin_of(volume)
    assert (low[bins] <= volume).all()
    assert (np.abs(volume - low[bins]) <= np.abs(volume) / 64 + 1e-37).all()
    counts, extremes = intensity.measure(volume, 1000)
    np.testing.assert_array_equal(counts, np.bincount(bins.ravel(), minlength=65536))
    assert extremes.tolist() == [[volume.min(), volume.max()]]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_floats_that_are_not_finite_are_refused(bad: float) -> None:
    volume = np.ones((2, 3, 70), np.float32)
    volume[1, 2, 69] = bad
    with pytest.raises(SourceError, match="not a finite number"):
        intensity.measure(volume, 64)


def test_percentiles_are_those_of_the_voxels() -> None:
    volume = np.random.default_rng(0).normal(3000, 400, (4, 30, 40)).astype(np.uint16)
    counts, _ = intensity.measure(volume, 64)
    for p in (0.5, 20, 50, 99.5):
        wanted = np.percentile(volume, p, method="inverted_cdf")
        assert intensity.percentile(counts, volume.dtype, p) == wanted
    summary = intensity.summary(counts, volume.dtype)
    assert (summary["min"], summary["max"]) == (volume.min(), volume.max())
    assert summary["mean"] == pytest.approx(volume.mean())
