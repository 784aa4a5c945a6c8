"""What each change computes, against plain formulas and scipy."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy import ndimage
from scipy.interpolate import BSpline

from perfuse.augmentation import augment, filters, pointwise, warping
from perfuse.augmentation.draws import Draws
from perfuse.recipes import Augmentation
from perfuse.recipes.schema import Deformation

N = 32
STILL = Augmentation(flips=0, quarter_turns=0, brightness=0, contrast=0, gamma=0, noise=0)
SMOOTH = ndimage.gaussian_filter(np.random.default_rng(0).random((2, N, N)), (0, 2, 2)).astype(np.float32)
IMAGE = torch.from_numpy((SMOOTH - SMOOTH.min()) / np.ptp(SMOOTH) * 1.4 - 0.2)[None]
"""float32[1, 2, n, n], somewhat beyond 0 … 1."""
WHOLE = torch.ones(1, 1, N, N)


def moved(image: torch.Tensor, scale: float, angle: float, shift: tuple[float, float]) -> tuple[torch.Tensor, ...]:
    sources = warping.affine(np.array([scale]), np.array([angle]), np.array([shift]), warping.places(image))
    return warping.resampled(image, WHOLE, WHOLE, sources)


def values(image: torch.Tensor, one_each: str, **changed: object) -> torch.Tensor:
    """Many crops of the same image, changed in one way."""
    many = image.repeat(40, 1, 1, 1)
    change = getattr(pointwise, one_each)
    return change(many, STILL.model_copy(update=changed), Draws.at(0, 0, range(40)))


@pytest.mark.parametrize("angle", [90, 180, -90])
def test_a_quarter_turn_is_that_of_numpy(angle: int) -> None:
    image, _, known = moved(IMAGE, 1, angle, (0, 0))
    assert np.allclose(image, np.rot90(IMAGE.numpy(), angle // 90, (2, 3)), atol=1e-5)
    assert known.all()


def test_a_shift_by_whole_pixels_moves_right_and_down_and_shows_mirrors() -> None:
    image, _, known = moved(IMAGE, 1, 0, (3 / N, 5 / N))
    wanted = np.pad(IMAGE.numpy(), [(0, 0), (0, 0), (5, 0), (3, 0)], mode="symmetric")[..., :N, :N]
    assert np.allclose(image, wanted, atol=1e-5)
    assert torch.equal(known, torch.nn.functional.pad(WHOLE[..., 5:, 3:], (3, 0, 5, 0)))


@given(scale=st.floats(0.5, 2), angle=st.floats(-180, 180), right=st.floats(-0.3, 0.3), down=st.floats(-0.3, 0.3))
@settings(deadline=None, max_examples=40)
def test_a_warp_is_bilinear_where_the_formula_says(scale: float, angle: float, right: float, down: float) -> None:
    """Against scipy: about the middle of the crop, scaled and turned, then shifted."""
    row, column = np.mgrid[:N, :N] - (N - 1) / 2
    row, column = row - down * N, column - right * N
    turn = np.radians(angle)
    rows = (np.sin(turn) * column + np.cos(turn) * row) / scale + (N - 1) / 2
    columns = (np.cos(turn) * column - np.sin(turn) * row) / scale + (N - 1) / 2
    wanted = [ndimage.map_coordinates(p, (rows, columns), order=1, mode="reflect") for p in IMAGE[0].double().numpy()]
    image, _, known = moved(IMAGE, scale, angle, (right, down))
    assert np.abs(image[0].numpy() - wanted).max() < 1e-4
    beyond = np.maximum(np.abs(rows - (N - 1) / 2), np.abs(columns - (N - 1) / 2)) - (N - 1) / 2
    assert known[0, 0].numpy()[beyond < 0].all()
    assert not known[0, 0].numpy()[beyond > 0.01].any()


def test_known_needs_all_its_sources() -> None:
    known = WHOLE.clone()
    known[0, 0, 10, 20] = 0
    sources = warping.affine(np.array([1.0]), np.array([0.0]), np.array([(0.5 / N, 0)]), warping.places(IMAGE))
    seen = warping.resampled(IMAGE, WHOLE, known, sources)[2][0, 0]
    assert np.argwhere(seen.numpy() == 0).tolist() == [[r, 0] for r in range(10)] + [[10, 0], [10, 20], [10, 21]] + [
        [r, 0] for r in range(11, N)
    ]


def offsets(kind: str, knots: np.ndarray, strength: float) -> np.ndarray:
    """[n, n, 2]: right and down."""
    return torch.view_as_real(warping.KINDS[kind](knots, strength, WHOLE))[0].numpy()


@given(
    kind=st.sampled_from(sorted(warping.KINDS)),
    strength=st.floats(0.01, 0.2),
    seed=st.integers(0, 999),
    hard=st.booleans(),
)
@settings(deadline=None, max_examples=60)
def test_a_deformation_keeps_its_bound_and_never_folds(kind: str, strength: float, seed: int, hard: bool) -> None:
    knots = np.random.default_rng(seed).uniform(-1, 1, (1, 2, *[warping.cells(strength) + 3] * 2))
    knots = np.sign(knots) if hard else knots
    field = N * offsets(kind, knots, strength)
    assert np.linalg.norm(field, axis=-1).max() <= strength * N * (1 if kind == "optical" else np.sqrt(2)) + 1e-5
    (x_down, x_right), (y_down, y_right) = (np.gradient(field[..., axis]) for axis in (0, 1))
    assert ((1 + x_right) * (1 + y_down) - x_down * y_right > 0).all()


def test_elastic_is_a_cubic_b_spline() -> None:
    count = warping.cells(0.05)
    knots = np.random.default_rng(0).uniform(-1, 1, (1, 2, count + 3, count + 3))
    field = offsets("elastic", knots, 0.05)
    basis = BSpline(np.arange(-3, count + 4), np.eye(count + 3), 3)((np.arange(N) + 0.5) * count / N)
    for axis in (0, 1):
        assert np.allclose(field[..., axis], 0.05 * basis @ knots[0, axis] @ basis.T, atol=1e-7)


def test_grid_stretches_between_its_knots_and_optical_bends_rays() -> None:
    count = warping.cells(0.1)
    knots = np.random.default_rng(0).uniform(-1, 1, (1, 2, count + 3, count + 3))
    place = (np.arange(N) + 0.5) / N
    field = offsets("grid", knots, 0.1)
    x, y = (np.interp(place * count, np.arange(count + 1), 0.1 * knots[0, axis, 0, : count + 1]) for axis in (0, 1))
    assert np.allclose(field, np.stack(np.meshgrid(x, y), -1), atol=1e-7)
    field = offsets("optical", knots, 0.1)
    x, y = np.meshgrid(place - 0.5, place - 0.5)
    radius = np.hypot(x, y)
    along = 0.1 * knots[0, 0, 0, 0] * (radius / np.sqrt(0.5)) ** 3
    assert np.allclose(field, along[..., None] * np.stack((x, y), -1) / radius[..., None], atol=1e-7)


def test_every_kind_of_deformation_comes_by_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = STILL.model_copy(update={"deformation": Deformation(chance=1, kinds=("elastic", "grid"))})
    called: list[int] = []
    monkeypatch.setitem(
        warping.KINDS, "grid", lambda knots, s, like: called.append(len(knots)) or warping.elastic(knots, s, like)
    )
    many = IMAGE.repeat(100, 1, 1, 1)
    augment(many, many, many, asked, 0, 0, range(100))
    assert 30 < called[0] < 70
    with pytest.raises(ValidationError):
        Deformation(strength=0.3)


def test_brightness_and_contrast_about_the_mean() -> None:
    centre = IMAGE.mean().item()
    found = []
    for varied in values(IMAGE, "lit", brightness=0.2, contrast=0.4):
        brightness = varied.mean().item() - centre
        factor = (varied.std() / IMAGE.std()).item()
        assert np.allclose(varied, centre + factor * (IMAGE[0] - centre) + brightness, atol=1e-5)
        found.append((brightness, factor - 1))
    lowest, highest = np.min(found, 0), np.max(found, 0)
    assert (lowest >= [-0.2, -0.4]).all()
    assert (highest <= [0.2, 0.4]).all()
    assert (highest - lowest > [0.3, 0.6]).all()


def test_gamma_is_a_power_between_0_and_1_only() -> None:
    inside = (IMAGE[0] > 0.01) & (IMAGE[0] < 0.99)
    powers = []
    for varied in values(IMAGE, "bent", gamma=1.0):
        power = (varied[inside].log() / IMAGE[0][inside].log()).double().numpy()
        assert np.allclose(power, np.median(power), rtol=1e-2)
        assert np.allclose(varied[inside], IMAGE[0][inside] ** np.median(power), atol=1e-5)
        beyond = (IMAGE[0] <= 0) | (IMAGE[0] >= 1)
        assert beyond.any()
        assert torch.allclose(varied[beyond], IMAGE[0][beyond], atol=1e-6)
        powers.append(np.median(power))
    assert 0.5 <= min(powers) < 0.6
    assert 1.8 < max(powers) <= 2


@pytest.mark.parametrize("standardised", [False, True])
def test_noise_is_normal_and_measured_as_asked(standardised: bool) -> None:
    image = 3 * IMAGE
    asked = STILL.model_copy(update={"noise": 0.5})
    many = image.repeat(60, 1, 1, 1)
    added = pointwise.noisy(many, asked, Draws.at(0, 0, range(60)), standardised) - image
    unit = image.double().std(correction=0).item() if standardised else 1.0
    strengths = added.std((1, 2, 3)).numpy() / unit
    assert 0 <= strengths.min() < 0.1
    assert 0.4 < strengths.max() < 0.53
    normal = (added / added.std((1, 2, 3), keepdim=True)).flatten(1)
    assert normal.mean(1).abs().max() < 4 / np.sqrt(normal.shape[1])
    assert (normal.abs() < 1).float().mean().item() == pytest.approx(0.6827, abs=0.01)
    assert (torch.corrcoef(normal) - torch.eye(60)).abs().max() < 0.15


def test_a_blur_is_that_of_scipy() -> None:
    widths = np.array([0.5, 1.0, 1.5])
    blurred = filters.filtered(IMAGE.repeat(3, 1, 1, 1), filters.gauss(widths))
    for width, image in zip(widths, blurred, strict=True):
        sigma = (0, width, width)
        wanted = ndimage.gaussian_filter(IMAGE[0].double().numpy(), sigma, mode="mirror", radius=filters.RADIUS)
        assert np.allclose(image, wanted, atol=1e-5)
    sharpened = filters.filtered(IMAGE, filters.unsharp(np.array([0.7])))
    assert torch.allclose(sharpened[0], IMAGE[0] + 0.7 * (IMAGE[0] - blurred[1]), atol=1e-5)


def test_a_motion_is_a_line_of_its_length_and_angle() -> None:
    right, up, oblique = filters.motion(np.array([5.0, 4.0, 7.0]), np.array([0.0, 90.0, 45.0]))
    middle = filters.RADIUS
    assert np.allclose(right[middle], [0, 0, 0.2, 0.2, 0.2, 0.2, 0.2, 0, 0])
    assert np.allclose(up[:, middle], [0, 0, 0.125, 0.25, 0.25, 0.25, 0.125, 0, 0])
    assert right.sum() == pytest.approx(1)
    assert np.allclose(oblique, oblique.T[::-1, ::-1].T[::-1, ::-1])
    assert oblique[middle - 2, middle + 2] > 0 == oblique[middle + 2, middle + 2]
    image = filters.filtered(IMAGE, oblique[None])[0].numpy()
    wanted = [ndimage.correlate(plane, oblique, mode="mirror") for plane in IMAGE[0].double().numpy()]
    assert np.allclose(image, wanted, atol=1e-5)


def test_local_contrast_lifts_calm_windows_within_a_limit() -> None:
    """One half of the crop is ten times calmer than the other: it gains the limit, the other loses a little."""
    rough = np.random.default_rng(0).normal(size=(N, N)).astype(np.float32)
    rough[:, : N // 2] /= 10
    crop = torch.from_numpy(rough)[None, None]
    varied = filters.evened(crop, np.ones(1))[0, 0].numpy()
    calm, lively = (varied[:, part].std() / rough[:, part].std() for part in (slice(4, 8), slice(24, 28)))
    assert calm == pytest.approx(filters.MOST_GAIN, rel=0.05)
    assert 0.5 < lively < 1
    assert torch.allclose(filters.evened(crop, np.zeros(1)), crop)
