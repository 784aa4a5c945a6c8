"""Variations of a crop: a pure function of the crop, the settings and a random generator."""

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from perfuse.recipes import Augmentation

Planes = npt.NDArray[np.float32]


def augment(
    image: Planes, target: Planes, known: Planes, settings: "Augmentation", rng: np.random.Generator
) -> tuple[Planes, Planes, Planes]:
    """One variation of a crop.

    image: float32[planes, n, n], 0 … 1 between the percentiles; target, known: float32[1, n, n].
    """
    if settings.flip_and_turn:
        image, target, known = _turn(image, target, known, rng)
    return _intensity(image, settings, rng), np.ascontiguousarray(target), np.ascontiguousarray(known)


def _turn(image: Planes, target: Planes, known: Planes, rng: np.random.Generator) -> tuple[Planes, Planes, Planes]:
    turns, mirror, reverse = int(rng.integers(4)), bool(rng.integers(2)), bool(rng.integers(2))
    image, target, known = (np.rot90(part, turns, (1, 2)) for part in (image, target, known))
    if mirror:
        image, target, known = (part[..., ::-1] for part in (image, target, known))
    return image[::-1] if reverse else image, target, known


def _intensity(image: Planes, settings: "Augmentation", rng: np.random.Generator) -> Planes:
    contrast, brightness = 1 + settings.intensity * rng.uniform(-1, 1, 2)
    power = (1 + settings.gamma) ** rng.uniform(-1, 1)
    deviation = np.float32(settings.noise * rng.random())
    mean = image.mean()
    varied = (image - mean) * np.float32(contrast) + mean + np.float32(brightness - 1)
    inside = (varied > 0) & (varied < 1)
    varied[inside] **= np.float32(power)
    return varied + deviation * rng.standard_normal(image.shape, np.float32)
