"""Variations of crops, in batches, on the device of their tensors: a pure function of the crops and their places in training.

Turns → one resampling (warp and deformation) → contrast → gamma → blur → sharpening → noise.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from perfuse.augmentation.draws import Draws
from perfuse.augmentation.filters import blurred, sharpened
from perfuse.augmentation.pointwise import bent, lit, noisy
from perfuse.augmentation.turns import turned
from perfuse.augmentation.warping import warped

if TYPE_CHECKING:
    from perfuse.recipes import Augmentation

__all__ = ["augment"]


def augment(
    images: Tensor,
    targets: Tensor,
    knowns: Tensor,
    settings: "Augmentation",
    seed: int,
    step: int,
    positions: Sequence[int],
    *,
    classes: int = 1,
    standardised: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """One variation of each crop; what is given stays as it is.

    images: float32[b, planes, n, n], 0 … 1 between the percentiles; targets, knowns: float32[b, classes · (planes or 1), n, n].
    positions: of the b crops in the global batch. A crop's variation depends on `seed`, `step` and its own position, not on
    which crops it shares a batch with; on devices of one kind it is the same to the last bit.
    standardised: the network standardises each crop, so noise is measured in standard deviations of the crop.
    """
    draws = Draws.at(seed, step, positions)
    images, targets, knowns = turned((images, targets, knowns), settings, draws, classes)
    images, targets, knowns = warped((images, targets, knowns), settings, draws)
    each, draws = (
        (images.flatten(0, 1)[:, None], draws.spawn(images.shape[1])) if settings.each_plane else (images, draws)
    )
    each = bent(lit(each, settings, draws), settings, draws)
    each = sharpened(blurred(each, settings, draws), settings, draws)
    return noisy(each, settings, draws, standardised).view_as(images), targets, knowns
