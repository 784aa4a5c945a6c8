"""Losses on logits. Unknown pixels count for nothing; targets may be soft."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

if TYPE_CHECKING:
    from perfuse.recipes import Loss


def combined(
    terms: Sequence["Loss"], logits: Tensor, target: Tensor, known: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted sum of the terms, and each term by the name of its kind, without its weight. Shapes as `bce`."""
    parts: dict[str, Tensor] = {}
    for term in terms:
        function, settings = LOSSES[term.kind]
        parts[term.kind] = function(logits, target, known, **{name: getattr(term, name) for name in settings})
    return sum((term.weight * parts[term.kind] for term in terms), logits.new_zeros(())), parts


def bce(logits: Tensor, target: Tensor, known: Tensor) -> Tensor:
    """Mean binary cross entropy over known pixels; 0 when none is known.

    logits: float; target: float in 0 … 1; known: 0 or 1; all of one shape.
    """
    each = binary_cross_entropy_with_logits(logits, target, reduction="none")
    return (each * known).sum() / known.sum().clamp(min=1)


def dice(logits: Tensor, target: Tensor, known: Tensor, smooth: float = 1.0) -> Tensor:
    """1 − (2 Σ p t + s) / (Σ p + Σ t + s), the sums over the known pixels of the whole batch, s = smooth.

    Shapes as `bce`. After Milletari et al. 2016, "V-Net", with smoothing.
    """
    probability = logits.sigmoid() * known
    target = target * known
    shared = 2 * (probability * target).sum() + smooth
    return 1 - shared / (probability.sum() + target.sum() + smooth)


LOSSES: dict[str, tuple[Callable[..., Tensor], tuple[str, ...]]] = {"bce": (bce, ()), "dice": (dice, ("smooth",))}
"""By kind: the function, and the fields of a `Loss` that it takes."""
