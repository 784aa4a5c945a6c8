"""Optimiser and learning rate, as a recipe states them."""

import math
from collections.abc import Iterable

import torch

from perfuse.recipes import Recipe


def optimiser(recipe: Recipe, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """The recipe's optimiser over parameters; its learning rate is set before each step."""
    rate, decay = recipe.learning_rate, recipe.weight_decay
    if recipe.optimiser == "sgd":
        nesterov = recipe.momentum > 0
        return torch.optim.SGD(parameters, rate, momentum=recipe.momentum, weight_decay=decay, nesterov=nesterov)
    if recipe.optimiser == "radam":
        return torch.optim.RAdam(parameters, rate, weight_decay=decay, decoupled_weight_decay=True)
    return torch.optim.AdamW(parameters, rate, weight_decay=decay)


def learning_rate(recipe: Recipe, step: int) -> float:
    """The rate of a step, 0 … steps − 1: through the phases of the schedule, each from its start to its end."""
    total = sum(phase.share for phase in recipe.schedule)
    at = step / max(recipe.steps - 1, 1) * total
    for phase in recipe.schedule:
        if at <= phase.share or phase is recipe.schedule[-1]:
            break
        at -= phase.share
    part = min(at / phase.share, 1.0)
    if phase.kind == "cosine":
        part = (1 - math.cos(math.pi * part)) / 2
    elif phase.kind == "constant":
        part = 0.0
    return recipe.learning_rate * (phase.start + part * (phase.end - phase.start))
