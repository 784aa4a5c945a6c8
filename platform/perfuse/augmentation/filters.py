"""Blur and sharpening of crops, mirrored beyond their edges."""

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, conv2d, interpolate, pad

from perfuse.augmentation.draws import Draws, Reals, column, on_chosen
from perfuse.augmentation.pointwise import deviation

if TYPE_CHECKING:
    from perfuse.recipes import Augmentation

RADIUS = 4
"""Of kernels, in pixels."""
GAUSS_PIXELS = (0.5, 1.5)
"""Standard deviation of a blur."""
MOTION_PIXELS = (3.0, 9.0)
"""Length of a motion."""
UNSHARP_PIXELS = 1.0
SHARPENED = (0.2, 1.0)
"""Share of what is sharpened that is added."""
WINDOWS = 8
"""Along the edge of a crop, whose contrast is evened."""
MOST_GAIN = 3.0
"""Of local contrast."""


def blurred(images: Tensor, settings: "Augmentation", draws: Draws) -> Tensor:
    """Out of focus or in motion, with `blur_chance`."""
    if not settings.blur:
        return images
    chosen, kinds = draws.chosen(settings.blur_chance), draws.integers(len(settings.blur))
    width, length, angle = draws.uniform(*GAUSS_PIXELS), draws.uniform(*MOTION_PIXELS), draws.uniform(0, 180)
    moving = np.asarray([settings.blur[kind] == "motion" for kind in kinds])
    kernels = np.where(moving[:, None, None], motion(length, angle), gauss(width))
    return on_chosen(images, chosen, lambda parts, at: filtered(parts, kernels[at]))


def sharpened(images: Tensor, settings: "Augmentation", draws: Draws) -> Tensor:
    """By an unsharp mask or by more local contrast, with `sharpen_chance`."""
    chosen, local = draws.chosen(settings.sharpen_chance), draws.chosen(0.5)
    share = draws.uniform(*SHARPENED)
    kernels = unsharp(share)
    images = on_chosen(images, chosen & ~local, lambda parts, at: filtered(parts, kernels[at]))
    return on_chosen(images, chosen & local, lambda parts, at: evened(parts, share[at]))


def gauss(width: Reals) -> Reals:
    """Kernels [b, 2 · RADIUS + 1, same] of standard deviation `width`, in pixels; as all blurs, their sum is 1."""
    x, y = _pixels()
    return _normalised(np.exp(-(x * x + y * y) / (2 * width[:, None, None] ** 2)))


def motion(length: Reals, angle: Reals) -> Reals:
    """Kernels as of `gauss`: lines of a length in pixels, a pixel wide, at an angle in degrees, counterclockwise from the right."""
    x, y = _pixels()
    cosine, sine = (f(np.radians(angle))[:, None, None] for f in (np.cos, np.sin))
    along, across = x * cosine - y * sine, x * sine + y * cosine
    half = length[:, None, None] / 2
    return _normalised(np.clip(half + 0.5 - abs(along), 0, 1) * np.clip(1 - abs(across), 0, 1))


def unsharp(share: Reals) -> Reals:
    """Kernels as of `gauss` that add a share of the difference to a blurred image."""
    kernels = -share[:, None, None] * gauss(np.full_like(share, UNSHARP_PIXELS))
    kernels[:, RADIUS, RADIUS] += 1 + share
    return kernels


def filtered(images: Tensor, kernels: Reals) -> Tensor:
    """Each crop [planes, n, n] filtered by its kernel. One by one: the bits of many at once depend on their number."""
    weights = torch.as_tensor(kernels, dtype=images.dtype, device=images.device)
    wide = pad(images, [RADIUS] * 4, mode="reflect")
    return torch.stack([conv2d(p[:, None], w[None, None])[:, 0] for p, w in zip(wide, weights, strict=True)])


def evened(images: Tensor, share: Reals) -> Tensor:
    """Contrast of windows brought towards that of the crop, by a factor of MOST_GAIN at most, and mixed in by a share.

    After Wallis 1976, "An approach to the space variant restoration and enhancement of images"; where photographs have
    histogram equalisation of limited contrast (CLAHE), at a tenth of its cost.
    """
    mean, square = adaptive_avg_pool2d(images, WINDOWS), adaptive_avg_pool2d(images * images, WINDOWS)
    local = (square - mean * mean).clamp(min=1e-12).sqrt()
    gain = (deviation(images) / local).clamp(max=MOST_GAIN) - 1
    windows = torch.eye(WINDOWS, dtype=torch.float64, device=images.device)
    between = interpolate(windows[None], images.shape[-1], mode="linear")[0]  # in double precision, as deformations
    mean, gain = ((between.T @ p.double() @ between).to(images) for p in (mean, gain * column(share, images)))
    return images + gain * (images - mean)


def _pixels() -> tuple[Reals, Reals]:
    y, x = np.mgrid[-RADIUS : RADIUS + 1, -RADIUS : RADIUS + 1].astype(np.float64)
    return x, y


def _normalised(kernels: Reals) -> Reals:
    normalised: Reals = kernels / kernels.sum((1, 2), keepdims=True)
    return normalised
