"""Random numbers for a batch of crops, each from the crop's own generator; and changes of only those crops that drew one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

STREAM = 7
"""Sets these numbers apart from those by which a crop is chosen."""

Reals = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Draws:
    """Numbers for each of b crops. All crops draw the same number of times, whatever they do with what they drew."""

    generators: Sequence[np.random.Generator]

    @classmethod
    def at(cls, seed: int, step: int, positions: Sequence[int]) -> "Draws":
        """Of the crops at these positions of a step's global batch."""
        return cls([np.random.default_rng([seed, STREAM, step, int(p)]) for p in positions])

    def spawn(self, count: int) -> "Draws":
        """Draws for b · count planes: those of the first crop, then those of the second, and so on."""
        return Draws([child for generator in self.generators for child in generator.spawn(count)])

    def uniform(self, low: float, high: float, *shape: int) -> Reals:
        """float64[b, *shape], low ≤ x < high."""
        return low + (high - low) * np.stack([g.random(shape) for g in self.generators])

    def integers(self, count: int) -> Integers:
        """int64[b], 0 ≤ i < count."""
        return np.stack([g.integers(count) for g in self.generators])

    def seeds(self) -> Integers:
        """int64[b] for other generators."""
        return self.integers(2**62)

    def chosen(self, chance: float, *shape: int) -> Bools:
        """bool[b, *shape], true with this probability."""
        return self.uniform(0, 1, *shape) < chance


def on_chosen(parts: Tensor, chosen: Bools, change: Callable[[Tensor, Integers], Tensor]) -> Tensor:
    """`parts` [b, …] with the chosen ones replaced by `change(parts[at], at)`; the others keep their bits."""
    at = np.flatnonzero(chosen)
    if len(at) == len(chosen):
        return change(parts, at)
    if not len(at):
        return parts
    index = torch.from_numpy(at).to(parts.device)
    return parts.index_copy(0, index, change(parts[index], at))


def column(values: npt.NDArray[Any], like: Tensor) -> Tensor:
    """float[b, 1, 1, 1], to multiply crops by."""
    return torch.as_tensor(values, dtype=like.dtype, device=like.device).reshape(-1, 1, 1, 1)
