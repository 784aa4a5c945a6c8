"""Contrast, gamma and noise: each pixel on its own."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from perfuse.augmentation.draws import Draws, Integers, column, on_chosen

if TYPE_CHECKING:
    from perfuse.recipes import Augmentation


def lit(images: Tensor, settings: "Augmentation", draws: Draws) -> Tensor:
    """Brightness moved, and contrast changed about the crop's mean."""
    chosen = draws.chosen(settings.brightness_contrast_chance)
    contrast = draws.uniform(-settings.contrast, settings.contrast)
    brightness = draws.uniform(-settings.brightness, settings.brightness)

    def change(parts: Tensor, at: Integers) -> Tensor:
        more = column(contrast[at], parts)
        return torch.addcmul(column(brightness[at], parts) - more * mean(parts), parts, 1 + more)

    return on_chosen(images, chosen & bool(settings.contrast or settings.brightness), change)


def bent(images: Tensor, settings: "Augmentation", draws: Draws) -> Tensor:
    """A power of what lies between 0 and 1; what lies beyond stays as far beyond."""
    chosen = draws.chosen(settings.gamma_chance)
    power = (1 + settings.gamma) ** draws.uniform(-1, 1)

    def change(parts: Tensor, at: Integers) -> Tensor:
        within = parts.clamp(0, 1)
        return (parts - within).add_(within.pow_(column(power[at], parts)))

    return on_chosen(images, chosen & bool(settings.gamma), change)


def noisy(images: Tensor, settings: "Augmentation", draws: Draws, standardised: bool) -> Tensor:
    """Normal noise of a standard deviation between 0 and `noise`; of the crop's own where it is standardised."""
    chosen, share, seeds = draws.chosen(settings.noise_chance), draws.uniform(0, settings.noise), draws.seeds()

    def change(parts: Tensor, at: Integers) -> Tensor:
        noise = torch.empty_like(parts)
        for part, seed in zip(noise, seeds[at], strict=True):
            torch.randn(part.shape, generator=torch.Generator(parts.device).manual_seed(int(seed)), out=part)
        strength = column(share[at], parts)
        return torch.addcmul(parts, strength * deviation(parts) if standardised else strength, noise)

    return on_chosen(images, chosen & bool(settings.noise), change)


def mean(images: Tensor) -> Tensor:
    """float[b, 1, 1, 1]. By rows, then in double precision: the same bits for any batch and number of threads."""
    return images.mean(-1).double().mean((1, 2))[:, None, None, None].to(images)


def deviation(images: Tensor) -> Tensor:
    """Standard deviation of each crop, as `mean` takes it."""
    length: Tensor = torch.linalg.vector_norm(images, dim=-1)
    square = length.double().square().mean((1, 2)) / images.shape[-1]
    variance = square - images.mean(-1).double().mean((1, 2)).square()
    return variance.clamp(min=0).sqrt()[:, None, None, None].to(images)
