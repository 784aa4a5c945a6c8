"""Losses that judge each pixel alone."""

from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid


def mean(each: Tensor, weight: Tensor) -> Tensor:
    """Σ weight · each / Σ weight; 0 where nothing weighs."""
    return (each * weight).sum() / weight.sum().clamp(min=1)


def even_weight(target: Tensor, known: Tensor, **settings: float) -> Tensor:  # noqa: ARG001 - as `boundary_weight`
    """1 for each known pixel, else 0."""
    return known


def bce(logits: Tensor, target: Tensor, known: Tensor) -> Tensor:
    """Mean binary cross entropy over known pixels; 0 when none is known."""
    return mean(binary_cross_entropy_with_logits(logits, target, reduction="none"), known)


def focal(logits: Tensor, target: Tensor, known: Tensor, alpha: float = 0.5, gamma: float = 2.0) -> Tensor:
    """Mean over known pixels of −α t (1 − p)^γ log p − (1 − α) (1 − t) p^γ log(1 − p).

    With α = ½ and γ = 0, half of `bce`. A soft target is a chance of vessel: the loss is the mean over both answers.
    After Lin et al. 2017, "Focal loss for dense object detection", who divide by the number of objects instead.
    """
    log_vessel, log_other = logsigmoid(logits), logsigmoid(-logits)
    vessel = alpha * target * (gamma * log_other).exp() * log_vessel
    other = (1 - alpha) * (1 - target) * (gamma * log_vessel).exp() * log_other
    return mean(-vessel - other, known)
