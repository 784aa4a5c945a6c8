"""Losses on logits. Unknown pixels count for nothing; targets may be soft.

Every loss takes logits (any float), target (float, 0 … 1) and known (float, 0 or 1), all [b, planes, h, w], and gives a scalar.
What lies beyond a crop is unknown too.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from perfuse.errors import ShapeMismatchError
from perfuse.losses.boundary import boundary_bce, boundary_dou, signed_distance
from perfuse.losses.pixelwise import bce, focal
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


def combined(
    terms: Sequence["Loss"], logits: Tensor, target: Tensor, known: Tensor, classes: int = 1
) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted sum of the terms, and each term without its weight, by its kind; a second of a kind as `bce_2`.

    Of several classes a term is the mean over them, of each over its own volumes: all are [b, classes · planes, h, w], class by
    class. A class that nothing is known of adds 0 to that mean.
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
            part = torch.stack([LOSSES[term.kind](*volume, **term.settings) for volume in volumes]).mean()
            before = sum(other.kind == term.kind for other in terms[:number])
            parts[f"{term.kind}_{before + 1}" if before else term.kind] = part
            total = total + term.weight * part
    return total, parts
