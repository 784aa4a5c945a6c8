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


def phase_at(recipe: Recipe, position: int) -> tuple[int, float]:
    """The number of the schedule's phase at a position, 0 … steps − 1, and how much of it is over, 0 … 1."""
    total = sum(phase.share for phase in recipe.schedule)
    at = position / max(recipe.steps - 1, 1) * total
    number, last = 0, len(recipe.schedule) - 1
    while number < last and at > recipe.schedule[number].share:
        at -= recipe.schedule[number].share
        number += 1
    return number, min(at / recipe.schedule[number].share, 1.0)


def learning_rate(recipe: Recipe, position: int) -> float:
    """The rate at a position, 0 … steps − 1: through the phases of the schedule, each from its start to its end."""
    number, part = phase_at(recipe, position)
    phase = recipe.schedule[number]
    if phase.kind == "cosine":
        part = (1 - math.cos(math.pi * part)) / 2
    elif phase.kind == "constant":
        part = 0.0
    return recipe.learning_rate * (phase.start + part * (phase.end - phase.start))
