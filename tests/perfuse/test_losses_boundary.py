"""The losses of the boundary against loops over pixels."""

from itertools import product
from math import dist, exp, log1p

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from perfuse.losses.boundary import boundary_bce, boundary_dou, inner_boundary, signed_distance


@st.composite
def crops(draw):
    """logits, target, known: float64[b, planes, h, w]."""
    shape = draw(st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, 6), st.integers(1, 6)))
    logits = draw(hnp.arrays(np.float64, shape, elements=st.floats(-6, 6)))
    target = draw(hnp.arrays(np.float64, shape, elements=st.sampled_from([0, 0.2, 0.45, 0.55, 0.8, 1])))
    known = draw(hnp.arrays(np.bool_, shape, elements=st.sampled_from([True, True, True, False])))
    return logits, target, known


def tensors(*arrays: np.ndarray) -> tuple[torch.Tensor, ...]:
    return tuple(torch.from_numpy(a.astype(np.float64)) for a in arrays)


def edge(vessel: np.ndarray, known: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """Known vessel pixels beside known background, one by one."""
    found = np.zeros(vessel.shape, bool)
    for at in zip(*np.nonzero(vessel & known), strict=True):
        for axis, step in product(axes, (-1, 1)):
            beside = [*at]
            beside[axis] += step
            if 0 <= beside[axis] < vessel.shape[axis] and known[tuple(beside)] and not vessel[tuple(beside)]:
                found[at] = True
    return found


def entropy(x: float, t: float) -> float:
    return t * log1p(exp(-x)) + (1 - t) * (x + log1p(exp(-x)))


@settings(deadline=None)
@given(crops(), st.booleans(), st.sampled_from([0.3, 0.5, 0.7]), st.floats(0, 5))
def test_boundary_bce(crop, volumetric: bool, iso: float, boundary: float) -> None:
    logits, target, known = crop
    found = edge(target >= iso, known, (1, 2, 3) if volumetric else (2, 3))
    weights = [(1 + boundary * found[at], entropy(logits[at], target[at])) for at in map(tuple, np.argwhere(known))]
    expected = sum(w * e for w, e in weights) / max(sum(w for w, _ in weights), 1)
    value = boundary_bce(*tensors(*crop), boundary=boundary, volumetric=volumetric, iso=iso)
    assert value.item() == pytest.approx(expected)


def test_the_boundary_of_a_square_is_its_rim_and_of_a_cube_its_shell() -> None:
    vessel = torch.zeros(1, 5, 7, 7, dtype=torch.bool)
    vessel[:, :, 1:6, 1:6] = True
    everything = torch.ones_like(vessel)
    assert inner_boundary(vessel, everything).sum((2, 3)).tolist() == [[16] * 5]
    assert inner_boundary(vessel, everything, volumetric=True).sum((2, 3)).tolist() == [[16] * 5], "beyond is unknown"
    vessel[:, [0, 4]] = False
    assert inner_boundary(vessel, everything, volumetric=True).sum((2, 3)).tolist() == [[0, 25, 16, 25, 0]]
    assert not inner_boundary(torch.ones_like(vessel), everything).any()


@settings(deadline=None)
@given(crops(), st.sampled_from([0.3, 0.5, 0.7]))
def test_boundary_dou(crop, iso: float) -> None:
    logits, target, known = crop
    vessel = (target >= iso) & known
    share = edge(vessel, known, (2, 3)).sum() / max(vessel.sum(), 1)
    alpha = min(max(1 - 2 * share, 0), 0.8)
    p, t = 1 / (1 + np.exp(-logits[known])), target[known]
    union = (p**2 + t**2 - p * t).sum()
    expected = (union - (p * t).sum()) / (union - alpha * (p * t).sum() + 2)
    assert boundary_dou(*tensors(*crop), iso=iso, smooth=2).item() == pytest.approx(expected, abs=1e-12)


def test_boundary_dou_of_thin_and_of_large_vessels() -> None:
    """One pixel wide: 1 − IoU. A disc: α near its limit, so that a wrong pixel counts for more."""
    target = torch.zeros(1, 1, 40, 40, dtype=torch.float64)
    target[..., 20, :] = 1
    half = torch.where(torch.arange(40) < 20, 50.0, -50.0).double() * target - 50 * (1 - target)
    everything = torch.ones_like(target)
    assert boundary_dou(half, target, everything, smooth=0).item() == pytest.approx(1 - 20 / 40)
    disc = torch.ones(1, 1, 40, 40, dtype=torch.float64)
    disc[..., :, 0] = 0
    wrong = (disc - 0.5) * 100
    wrong[..., 0, 1] = -50
    assert boundary_dou(wrong, disc, everything, smooth=0).item() == pytest.approx(1 / (1560 - 0.8 * 1559))


@settings(deadline=None)
@given(crops(), st.sampled_from([0.3, 0.5, 0.7]))
def test_signed_distance(crop, iso: float) -> None:
    logits, target, known = crop
    total = 0.0
    for plane in np.ndindex(target.shape[:2]):
        vessel, seen = target[plane] >= iso, known[plane]
        kinds = [list(zip(*np.nonzero(part & seen), strict=True)) for part in (~vessel, vessel)]
        if not all(kinds):
            continue
        for is_vessel, sign in ((0, 1), (1, -1)):
            for at in kinds[is_vessel]:
                nearest = min(dist(at, other) for other in kinds[1 - is_vessel])
                total += sign * nearest / (1 + exp(-logits[(*plane, *at)]))
    wanted = pytest.approx(total / max(known.sum(), 1), rel=1e-6, abs=1e-7)  # of distances that nearly cancel
    assert signed_distance(*tensors(*crop), iso=iso).item() == wanted


def test_signed_distance_falls_with_every_pixel_that_comes_nearer() -> None:
    """A vessel predicted k pixels beside its place: the loss grows with k."""
    target = torch.zeros(1, 1, 16, 32)
    target[..., 4:8] = 1
    values = [
        signed_distance((target.roll(k, -1) - 0.5) * 40, target, torch.ones_like(target)).item() for k in range(12)
    ]
    assert values == sorted(values)
    assert values[0] < 0 < values[-1]
