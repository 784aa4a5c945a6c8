"""Laws that every loss keeps, the sum of several, and the formulas of those that judge pixels and regions."""

import math
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pydantic import ValidationError

from perfuse.errors import RecipeError, ShapeMismatchError
from perfuse.losses import LOSSES, WEIGHTS, combined, sizes
from perfuse.losses.pixelwise import bce, focal
from perfuse.losses.region import dice, tversky
from perfuse.recipes import Loss, load_recipe

TERMS = [
    Loss(kind="bce"),
    Loss(kind="boundary_bce", boundary=2, iso=0.4),
    Loss(kind="boundary_bce", volumetric=True),
    Loss(kind="dice"),
    Loss(kind="dice", smooth=0),
    Loss(kind="focal", alpha=0.25, gamma=1.5),
    Loss(kind="tversky", alpha=0.3, beta=0.9, smooth=2),
    Loss(kind="boundary_dou", smooth=0),
    Loss(kind="signed_distance"),
    Loss(kind="surface_dice"),
    Loss(kind="surface_dice", smooth=0),
]
every_loss = pytest.mark.parametrize("term", TERMS, ids=lambda t: "-".join([t.kind, *map(str, t.settings.values())]))
PROPER = ("bce", "boundary_bce", "boundary_dou")
"""Kinds whose minimum is the target itself where it is soft."""


def loss(term: Loss, *tensors: torch.Tensor) -> torch.Tensor:
    return LOSSES[term.kind](*tensors, **term.settings)


@st.composite
def crops(draw, chances):
    """logits, target, known: float64[b, planes, h, w]."""
    shape = draw(st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(2, 5), st.integers(2, 5)))
    logits = draw(hnp.arrays(np.float64, shape, elements=st.floats(-6, 6)))
    target = draw(hnp.arrays(np.float64, shape, elements=chances))
    known = draw(hnp.arrays(np.bool_, shape)).astype(np.float64)
    return tuple(map(torch.from_numpy, (logits, target, known)))


def example(seed: int = 0, planes: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A crop with both kinds of answers, most of them soft, and some pixels unknown."""
    rng = torch.Generator().manual_seed(seed)
    shape = (2, planes, 3, 4)
    logits = torch.randn(shape, generator=rng, dtype=torch.float64)
    target = torch.rand(shape, generator=rng, dtype=torch.float64).mul(1.4).sub(0.2).clamp(0, 1)
    known = (torch.rand(shape, generator=rng) < 0.85).double()
    return logits, target, known


def test_every_kind_of_the_schema_is_there_and_tested() -> None:
    kinds = get_args(Loss.model_fields["kind"].annotation)
    assert set(kinds) == set(LOSSES) == {term.kind for term in TERMS}


@every_loss
@pytest.mark.parametrize("planes", [1, 2])
def test_gradients_are_those_of_finite_differences(term: Loss, planes: int) -> None:
    logits, target, known = example(planes=planes)
    assert torch.autograd.gradcheck(lambda x: loss(term, x, target, known), logits.requires_grad_())


@every_loss
@settings(deadline=None, max_examples=25)
@given(crops(st.floats(0, 1)), st.floats(-1e4, 1e4), st.floats(0, 1))
def test_what_is_unknown_changes_neither_loss_nor_gradient(term: Loss, crop, hidden: float, answer: float) -> None:
    logits, target, known = crop
    first = logits.clone().requires_grad_()
    loss(term, first, target, known).backward()
    unknown = known == 0
    second = logits.masked_fill(unknown, hidden).requires_grad_()
    value = loss(term, second, target.masked_fill(unknown, answer), known)
    value.backward()
    assert value.item() == pytest.approx(loss(term, first, target, known).item(), rel=1e-12, abs=1e-15)
    assert first.grad is not None
    assert second.grad is not None
    torch.testing.assert_close(first.grad[~unknown], second.grad[~unknown], rtol=1e-9, atol=1e-15)
    assert not first.grad[unknown].any()
    assert not second.grad[unknown].any()


@every_loss
@settings(deadline=None, max_examples=25)
@given(crops(st.sampled_from([0.0, 1.0])))
def test_a_perfect_prediction_is_the_minimum(term: Loss, crop) -> None:
    logits, target, known = crop
    best = loss(term, (target - 0.5) * 200, target, known).item()
    assert best <= loss(term, logits, target, known).item() + 1e-12
    if term.kind != "signed_distance":
        assert best == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("term", [t for t in TERMS if t.kind in PROPER], ids=lambda t: t.kind)
@settings(deadline=None, max_examples=25)
@given(crops(st.floats(0.02, 0.98)))
def test_the_target_itself_is_the_minimum_where_it_is_soft(term: Loss, crop) -> None:
    logits, target, known = crop
    assert loss(term, target.logit(), target, known).item() <= loss(term, logits, target, known).item() + 1e-12


@pytest.mark.parametrize("term", [t for t in TERMS if t.kind in WEIGHTS], ids=lambda t: t.kind)
@pytest.mark.parametrize("seen", [[0.9, 0.05, 0.4], [0.0, 0.1, 0.0], [0.0, 0.0, 0.0]])
def test_a_mean_over_pixels_of_a_step_is_that_of_its_batches_by_their_shares(term: Loss, seen: list[float]) -> None:
    rng = torch.Generator().manual_seed(0)
    logits, target, chance = (torch.rand((6, 2, 8, 8), generator=rng, dtype=torch.float64) for _ in range(3))
    known = (chance < torch.tensor(seen).repeat_interleave(2).view(6, 1, 1, 1)).double()
    whole, _ = combined([term], logits, target, known, 2)
    parts = [slice(0, 1), slice(1, 4), slice(4, 6)]
    each = torch.stack([sizes([term], target[part], known[part], 2) for part in parts])
    shares = each / each.sum(0).clamp(min=1)
    sums = [combined([term], logits[p], target[p], known[p], 2, s)[0] for p, s in zip(parts, shares, strict=True)]
    assert sum(sums).item() == pytest.approx(whole.item(), rel=1e-12, abs=1e-15)


@every_loss
@pytest.mark.parametrize("planes", [1, 3])
@pytest.mark.parametrize("far", [0.0, 1e4, -1e4])
@pytest.mark.parametrize("answer", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("seen", [0.0, 1.0])
def test_value_and_gradient_stay_finite(term: Loss, planes: int, far: float, answer: float, seen: float) -> None:
    logits = torch.full((1, planes, 4, 4), far).requires_grad_()
    value = loss(term, logits, torch.full_like(logits, answer), torch.full_like(logits, seen))
    value.backward()
    assert value.isfinite()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    if not seen:
        assert value.item() == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_are_computed_in_float32_even_under_autocast(dtype: torch.dtype) -> None:
    logits, target, known = example()
    logits, target, known = logits.to(dtype), target.float(), known.float()
    expected, _ = combined(TERMS, logits.float(), target, known)
    with torch.autocast("cpu", torch.bfloat16):
        total, _ = combined(TERMS, logits, target, known)
    assert total.dtype == torch.float32
    assert total.item() == expected.item()


def test_the_sum_is_weighted_and_its_terms_are_named_apart() -> None:
    crop = example()
    terms = [
        Loss(kind="tversky", weight=2, alpha=0.1, beta=0.9),
        Loss(kind="bce", weight=0.25),
        Loss(kind="tversky", alpha=0.9, beta=0.1),
        Loss(kind="tversky", weight=3),
    ]
    total, parts = combined(terms, *crop)
    assert list(parts) == ["tversky", "bce", "tversky_2", "tversky_3"]
    assert parts["tversky_2"].item() == tversky(*crop, alpha=0.9, beta=0.1).item()
    assert total.item() == pytest.approx(sum(t.weight * loss(t, *crop).item() for t in terms))


def test_shapes_that_differ_are_refused() -> None:
    logits, target, known = example()
    with pytest.raises(ShapeMismatchError, match=r"\(2, 2, 3, 4\), \(2, 1, 3, 4\), \(2, 2, 3, 4\)"):
        combined([Loss(kind="dice")], logits, target[:, :1], known)


def test_settings_of_another_kind_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"focal takes weight, alpha, gamma; beta = 0.9 changes nothing"):
        Loss(kind="focal", beta=0.9)
    with pytest.raises(RecipeError, match=r"losses\.1.*: .*dice takes weight, smooth; iso = 0\.3"):
        load_recipe("quickstart", ["losses.1.iso=0.3"])


def test_a_volumetric_loss_needs_several_planes() -> None:
    volumetric = "losses=[{kind: boundary_bce, volumetric: true}]"
    with pytest.raises(RecipeError, match=r"network\.outputs=all"):
        load_recipe("quickstart", [volumetric])
    assert load_recipe("quickstart", ["network.outputs=all", volumetric]).losses[0].volumetric


def known_pixels(logits: torch.Tensor, target: torch.Tensor, known: torch.Tensor) -> list[tuple[float, float, float]]:
    """Logit, probability and target of each known pixel."""
    flat = zip(logits.flatten().tolist(), target.flatten().tolist(), known.flatten().tolist(), strict=True)
    return [(x, 1 / (1 + math.exp(-x)), t) for x, t, k in flat if k]


@pytest.mark.parametrize("seed", range(3))
def test_bce_and_focal_are_means_over_known_pixels(seed: int) -> None:
    crop = example(seed)
    pixels = known_pixels(*crop)
    each = [-t * math.log(p) - (1 - t) * math.log(1 - p) for _, p, t in pixels]
    assert bce(*crop).item() == pytest.approx(sum(each) / len(pixels))
    each = [-0.25 * t * (1 - p) ** 1.5 * math.log(p) - 0.75 * (1 - t) * p**1.5 * math.log(1 - p) for _, p, t in pixels]
    assert focal(*crop, alpha=0.25, gamma=1.5).item() == pytest.approx(sum(each) / len(pixels))
    assert focal(*crop, alpha=0.5, gamma=0).item() == pytest.approx(bce(*crop).item() / 2)


@pytest.mark.parametrize("seed", range(3))
def test_dice_and_tversky_are_overlaps_of_known_pixels(seed: int) -> None:
    crop = example(seed)
    pixels = known_pixels(*crop)
    both = sum(p * t for _, p, t in pixels)
    found, missed = sum(p * (1 - t) for _, p, t in pixels), sum((1 - p) * t for _, p, t in pixels)
    whole = sum(p + t for _, p, t in pixels)
    assert dice(*crop, smooth=1.5).item() == pytest.approx(1 - (2 * both + 1.5) / (whole + 1.5))
    expected = 1 - (both + 2) / (both + 0.3 * found + 0.9 * missed + 2)
    assert tversky(*crop, alpha=0.3, beta=0.9, smooth=2).item() == pytest.approx(expected)
    assert tversky(*crop, smooth=0.5).item() == pytest.approx(dice(*crop, smooth=1).item())
