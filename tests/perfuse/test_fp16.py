"""fp16 with scaled gradients, as a GPU trains, on a CPU that computes in it too, slowly."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from perfuse.recipes import load_recipe
from perfuse.training import TrainingJob, checkpoints, engine
from perfuse.training.job import Source

pytestmark = pytest.mark.usefixtures("one_thread")

NET = """
from torch.nn import BatchNorm2d, Conv2d, ReLU, Sequential

class Net(Sequential):
    def __init__(self, in_channels, classes):
        first = Conv2d(in_channels, 4, 3, padding=1)
        super().__init__(first, BatchNorm2d(4), ReLU(), Conv2d(4, classes, 3, padding=1))
"""
SETTINGS = [
    "network.module=net_of_test_fp16:Net",
    "network.planes=1",
    "precision=fp16",
    "crop=32",
    "tile=32",
    "batch=2",
    "steps=16",
    "validate_every=100",
    "learning_rate=3e-2",
    "ema_decay=0.5",
]
RECIPE = load_recipe("quickstart", SETTINGS)


@pytest.fixture(autouse=True)
def _on_a_cpu(tmp_path, monkeypatch) -> None:
    (tmp_path / "net_of_test_fp16.py").write_text(NET)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(engine, "resolve_precision", lambda precision, device: precision)
    monkeypatch.setattr(engine, "validate", lambda job, network: ({"val_score": 0.5}, {}))


def job(tmp_path, name: str) -> TrainingJob:
    source = Source(url="nowhere", specimen="a", donor="a", label="human", scan_digest="", label_digest="")
    folder = str(tmp_path / name)
    return TrainingJob(recipe=RECIPE, train=(source,), validation=(source,), folder=folder, key="", pixel_um=(50, 50))


def batches(first: int, broken: tuple[int, ...] = ()) -> Iterator[dict[str, Any]]:
    """Bright squares on noise; of some batches the first pixel is infinite."""
    for number in range(first, RECIPE.batches):
        rng = np.random.default_rng(number)
        image = rng.normal(0, 0.1, (2, 1, 32, 32)).astype(np.float32)
        image[:, :, 8:20, 8:20] += 1
        target = np.zeros_like(image)
        target[:, :, 8:20, 8:20] = 1
        if number in broken:
            image[0, 0, 0, 0] = np.inf
        place = {"step": np.asarray(number), "position": np.arange(2)}
        yield place | {"image": image, "target": target, "known": np.ones_like(target)}


def trained(made: TrainingJob, stop_at: int = 0, broken: tuple[int, ...] = ()) -> tuple[dict[str, Any], list[float]]:
    losses, seen = [], iter(range(1, 1000))
    engine.train(
        made,
        lambda first: batches(first, broken),
        report=lambda step, metrics, _: losses.append(metrics["loss"]),
        stop=lambda: next(seen) == stop_at,
    )
    state = checkpoints.load(made.folder)
    assert state is not None
    return state, losses


def test_a_network_learns_in_fp16(tmp_path, monkeypatch) -> None:
    kinds = set()
    convolve = torch.nn.Conv2d.forward

    def forward(self: torch.nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
        out = convolve(self, x)
        if self.training:
            kinds.add(out.dtype)
        return out

    monkeypatch.setattr(torch.nn.Conv2d, "forward", forward)
    state, losses = trained(job(tmp_path, "a"))
    assert kinds == {torch.float16}
    assert losses[-1] < 0.5 * losses[0]
    assert state["scaler"]["scale"] >= 1
    assert {v.dtype for v in state["network"].values() if v.is_floating_point()} == {torch.float32}


def test_a_training_in_fp16_goes_on_with_the_scale_that_it_had(tmp_path) -> None:
    """Some of the first steps overflow, so that the scale is not the one that a new training begins with."""
    whole, _ = trained(job(tmp_path, "whole"), broken=(1, 2))
    halted, _ = trained(job(tmp_path, "halted"), stop_at=6, broken=(1, 2))
    assert halted["step"] == 6
    assert halted["scaler"]["scale"] < torch.amp.GradScaler("cpu").get_scale()
    resumed, _ = trained(job(tmp_path, "halted"))
    assert resumed["scaler"] == whole["scaler"]
    for part in ("network", "averaged"):
        for name, value in whole[part].items():
            torch.testing.assert_close(resumed[part][name], value, rtol=0, atol=0)


def test_a_step_that_is_not_finite_moves_nothing_but_the_scale(tmp_path) -> None:
    before, _ = trained(job(tmp_path, "a"), stop_at=6)
    after, _ = trained(job(tmp_path, "a"), stop_at=1, broken=(6,))
    assert (before["step"], after["step"]) == (6, 7)
    assert after["scaler"]["scale"] == before["scaler"]["scale"] / 2
    for part in ("network", "averaged"):
        for name, value in before[part].items():
            torch.testing.assert_close(after[part][name], value, rtol=0, atol=0)
    for number, moments in before["optimiser"]["state"].items():
        for name, value in moments.items():
            torch.testing.assert_close(after["optimiser"]["state"][number][name], value, rtol=0, atol=0)
