"""The learning rate's schedule against torch's own, and what the optimisers are."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from perfuse.recipes import Phase, Recipe
from perfuse.training.optimisation import learning_rate, optimiser


def recipe(**fields) -> Recipe:
    return Recipe(name="r", **fields)


def rates(scheduler: torch.optim.lr_scheduler.LRScheduler, steps: int) -> list[float]:
    found = []
    for _ in range(steps):
        found.append(scheduler.get_last_lr()[0])
        scheduler.optimizer.step()
        if len(found) < steps:
            scheduler.step()
    return found


def sgd(rate: float) -> torch.optim.SGD:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], rate)


def test_two_cosine_phases_are_one_cycle() -> None:
    steps = 101
    phases = (Phase(kind="cosine", share=0.3, start=0.04, end=1), Phase(kind="cosine", share=0.7, start=1, end=4e-6))
    made = recipe(steps=steps, learning_rate=2e-3, schedule=phases)
    golden = torch.optim.lr_scheduler.OneCycleLR(
        sgd(1), 2e-3, total_steps=steps, pct_start=31 / 101, div_factor=25, final_div_factor=1e4, cycle_momentum=False
    )
    assert [learning_rate(made, s) for s in range(steps)] == pytest.approx(rates(golden, steps), rel=1e-6)


def test_one_cosine_phase_is_cosine_annealing() -> None:
    made = recipe(steps=41, learning_rate=3e-4, schedule=(Phase(kind="cosine", share=1, end=0.1),))
    golden = torch.optim.lr_scheduler.CosineAnnealingLR(sgd(3e-4), T_max=40, eta_min=3e-5)
    assert [learning_rate(made, s) for s in range(41)] == pytest.approx(rates(golden, 41), rel=1e-6)


def test_one_linear_phase_is_a_linear_schedule() -> None:
    made = recipe(steps=21, learning_rate=0.1, schedule=(Phase(kind="linear", share=1, start=0.05),))
    golden = torch.optim.lr_scheduler.LinearLR(sgd(0.1), start_factor=0.05, total_iters=20)
    assert [learning_rate(made, s) for s in range(21)] == pytest.approx(rates(golden, 21), rel=1e-6)


@given(
    st.lists(st.tuples(st.floats(0.1, 5), st.floats(0, 2), st.floats(0, 2)), min_size=1, max_size=4),
    st.integers(1, 300),
)
def test_rates_stay_between_the_ends_of_their_phases_and_shares_need_no_sum(phases, steps) -> None:
    made = recipe(steps=steps, schedule=tuple(Phase(kind="cosine", share=s, start=a, end=b) for s, a, b in phases))
    scaled = recipe(
        steps=steps, schedule=tuple(Phase(kind="cosine", share=7 * s, start=a, end=b) for s, a, b in phases)
    )
    ends = [e * made.learning_rate for _, a, b in phases for e in (a, b)]
    for step in {0, steps // 2, steps - 1}:
        assert min(ends) - 1e-12 <= learning_rate(made, step) <= max(ends) + 1e-12
        assert learning_rate(scaled, step) == pytest.approx(learning_rate(made, step), abs=1e-9)
    assert learning_rate(made, 0) == made.learning_rate * phases[0][1]


@pytest.mark.parametrize(
    ("name", "golden"),
    [
        ("adamw", lambda p: torch.optim.AdamW(p, 0.1, weight_decay=0.2)),
        ("radam", lambda p: torch.optim.RAdam(p, 0.1, weight_decay=0.2, decoupled_weight_decay=True)),
        ("sgd", lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True, weight_decay=0.2)),
    ],
)
def test_an_optimiser_is_torchs_own_by_name(name: str, golden) -> None:
    ways = []
    for make in (lambda p: optimiser(recipe(optimiser=name, learning_rate=0.1, weight_decay=0.2), p), golden):
        parameter = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
        made = make([parameter])
        for _ in range(7):
            made.zero_grad()
            (parameter**2).sum().backward()
            made.step()
        ways.append(parameter.detach())
    torch.testing.assert_close(ways[0], ways[1], rtol=0, atol=0)
