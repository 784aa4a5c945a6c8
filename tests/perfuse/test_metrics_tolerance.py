"""Surface dice at tolerances and spacings. Oracle: DeepMind's surface-distance, whole volumes in memory."""

import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from surface_distance import compute_surface_dice_at_tolerance, compute_surface_distances
from surface_distance.lookup_tables import create_table_neighbour_code_to_surface_area

from perfuse.geometry import Box, Spacing, blocks
from perfuse.metrics import NearCounts, near_counts, read_cubes, surface_counts, tolerance
from perfuse.metrics.normals import areas_at
from perfuse.scoring import surface_dice_within

SPACINGS = st.sampled_from([(1.0, 1.0, 1.0), (2.0, 1.0, 1.0), (50.0, 25.0, 10.0), (0.5, 0.7, 0.9)])


def of_blocks(truth, predicted, block, within, spacing, known=None) -> NearCounts:
    shape, total = truth.shape, NearCounts()
    seen = np.ones(shape, np.bool_) if known is None else known
    for owned in blocks(shape, block):
        box = owned.grown(tolerance.reach(within, spacing)).intersect(Box.whole(shape))
        own = tuple(
            slice(a - c, b - c + (b == n)) for a, b, c, n in zip(owned.start, owned.stop, box.start, shape, strict=True)
        )
        cut = [
            read_cubes(lambda b, m=mask: m[b.slices], box, shape, outside)
            for mask, outside in ((truth, 0), (predicted, 0), (seen, 1))
        ]
        total += near_counts(*cut, own, within, spacing)
    return total


def oracle(truth: np.ndarray, predicted: np.ndarray, within: float, spacing: Spacing) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # it names scipy's modules of old
        distances = compute_surface_distances(truth, predicted, spacing)
    return compute_surface_dice_at_tolerance(distances, within)


@pytest.mark.parametrize("spacing", [(1, 1, 1), (3, 1.5, 0.7), (50, 20, 10)])
def test_areas_are_those_of_the_published_table(spacing):
    np.testing.assert_allclose(areas_at(spacing), create_table_neighbour_code_to_surface_area(spacing), rtol=1e-12)


@settings(deadline=None, max_examples=150)
@given(st.data(), st.tuples(*[st.integers(1, 7)] * 3), st.tuples(*[st.integers(1, 4)] * 3), SPACINGS)
def test_blocks_are_the_whole(data, shape, block, spacing):
    truth, predicted = (data.draw(arrays.arrays(np.bool_, shape)) for _ in range(2))
    within = data.draw(st.sampled_from([0.0, 1.0, 1.5, 3.0])) * min(spacing)
    found = of_blocks(truth, predicted, block, within, spacing).surface_dice(spacing)
    if truth.any() and predicted.any():
        assert found == pytest.approx(oracle(truth, predicted, within, spacing), abs=1e-9)
    elif truth.any() or predicted.any():
        assert found == 0
    else:
        assert math.isnan(found)


def test_monai_says_the_same():
    import torch
    from monai.metrics import compute_surface_dice

    truth, predicted = (np.random.default_rng(n).random((12, 13, 14)) < 0.3 for n in range(2))
    one, other = (torch.from_numpy(mask)[None, None] for mask in (predicted, truth))
    for spacing, within in ((1.0, 1.0, 1.0), 1.0), ((50.0, 25.0, 10.0), 30.0):
        about = {"include_background": True, "spacing": spacing, "use_subvoxels": True}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of its own functions among each other
            theirs = compute_surface_dice(one, other, [within], **about).item()
        assert of_blocks(truth, predicted, (5, 6, 7), within, spacing).surface_dice(spacing) == pytest.approx(
            theirs, abs=1e-6
        )


def test_at_no_tolerance_it_is_the_surface_dice():
    rng = np.random.default_rng(0)
    truth, predicted, known = (rng.random((9, 10, 11)) < share for share in (0.4, 0.5, 0.97))
    plain = surface_counts(*(np.pad(m, 1, constant_values=v) for m, v in ((truth, 0), (predicted, 0), (known, 1))))
    found = of_blocks(truth, predicted, (4, 3, 5), 0.0, (1.0, 1.0, 1.0), known)
    assert found.surface_dice((1.0, 1.0, 1.0)) == pytest.approx(plain.surface_dice, rel=1e-12)


def test_a_stored_prediction(tmp_path, make_scan, tubes, monkeypatch):
    """Truth against truth moved by two voxels of 50 µm: all is near at 100 µm along the move, not at 60."""
    image, mask = tubes(1, (30, 34, 38))
    moved = np.roll(mask, 2, axis=1)
    scan = make_scan(tmp_path, "s", image, {"human": mask, "soft": moved})
    monkeypatch.setattr("perfuse.passes.BLOCK", (13, 16, 20))
    for within in (60.0, 100.0):
        found = surface_dice_within(scan, "soft", "human", within, threshold=128)
        assert found == pytest.approx(oracle(mask > 0, moved > 0, within, (50.0, 50.0, 50.0)), abs=1e-9)
