"""Views of a tile: quarter turns, mirrors and sizes that a network sees, and the way back to where the pixels lie.

All planes of a panel are turned alike, before a mosaic is laid, so that each panel of it is turned on its own.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from perfuse.contract import Forward, Turns
from perfuse.inference.logits import LIMIT, ONE, P_ONE

if TYPE_CHECKING:
    from torch import Tensor

GROUPS: dict[Turns, tuple[tuple[int, bool], ...]] = {
    "none": ((0, False),),
    "flips": ((0, False), (2, True), (0, True), (2, False)),
    "quarters": tuple((quarters, False) for quarters in range(4)),
    "all": tuple((quarters, mirrored) for mirrored in (False, True) for quarters in range(4)),
}
"""Quarter turns counterclockwise, after columns are mirrored or not; each a group: the mean over it turns as its input does."""


def turned(images: "Tensor", quarters: int, mirrored: bool) -> "Tensor":
    """Images [.., n, n], each mirrored, then turned."""
    mirror = images.flip(-1) if mirrored else images
    return mirror.rot90(quarters, (-2, -1)) if quarters else mirror


def turned_back(images: "Tensor", quarters: int, mirrored: bool) -> "Tensor":
    """The inverse of `turned`."""
    back = images.rot90(-quarters, (-2, -1)) if quarters else images
    return back.flip(-1) if mirrored else back


def answer(network: "Callable[[Tensor], Tensor]", images: "Tensor", forward: Forward) -> "Tensor":
    """Fixed point int16[n, classes · targets, h, w] of images [n, planes, h, w]: the integer mean over turns and scales.

    In logits or probabilities, as the contract blends. Sums are of integers: they do not depend on the order of views.
    """
    import torch

    views = GROUPS[forward.turns]
    count = len(views) * len(forward.scales)
    kind = torch.int16 if count == 1 else torch.int32
    total = torch.zeros((), dtype=kind, device=images.device)
    for scale in forward.scales:
        seen = resized(images, scale)
        for view in views:
            shown = turned(seen, *view).clone(memory_format=torch.channels_last)  # a network may write into it
            logits = turned_back(network(shown).to(torch.float32, copy=True), *view)
            total = total + _fixed(resized(logits, 1 / scale, images.shape[-2:]), forward).to(kind)
    return total if count == 1 else torch.div(total + count // 2, count, rounding_mode="floor").to(torch.int16)


def resized(images: "Tensor", scale: float, size: "tuple[int, ...] | None" = None) -> "Tensor":
    """Images [n, c, h, w] that many times as large, bilinear, with a low-pass where they get smaller; the same at scale 1."""
    if scale == 1:
        return images
    from torch.nn.functional import interpolate

    wanted = tuple(size or (round(n * scale) for n in images.shape[-2:]))
    return interpolate(images, wanted, mode="bilinear", align_corners=False, antialias=scale < 1)


def _fixed(logits: "Tensor", forward: Forward) -> "Tensor":
    """In place, for pages that are touched for the first time cost more than the arithmetic."""
    import torch

    if forward.blend == "probability":
        return logits.sigmoid_().mul_(255 * P_ONE).round_().to(torch.int16)
    return logits.clamp_(-LIMIT, LIMIT).mul_(ONE).round_().to(torch.int16)
