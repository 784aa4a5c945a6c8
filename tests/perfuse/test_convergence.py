"""When a training's constant phases end: against PyTorch's ReduceLROnPlateau, and the same however it is interrupted."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from perfuse.errors import RecipeError
from perfuse.recipes import Phase, Recipe, load_recipe
from perfuse.training.convergence import Course
from perfuse.training.optimisation import learning_rate, phase_at

FLAT = (
    Phase(kind="linear", share=0.1, start=0.1),
    Phase(kind="constant", share=0.6),
    Phase(kind="cosine", share=0.3, end=0.01),
)


def recipe(**fields) -> Recipe:
    return Recipe(name="r", **{"steps": 100, "schedule": FLAT, "converged": 0.01, **fields})


def taken(made: Recipe, losses) -> tuple[list[int], Course]:
    """The positions of the steps that are taken."""
    course, positions = Course(made), []
    for loss in losses:
        if course.finished:
            break
        positions.append(course.position)
        course.step(torch.tensor(loss))
    return positions, course


def test_the_decay_follows_when_the_loss_stands_still() -> None:
    """Warm-up to 9, constant from 10: windows of ten steps. The loss falls to that of the third, and is judged after the fourth."""
    made = recipe()
    first = next(p for p in range(100) if phase_at(made, p)[0] == 1)
    decay = next(p for p in range(100) if phase_at(made, p)[0] == 2)
    losses = [1.0] * first + [0.9] * 10 + [0.5] * 10 + [0.4] * 10 + [0.399] * 10 + [0.3] * 100
    positions, course = taken(made, losses)
    assert positions == [*range(first + 40), *range(decay, 100)]
    assert course.finished
    rates = [learning_rate(made, p) for p in positions]
    assert rates[first + 40 :] == [learning_rate(made, p) for p in range(decay, 100)]
    assert rates[-1] == pytest.approx(0.01 * made.learning_rate)


def test_a_loss_that_falls_takes_all_steps_and_so_does_a_recipe_that_does_not_ask() -> None:
    falling = [2.0 * 0.99**k for k in range(100)]
    assert taken(recipe(), falling)[0] == list(range(100))
    assert taken(recipe(converged=None), [1.0] * 100)[0] == list(range(100))
    assert taken(recipe(), [math.nan] * 100)[0] == list(range(100))


def test_a_training_ends_where_nothing_follows_the_constant_phase() -> None:
    positions, course = taken(recipe(schedule=(Phase(kind="constant", share=1),)), [1.0] * 100)
    assert positions == list(range(20))
    assert course.position == 100


def test_what_may_be_noise_is_no_standstill() -> None:
    """Windows of ten losses m ± s have the standard error s / 3: the second is worse by 0.1, sure if that is 2 √2 of these."""
    made = recipe(schedule=(Phase(kind="constant", share=1),))
    for spread, steps in ((0.03, 20), (0.1, 20), (0.12, 100), (0.5, 100)):
        swings = [spread, -spread] * 5
        falling = [0.3 * 0.9**k for k in range(8) for _ in range(10)]
        positions, _ = taken(made, [*(1 + s for s in swings), *(1.1 + s for s in swings), *falling])
        assert (len(positions) > 20) == (steps > 20), spread


def test_each_constant_phase_is_judged_by_itself() -> None:
    stages = tuple(Phase(kind="constant", share=1, start=10.0**-k) for k in range(3))
    made = recipe(steps=300, schedule=stages)
    losses = [1.0] * 60 + [5.0] * 30 + [4.0] * 30 + [4.0] * 30 + [1.0] * 300
    positions, _ = taken(made, losses)
    rates = [learning_rate(made, p) / made.learning_rate for p in positions]
    assert rates == pytest.approx([1.0] * 60 + [0.1] * 90 + [0.01] * 60)


@settings(deadline=None)
@given(st.lists(st.floats(0.01, 10), min_size=10, max_size=10), st.floats(0.001, 0.5))
def test_it_is_judged_as_torch_judges_a_plateau(means, share) -> None:
    """One long constant phase of ten windows of five steps; torch is told the mean of each."""
    made = recipe(steps=50, schedule=(Phase(kind="constant", share=1),), converged=share)
    losses = np.repeat(np.float32(means), 5)
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 1.0)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimiser, patience=0, threshold=share, factor=0.1)
    windows = 0
    while optimiser.param_groups[0]["lr"] == 1 and windows < 10:
        course = [torch.tensor(x) for x in losses[5 * windows : 5 * windows + 5]]
        plateau.step(float(sum(course)) / 5)
        windows += 1
    assert len(taken(made, losses)[0]) == 5 * windows


@settings(deadline=None)
@given(st.lists(st.floats(-1, 10, width=32), min_size=100, max_size=100), st.integers(0, 99))
def test_a_course_that_is_saved_and_taken_up_is_the_same(losses, at) -> None:
    made = recipe(converged=0.2)
    whole, _ = taken(made, losses)
    course, positions = Course(made), []
    for number, loss in enumerate(losses):
        if course.finished:
            break
        if number == at:
            course = Course(made, course.as_dict())
        positions.append(course.position)
        course.step(torch.tensor(loss))
    assert positions == whole


@pytest.mark.parametrize(
    "schedule", ["[{kind: cosine, share: 1}]", "[{kind: linear, share: 9}, {kind: constant, share: 2}]"]
)
def test_a_schedule_without_a_constant_phase_cannot_converge(schedule: str) -> None:
    with pytest.raises(RecipeError, match=r"converged compares tenths.*none of two tenths: e.g. schedule="):
        load_recipe("quickstart", [f"schedule={schedule}", "converged=0.01"])
    load_recipe("sennet_13th", ["converged=0.01"])
