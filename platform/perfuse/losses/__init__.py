"""Losses on logits. Unknown pixels count for nothing; targets may be soft.

Every loss takes logits (any float), target (float, 0 … 1) and known (float, 0 or 1), all [b, planes, h, w], and gives a scalar.
What lies beyond a crop is unknown too.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from perfuse.errors import ShapeMismatchError
from perfuse.losses.boundary import boundary_bce, boundary_dou, boundary_weight, signed_distance
from perfuse.losses.pixelwise import bce, even_weight, focal
from perfuse.losses.region import dice, tversky
from perfuse.losses.surface import surface_dice

if TYPE_CHECKING:
    from perfuse.recipes import Loss

LOSSES: dict[str, Callable[..., Tensor]] = {
    "bce": bce,
    "boundary_bce": boundary_bce,
    "dice": dice,
    "focal": focal,
    "tversky": tversky,
    "boundary_dou": boundary_dou,
    "signed_distance": signed_distance,
    "surface_dice": surface_dice,
}
"""By kind of a recipe's loss; each takes its `Loss.settings` by name."""

WEIGHTS: dict[str, Callable[..., Tensor]] = {
    "bce": even_weight,
    "boundary_bce": boundary_weight,
    "focal": even_weight,
    "signed_distance": even_weight,
}
"""What pixels weigh in those that are means of them, from target and known, with the same settings; the others are ratios of sums."""


def combined(
    terms: Sequence["Loss"],
    logits: Tensor,
    target: Tensor,
    known: Tensor,
    classes: int = 1,
    shares: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted sum of the terms, and each term without its weight, by its kind; a second of a kind as `bce_2`.

    Of several classes a term is the mean over them, of each over its own volumes: all are [b, classes · planes, h, w], class by
    class. A class that nothing is known of adds 0 to that mean.
    shares: float[terms, classes], what each counts for, where these crops are a part of a step (`sizes`); None: 1.
    Computed in at least float32, whatever the logits come in. Raises ShapeMismatchError unless all three have one shape.
    """
    if not logits.shape == target.shape == known.shape:
        shapes = ", ".join(str(tuple(part.shape)) for part in (logits, target, known))
        raise ShapeMismatchError(f"logits, target and known must have one shape; got {shapes}.")
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    volumes = list(zip(*(part.chunk(classes, 1) for part in (logits, target, known)), strict=True))
    total, parts = logits.new_zeros(()), dict[str, Tensor]()
    with torch.autocast(logits.device.type, enabled=False):
        for number, term in enumerate(terms):
            each = torch.stack([LOSSES[term.kind](*volume, **term.settings) for volume in volumes])
            part = (each if shares is None else each * shares[number]).mean()
            before = sum(other.kind == term.kind for other in terms[:number])
            parts[f"{term.kind}_{before + 1}" if before else term.kind] = part
            total = total + term.weight * part
    return total, parts


def sizes(terms: Sequence["Loss"], target: Tensor, known: Tensor, classes: int = 1) -> Tensor:
    """What each term is a mean over: the weights of all its pixels, which add over batches; crops, for a ratio of sums.

    float[terms, classes]. The loss of several batches as one is the sum of theirs, each by its share of the sizes.
    """
    volumes = list(zip(target.chunk(classes, 1), known.chunk(classes, 1), strict=True))
    return torch.stack(
        [
            torch.stack([WEIGHTS[term.kind](*volume, **term.settings).sum() for volume in volumes])
            if term.kind in WEIGHTS
            else known.new_full((classes,), len(known))
            for term in terms
        ]
    )
