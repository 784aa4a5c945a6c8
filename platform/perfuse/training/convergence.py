"""How far a training is in its schedule: constant phases end early when its loss has converged in them."""

import math
from bisect import bisect_left
from typing import TYPE_CHECKING, Any

from perfuse.recipes import Recipe
from perfuse.recipes.schema import WINDOW
from perfuse.training.optimisation import phase_at

if TYPE_CHECKING:
    from torch import Tensor


class Course:
    """The position of the next step in the recipe's schedule; a pure function of the losses that it was told.

    Without `converged` it is the number of steps taken. With it, a constant phase ends after the first window of steps whose
    mean loss does not lie by that share below the lowest window of the phase, as in PyTorch's ReduceLROnPlateau with
    patience 0; the steps that are left of the phase are passed over.
    """

    def __init__(self, recipe: Recipe, saved: dict[str, Any] | None = None) -> None:
        """saved: what `as_dict` gave, to go on from there."""
        self._recipe = recipe
        self._window = max(1, round(WINDOW * recipe.steps))
        known = saved or {"position": 0, "lowest": math.inf, "sum": 0.0, "count": 0}
        self.position: int = known["position"]
        self._lowest: float = known["lowest"]
        self._sum: Tensor | float = known["sum"]
        self._count: int = known["count"]

    @property
    def finished(self) -> bool:
        """True at the end of the schedule."""
        return self.position >= self._recipe.steps

    def step(self, loss: "Tensor | float") -> None:
        """A step was taken; loss: its mean over all ranks, looked at once a window."""
        phase, _ = phase_at(self._recipe, self.position)
        self.position += 1
        if self._recipe.converged is None or self._recipe.schedule[phase].kind != "constant":
            return
        self._sum, self._count = self._sum + loss, self._count + 1
        if self._count == self._window:
            self._judge(phase, float(self._sum) / self._count)
            self._sum, self._count = 0.0, 0
        if self.finished or phase_at(self._recipe, self.position)[0] != phase:
            self._lowest, self._sum, self._count = math.inf, 0.0, 0

    def _judge(self, phase: int, mean: float) -> None:
        if mean >= self._lowest - (self._recipe.converged or 0) * abs(self._lowest):
            steps = range(self._recipe.steps)
            self.position = bisect_left(steps, phase + 1, key=lambda step: phase_at(self._recipe, step)[0])
        self._lowest = min(self._lowest, mean)

    def as_dict(self) -> dict[str, Any]:
        """All that it needs to go on, as plain values."""
        return {"position": self.position, "lowest": self._lowest, "sum": float(self._sum), "count": self._count}
