import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from perfuse.losses import bce, dice

LOGITS = torch.tensor([[0.3, -2.0, 1.5, 4.0]], dtype=torch.float64)
TARGET = torch.tensor([[1.0, 0.0, 0.25, 1.0]], dtype=torch.float64)
KNOWN = torch.tensor([[1.0, 1.0, 1.0, 0.0]], dtype=torch.float64)


def test_bce_is_the_mean_over_known_pixels() -> None:
    each = []
    for x, t in zip(LOGITS[0, :3].tolist(), TARGET[0, :3].tolist(), strict=True):
        p = 1 / (1 + math.exp(-x))
        each.append(-t * math.log(p) - (1 - t) * math.log(1 - p))
    assert bce(LOGITS, TARGET, KNOWN).item() == pytest.approx(sum(each) / 3)


def test_dice_is_the_smoothed_overlap_of_known_pixels() -> None:
    p = [1 / (1 + math.exp(-x)) for x in LOGITS[0, :3].tolist()]
    t = TARGET[0, :3].tolist()
    overlap = sum(a * b for a, b in zip(p, t, strict=True))
    expected = 1 - (2 * overlap + 1) / (sum(p) + sum(t) + 1)
    assert dice(LOGITS, TARGET, KNOWN).item() == pytest.approx(expected)


@pytest.mark.parametrize("loss", [bce, dice])
def test_gradients_are_those_of_finite_differences(loss) -> None:
    logits = LOGITS.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(x, TARGET, KNOWN), logits)


@pytest.mark.parametrize("loss", [bce, dice])
@given(hidden=st.floats(-50, 50), answer=st.floats(0, 1))
def test_what_is_unknown_changes_neither_loss_nor_gradient(loss, hidden: float, answer: float) -> None:
    logits, target = LOGITS.clone(), TARGET.clone()
    logits[0, 3], target[0, 3] = hidden, answer
    logits.requires_grad_()
    value = loss(logits, target, KNOWN)
    value.backward()
    assert value.item() == pytest.approx(loss(LOGITS, TARGET, KNOWN).item(), abs=1e-12)
    assert logits.grad is not None
    assert logits.grad[0, 3].item() == 0


@pytest.mark.parametrize("loss", [bce, dice])
def test_nothing_known_costs_nothing(loss) -> None:
    assert loss(LOGITS, TARGET, torch.zeros_like(KNOWN)).item() == 0


@pytest.mark.parametrize("loss", [bce, dice])
def test_certain_and_wrong_stays_finite(loss) -> None:
    far = torch.tensor([[1e4, -1e4]])
    assert torch.isfinite(loss(far, torch.tensor([[0.0, 1.0]]), torch.ones(1, 2)))
