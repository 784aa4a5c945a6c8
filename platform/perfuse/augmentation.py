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
    image, target, known = _turn(image, target, known, settings, rng)
    if rng.random() < settings.warp.chance:
        low, high = np.log(settings.warp.scale)
        image, target, known = _zoom(image, target, known, float(np.exp(rng.uniform(low, high))))
    return _intensity(image, settings, rng), np.ascontiguousarray(target), np.ascontiguousarray(known)


def _turn(
    image: Planes, target: Planes, known: Planes, settings: "Augmentation", rng: np.random.Generator
) -> tuple[Planes, Planes, Planes]:
    turns = int(rng.integers(4)) if rng.random() < settings.quarter_turns else 0
    rows, columns, reverse = rng.random(3) < settings.flips
    image, target, known = (np.rot90(part, turns, (1, 2)) for part in (image, target, known))
    mirrored = (slice(None), slice(None, None, -1 if rows else 1), slice(None, None, -1 if columns else 1))
    image, target, known = (part[mirrored] for part in (image, target, known))
    return image[::-1] if reverse else image, target, known


def _zoom(image: Planes, target: Planes, known: Planes, factor: float) -> tuple[Planes, Planes, Planes]:
    """Scale about the centre; bilinear for the image, nearest for the label. Beyond the crop: mirrored, unknown."""
    n = image.shape[-1]
    at = (np.arange(n) - (n - 1) / 2) / factor + (n - 1) / 2
    inside = (at >= 0) & (at <= n - 1)
    at = np.abs(at)
    at = np.minimum(at, 2 * (n - 1) - at)
    low = np.minimum(at.astype(np.intp), n - 2)
    share = (at - low).astype(np.float32)
    rows = image[:, low] + share[:, None] * (image[:, low + 1] - image[:, low])
    scaled = rows[:, :, low] + share * (rows[:, :, low + 1] - rows[:, :, low])
    nearest = np.ix_([0], np.rint(at).astype(np.intp), np.rint(at).astype(np.intp))
    return scaled, target[nearest], known[nearest] * np.outer(inside, inside)


def _intensity(image: Planes, settings: "Augmentation", rng: np.random.Generator) -> Planes:
    contrast, brightness = np.float32([settings.contrast, settings.brightness]) * rng.uniform(-1, 1, 2).astype(
        np.float32
    )
    power = (1 + settings.gamma) ** rng.uniform(-1, 1)
    deviation = np.float32(settings.noise * rng.random())
    varied: Planes = image + (contrast * (image - image.mean()) + brightness)
    inside = (varied > 0) & (varied < 1)
    varied[inside] **= np.float32(power)
    varied += deviation * rng.standard_normal(image.shape, np.float32)
    return varied
