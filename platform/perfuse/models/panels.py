"""Panels in, logits of their planes out: what training, inference and serving must do alike around a network."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from perfuse.contract import Network, Standardisation
from perfuse.errors import RecipeError


class Panels(nn.Module):
    """A network that takes float32[b, planes, h, w] and answers logits [b, n, h, w]: class by class, of each its targets.

    Its state is that of the network inside, key for key, so that published weights fit. Raises RecipeError when a network
    of one's own answers in another shape.
    """

    def __init__(self, network: nn.Module, settings: Network) -> None:
        super().__init__()
        self.network = network
        self.settings = settings

    @property
    def encoder(self) -> nn.Module | None:
        """The part that can be pretrained and frozen; None where a network of one's own has no `encoder`."""
        return getattr(self.network, "encoder", None)

    def forward(self, panels: Tensor) -> Tensor:
        """Logits of the planes that are segmented, of the panels' height and width."""
        settings, (count, _, *size) = self.settings, panels.shape
        seen = panels if settings.standardise is None else standardised(panels, settings.standardise)
        if settings.mosaic:
            seen = as_picture(seen)
        picture = seen.shape[-2:]
        if settings.input_scale != 1:
            larger = [round(n * settings.input_scale) for n in picture]
            seen = interpolate(seen, larger, mode="bilinear", align_corners=False)
        logits: Tensor = self.network(seen)
        if settings.input_scale != 1:
            logits = interpolate(logits.float(), picture, mode="bilinear", align_corners=False)
        if settings.mosaic:
            logits = as_planes(logits, settings.planes)
        expected = (count, settings.logits, *size)
        if logits.shape != expected:
            raise RecipeError(
                f"{settings.module} must answer in the shape {expected}; it answers {tuple(logits.shape)}."
            )
        return logits

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """The state of the network inside."""
        state: dict[str, Any] = self.network.state_dict(*args, **kwargs)
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load the state of the network inside."""
        return self.network.load_state_dict(dict(state_dict), strict=strict, assign=assign)


def standardised(panels: Tensor, settings: Standardisation) -> Tensor:
    """Each panel with mean 0 and standard deviation 1 over its planes and pixels, then a leaky clip; a flat one is 0."""
    deviation, mean = torch.std_mean(panels, dim=(1, 2, 3), keepdim=True, correction=0)
    z = (panels - mean) / deviation.clamp(min=1e-6)
    clipped = z.clamp(settings.low, settings.high)
    return clipped + settings.slope * (z - clipped)


def as_picture(panels: Tensor) -> Tensor:
    """[b, n², h, w] → [b, 1, n·h, n·w]: planes side by side, row by row."""
    count, planes, height, width = panels.shape
    side = math.isqrt(planes)
    grid = panels.reshape(count, side, side, height, width).transpose(2, 3)
    return grid.reshape(count, 1, side * height, side * width)


def as_planes(picture: Tensor, planes: int) -> Tensor:
    """[b, c, n·h, n·w] → [b, c · n², h, w]: what `as_picture` laid side by side, of each channel."""
    count, channels, height, width = picture.shape
    side = math.isqrt(planes)
    grid = picture.reshape(count * channels, side, height // side, side, width // side).transpose(2, 3)
    return grid.reshape(count, channels * planes, height // side, width // side)
