"""One, two or three workers of Ray Train: the same crops, the same steps and, without batch statistics, the same weights."""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from perfuse.recipes import Phase, Recipe
from perfuse.recipes.schema import Loss
from perfuse.training import TrainingJob, checkpoints, is_finished, plan_job
from perfuse.training.state import State
from perfuse_jobs import distributed, ranks
from perfuse_jobs.workers import Workers

CONVERGING = {"steps": 100, "validate_every": 100, "converged": 0.99, "schedule": [Phase(kind="constant", share=1)]}
COMPARABLE = {"losses": [Loss(kind="bce")], "optimiser": "sgd", "learning_rate": 0.01, "precision": "fp32"}
"""A loss that is a mean over voxels, and no division by gradients that are mere rounding."""


def noting(run_rank: Callable[[Any], None], notes: str) -> Callable[[Any], None]:
    """The same function, which notes each step's augmented crops and loss; of no module, so that Ray sends it as it is."""

    def noted(config: Any) -> None:
        import hashlib
        import os

        import ray.train

        from perfuse.training import engine
        from perfuse.training.convergence import Course

        os.cpu_count = lambda: 1  # type: ignore[assignment] # so small a network is slower on more threads
        normal = torch.nn.modules.batchnorm._BatchNorm
        normal.train = lambda self, mode=True: torch.nn.Module.train(self, False)  # type: ignore[method-assign]
        augment, step = engine.augment, Course.step
        place = Path(notes, str(ray.train.get_context().get_world_rank()))

        def augmented(image: Any, *words: Any, **more: Any) -> Any:
            crops = augment(image, *words, **more)
            parts = [b"".join(part.numpy().tobytes() for part in crop) for crop in zip(*crops, strict=True)]
            note([hashlib.sha256(part).hexdigest() for part in parts])
            return crops

        def stepped(self: Course, loss: torch.Tensor) -> None:
            note(float(loss))
            step(self, loss)

        def note(value: Any) -> None:
            with place.open("a") as file:
                file.write(json.dumps(value) + "\n")

        engine.augment, Course.step = augmented, stepped  # type: ignore[assignment,method-assign]
        run_rank(config)

    return noted


@dataclass(frozen=True)
class Trained:
    """What a training has seen and made."""

    crops: list[Counter[str]]
    """Of each step, of all ranks together."""
    losses: torch.Tensor
    weights: torch.Tensor


def trained(job: TrainingJob, world: int, notes: Path, monkeypatch: pytest.MonkeyPatch) -> Trained:
    notes.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(ranks, "run_rank", noting(ranks.run_rank, str(notes)))
        distributed.train_on_ray(job, lambda *_: None, workers=Workers(world, world))
    assert is_finished(job)
    told = [[json.loads(line) for line in (notes / str(rank)).read_text().splitlines()] for rank in range(world)]
    assert len({len(values) for values in told}) == 1, "all ranks took as many steps"
    crops = [sum(map(Counter, step), Counter()) for step in zip(*(values[::2] for values in told), strict=True)]
    return Trained(crops, torch.tensor(told[0][1::2]), weights_of(checkpoints.load(job.folder)))


def weights_of(state: Any) -> torch.Tensor:
    """All in a row."""
    return torch.cat([weights.double().ravel() for weights in state["network"].values()])


@pytest.mark.usefixtures("in_process_ray")
def test_any_number_of_workers_makes_the_same_of_the_same_crops(
    tiny: Recipe, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three share a batch of four unevenly. All end when the loss of all of them has converged, with more data on its way."""
    recipe = tiny.changed(**CONVERGING, **COMPARABLE)
    jobs = {world: plan_job(recipe, str(scans), str(tmp_path / str(world))) for world in (1, 2, 3)}
    alone, *others = [trained(job, world, tmp_path / f"notes-{world}", monkeypatch) for world, job in jobs.items()]
    torch.manual_seed(recipe.seed)
    learnt = alone.weights - weights_of(State(jobs[1], None, "cpu", "fp32").as_dict())

    assert len(alone.crops) == 20, "the second of ten windows was no better"
    assert len(sum(alone.crops, Counter())) == 20 * 4
    for together in others:
        assert together.crops == alone.crops
        torch.testing.assert_close(together.losses, alone.losses, rtol=1e-4, atol=0)
        difference = (together.weights - alone.weights).norm()
        assert difference < 1e-3 * learnt.norm()
