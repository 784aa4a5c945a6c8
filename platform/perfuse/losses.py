"""Losses on logits. Unknown pixels count for nothing; targets may be soft."""

from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

SMOOTH = 1.0
"""Added above and below in the Dice loss: a batch without vessel has a loss near 0 when nothing is predicted."""


def masked_bce(logits: Tensor, target: Tensor, known: Tensor) -> Tensor:
    """Mean binary cross entropy over known pixels; 0 when none is known.

    logits: float; target: float in 0 … 1; known: 0 or 1; all of one shape.
    """
    each = binary_cross_entropy_with_logits(logits, target, reduction="none")
    return (each * known).sum() / known.sum().clamp(min=1)


def masked_dice(logits: Tensor, target: Tensor, known: Tensor) -> Tensor:
    """1 − (2 Σ p t + 1) / (Σ p + Σ t + 1), the sums over the known pixels of the whole batch.

    Shapes as `masked_bce`. After Milletari et al. 2016, "V-Net", with smoothing.
    """
    probability = logits.sigmoid() * known
    target = target * known
    shared = 2 * (probability * target).sum() + SMOOTH
    return 1 - shared / (probability.sum() + target.sum() + SMOOTH)
