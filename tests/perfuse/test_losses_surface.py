"""Surface dice as a loss: the metric itself where all is certain, and the mean over all codes of a cube where not."""

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from perfuse.losses.surface import surface_dice
from perfuse.metrics import surface_counts
from perfuse.metrics.areas import CLASSES, CODE_CLASS, area

CODE_AREA = area(np.eye(CLASSES, dtype=np.int64))[CODE_CLASS]
CERTAIN = 1e4


def tensor(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(values.astype(np.float64))[None]


def certain(mask: np.ndarray) -> torch.Tensor:
    return (tensor(mask) - 0.5) * CERTAIN


@st.composite
def masks(draw, first=1):
    shape = draw(st.tuples(st.integers(first, 4), st.integers(2, 5), st.integers(2, 5)))
    return tuple(draw(hnp.arrays(bool, shape)) for _ in range(3))


@settings(deadline=None)
@given(masks(2))
def test_of_zeros_and_ones_it_is_the_metric(case) -> None:
    truth, predicted, known = case
    counts = surface_counts(truth, predicted, known)
    value = surface_dice(certain(predicted), tensor(truth), tensor(known), smooth=0).item()
    assert value == pytest.approx(0 if counts.undefined else 1 - counts.surface_dice, abs=1e-12)


@settings(deadline=None)
@given(masks())
def test_of_one_plane_it_is_the_metric_of_the_plane_and_its_twin(case) -> None:
    plane = [np.repeat(part[:1], 2, 0) for part in case]
    counts = surface_counts(*plane)
    value = surface_dice(certain(plane[1][:1]), tensor(plane[0][:1]), tensor(plane[2][:1]), smooth=0).item()
    assert value == pytest.approx(0 if counts.undefined else 1 - counts.surface_dice, abs=1e-12)


def test_golden_cubes() -> None:
    cube = np.zeros((14, 14, 14), bool)
    cube[2:10, 2:10, 2:10] = True
    shorn = cube.copy()
    shorn[2] = False
    everything = tensor(np.ones_like(cube))
    shifted = surface_dice(certain(np.roll(cube, 1, 2)), tensor(cube), everything, smooth=0)
    assert shifted.item() == pytest.approx(1 - 0.6658538, abs=1e-7)
    assert surface_dice(certain(shorn), tensor(cube), everything, smooth=0).item() == pytest.approx(
        1 - 0.8253461, abs=1e-7
    )
    whole = 355.12903
    smoothed = surface_dice(certain(~cube | True), tensor(cube), everything, smooth=10)
    assert smoothed.item() == pytest.approx(whole / (whole + 10), rel=1e-7), "nothing of the surface is found"


def expectation(chances: np.ndarray) -> tuple[float, float]:
    """Area and chance of surface of one cube, code by code."""
    mean_area = surface = 0.0
    for code, bits in enumerate(product((0, 1), repeat=8)):
        chance = float(np.prod([p if bit else 1 - p for p, bit in zip(chances.ravel(), bits, strict=True)]))
        mean_area += chance * CODE_AREA[code]
        surface += chance * (0 < code < 255)
    return mean_area, surface


@pytest.mark.parametrize("seed", range(2))
def test_where_it_is_uncertain_it_is_the_mean_over_all_codes(seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits, target, known = rng.normal(0, 2, (3, 4, 3)), rng.random((3, 4, 3)), np.ones((3, 4, 3), bool)
    known[2, 1, 0] = False
    shared = whole = 0.0
    for start in np.ndindex(2, 3, 2):
        cube = tuple(slice(i, i + 2) for i in start)
        if known[cube].all():
            area_t, surface_t = expectation(target[cube])
            area_p, surface_p = expectation(1 / (1 + np.exp(-logits[cube])))
            shared += area_t * surface_p + area_p * surface_t
            whole += area_t + area_p
    value = surface_dice(tensor(logits), tensor(target), tensor(known), smooth=1).item()
    assert value == pytest.approx(1 - (shared + 1) / (whole + 1))


@settings(deadline=None)
@given(masks())
def test_a_prediction_and_its_inverse_cost_the_same(case) -> None:
    truth, predicted, known = case
    logits, others = tensor(predicted * 3.0 - 1), (tensor(truth), tensor(known))
    assert surface_dice(logits, *others).item() == pytest.approx(surface_dice(-logits, *others).item())


def test_descent_finds_a_surface_that_it_sees_softly() -> None:
    """From a noisy guess, gradient steps on this loss alone bring the metric up to 1."""
    truth = np.zeros((3, 10, 10), bool)
    truth[:, 3:7, 3:7] = True
    logits = torch.randn(1, 3, 10, 10, generator=torch.Generator().manual_seed(0)).double() + (tensor(truth) - 0.5)
    logits.requires_grad_()
    everything = torch.ones_like(logits)
    optimiser = torch.optim.Adam([logits], 0.3)
    before = surface_counts(truth, (logits[0] > 0).numpy(force=True)).surface_dice
    for _ in range(60):
        optimiser.zero_grad()
        surface_dice(logits, tensor(truth), everything).backward()
        optimiser.step()
    after = surface_counts(truth, (logits[0] > 0).numpy(force=True)).surface_dice
    assert before < 0.7
    assert after > 0.95
