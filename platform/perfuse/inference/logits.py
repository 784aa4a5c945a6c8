"""Logits as int16 fixed point: blending weights, fusion over axes, and the one rounding to uint8."""

import math
from functools import cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

ONE = 1024
"""A logit of 1, in fixed point."""
LIMIT = 16
"""Logits are clamped to ± this: a probability of 1 − 10⁻⁷."""

Logits = npt.NDArray[np.int16]


@cache
def window(kind: Literal["mean", "hann"], tile: int) -> npt.NDArray[np.int32]:
    """Integer weights [tile, tile] of the pixels of a tile; none is 0, at most 1024."""
    if kind == "mean":
        return np.ones((tile, tile), np.int32)
    line = np.maximum(np.rint(32 * np.sin(np.pi * (np.arange(tile) + 0.5) / tile) ** 2), 1).astype(np.int32)
    return np.asarray(line[:, None] * line[None, :])


def divide(total: npt.NDArray[Any], weight: npt.NDArray[Any] | int) -> npt.NDArray[Any]:
    """Integer mean, rounded half up: the same whatever order the total was added in."""
    return np.asarray((total + weight // 2) // weight)


@cache
def _table() -> npt.NDArray[np.uint8]:
    fixed = np.arange(-LIMIT * ONE, LIMIT * ONE + 1) / ONE
    return np.array([math.floor(255 / (1 + math.exp(-v)) + 0.5) for v in fixed], np.uint8)


def fuse(logits: list[Logits]) -> npt.NDArray[np.uint8]:
    """Mean over members or axes, then the probability as uint8: round(255 · sigmoid)."""
    total = np.zeros(logits[0].shape, np.int32)
    for part in logits:
        total += part
    return np.asarray(_table()[divide(total, len(logits)) + LIMIT * ONE])
