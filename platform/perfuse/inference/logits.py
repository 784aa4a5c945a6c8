"""Logits and probabilities as int16 fixed point: blending weights, fusion over axes and members, and the one rounding to uint8."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from itertools import repeat
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from perfuse.contract import Blend, Forward, Fusion, Window

ONE = 1024
"""A logit of 1, in fixed point."""
LIMIT = 16
"""Logits are clamped to ± this: a probability of 1 − 10⁻⁷."""
P_ONE = 64
"""A probability of 1/255, in fixed point."""
BACKGROUND: dict[Blend, int] = {"logit": -LIMIT * ONE, "probability": 0}
"""The least that there is."""
GAUSSIAN = 1 / 8
"""Standard deviation of the Gaussian window, in tiles."""

Logits = npt.NDArray[np.int16]
"""Of a blend: logits, or probabilities."""


@cache
def window(kind: Window, tile: int) -> npt.NDArray[np.int32]:
    """Integer weights [tile, tile] of the pixels of a tile; none is 0, at most 1024. Of max: 1, for none is weighed."""
    if kind in ("mean", "max"):
        return np.ones((tile, tile), np.int32)
    at = (np.arange(tile) + 0.5) / tile
    line = np.sin(np.pi * at) ** 2 if kind == "hann" else np.exp(-(((at - 0.5) / GAUSSIAN) ** 2) / 2)
    whole = np.maximum(np.rint(32 * line), 1).astype(np.int32)
    return np.asarray(whole[:, None] * whole[None, :])


def divide(total: npt.NDArray[Any], weight: npt.NDArray[Any] | int) -> npt.NDArray[Any]:
    """Integer mean, rounded half up: the same whatever order the total was added in."""
    return np.asarray((total + weight // 2) // weight)


@dataclass(frozen=True)
class Seen:
    """What a member saw of a box: the sum over its axes, and by what to divide it."""

    total: npt.NDArray[np.int32]
    weight: int
    blend: Blend

    @classmethod
    def of(cls, forward: Forward, axes: Iterable[Logits]) -> Self:
        """The mean, weighted mean or maximum over axes, in the order of the contract."""
        seen = list(axes)
        if forward.axis_fusion == "max":
            return cls(np.maximum.reduce(seen).astype(np.int32), 1, forward.blend)
        weights = forward.axis_weights or (1,) * len(seen)
        total = np.zeros(seen[0].shape, np.int32)
        for part, weight in zip(seen, weights, strict=True):
            total += part if weight == 1 else part * np.int32(weight)
        return cls(total, sum(weights), forward.blend)

    def as_(self, blend: Blend, temperature: float = 1.0) -> "Seen":
        """In another blend, or logits that are divided by a temperature; rounded, unless nothing changes."""
        if blend == self.blend and (temperature == 1 or blend == "probability"):
            return self
        values = divide(self.total, self.weight)
        table = _converted(self.blend, blend, temperature)
        return Seen(table[values - BACKGROUND[self.blend]], 1, blend)


@cache
def _converted(given: Blend, wanted: Blend, temperature: float) -> npt.NDArray[np.int32]:
    """By the steps of `given` above its least: the value in `wanted`."""
    if given == "logit":
        logits = [v / ONE / temperature for v in range(-LIMIT * ONE, LIMIT * ONE + 1)]
    else:
        shares = [min(max(v / (255 * P_ONE), 1e-7), 1 - 1e-7) for v in range(255 * P_ONE + 1)]
        logits = [math.log(p / (1 - p)) / temperature for p in shares]
    if wanted == "logit":
        return np.array([math.floor(max(-LIMIT, min(v, LIMIT)) * ONE + 0.5) for v in logits], np.int32)
    return np.array([math.floor(255 * P_ONE / (1 + math.exp(-v)) + 0.5) for v in logits], np.int32)


@cache
def _table() -> npt.NDArray[np.uint8]:
    fixed = np.arange(-LIMIT * ONE, LIMIT * ONE + 1) / ONE
    return np.array([math.floor(255 / (1 + math.exp(-v)) + 0.5) for v in fixed], np.uint8)


def fuse(members: Iterable[Seen], fusion: Fusion | None = None) -> npt.NDArray[np.uint8]:
    """Mean over members of what each one saw, then the probability as uint8: round(255 · p).

    Without weights members that see one, two or three axes count alike; the sum is of integers, and rounded once, unless
    a member blends in other terms than the fusion, or is read at a temperature. One member at a time is held.
    """
    fusion = fusion or Fusion()
    weights, temperatures = repeat(1), repeat(1.0)
    total: npt.NDArray[Any] = np.zeros((), np.int32)
    counted, common = 0, 1
    blend = fusion.average
    counts = zip(fusion.weights or weights, fusion.temperatures or temperatures, strict=False)
    for seen, (weight, temperature) in zip(members, counts, strict=False):
        blend = blend or seen.blend
        part = seen.as_(blend, temperature)
        wider = math.lcm(common, part.weight)
        kind = np.int32 if wider * (counted + weight) * LIMIT * ONE < 2**31 else np.int64
        total = total.astype(kind) * np.asarray(wider // common, kind)
        total = total + part.total.astype(kind) * np.asarray(wider // part.weight * weight, kind)
        counted, common = counted + weight, wider
    if blend == "probability":
        return divide(total, counted * common * P_ONE).astype(np.uint8)
    return np.asarray(_table()[divide(total, counted * common) + LIMIT * ONE])
