"""How far a training is in its schedule: constant phases end early when its loss has converged in them."""

import math
from bisect import bisect_left
from typing import Any

import torch

from perfuse.recipes import Recipe
from perfuse.recipes.schema import WINDOW
from perfuse.training.optimisation import phase_at

NOISE = 2
"""Standard errors by which a standstill must be seen; losses of few steps are too noisy for that, and then all are taken."""


class Course:
    """The position of the next step in the recipe's schedule; a pure function of the losses that it was told.

    Without `converged` it is the number of steps taken. With it, a constant phase ends after the first window of steps whose
    mean loss does not lie by that share below the lowest window of the phase, as in PyTorch's ReduceLROnPlateau with
    patience 0, and this by `NOISE` standard errors of their difference; the steps left of the phase are passed over.
    """

    def __init__(self, recipe: Recipe, saved: dict[str, Any] | None = None) -> None:
        """saved: what `as_dict` gave, to go on from there."""
        self._recipe = recipe
        self._window = max(2, round(WINDOW * recipe.steps))
        known = saved or {"position": 0, "lowest": (math.inf, 0.0), "losses": []}
        self.position: int = known["position"]
        self._lowest: tuple[float, float] = tuple(known["lowest"])
        self._losses: list[float] = list(known["losses"])
        self._untold: list[torch.Tensor] = []

    @property
    def finished(self) -> bool:
        """True at the end of the schedule."""
        return self.position >= self._recipe.steps

    def step(self, loss: torch.Tensor) -> None:
        """A step was taken; loss: its mean over all ranks, looked at once a window."""
        phase, _ = phase_at(self._recipe, self.position)
        self.position += 1
        if self._recipe.converged is None or self._recipe.schedule[phase].kind != "constant":
            return
        self._untold.append(loss)
        if len(self._losses) + len(self._untold) == self._window:
            self._judge(phase, self._told())
            self._losses = []
        if self.finished or phase_at(self._recipe, self.position)[0] != phase:
            self._lowest, self._losses, self._untold = (math.inf, 0.0), [], []

    def _told(self) -> list[float]:
        """The losses of the window, as numbers: here the device is waited for."""
        self._losses += [float(loss) for loss in self._untold]
        self._untold = []
        return self._losses

    def _judge(self, phase: int, losses: list[float]) -> None:
        deviation, mean = (float(x) for x in torch.std_mean(torch.tensor(losses, dtype=torch.float64)))
        error = deviation / math.sqrt(len(losses))
        lowest, its_error = self._lowest
        fallen = lowest - (self._recipe.converged or 0) * abs(lowest)
        if mean - NOISE * math.hypot(error, its_error) >= fallen:
            steps = range(self._recipe.steps)
            self.position = bisect_left(steps, phase + 1, key=lambda step: phase_at(self._recipe, step)[0])
        if mean < lowest:
            self._lowest = (mean, error)

    def as_dict(self) -> dict[str, Any]:
        """All that it needs to go on, as plain values."""
        return {"position": self.position, "lowest": self._lowest, "losses": list(self._told())}
