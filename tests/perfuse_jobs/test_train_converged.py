"""Trainings that end by convergence, on Ray."""

from pathlib import Path

import pytest

from perfuse.recipes import Phase, Recipe
from perfuse.training import is_finished, plan_job
from perfuse.training.checkpoints import latest_step
from perfuse_jobs import distributed
from perfuse_jobs.workers import Workers


@pytest.mark.usefixtures("in_process_ray")
def test_workers_end_together_when_the_loss_has_converged(tiny: Recipe, scans: Path, tmp_path: Path) -> None:
    """Half of each batch is theirs, and of the data more is on its way than they take."""
    schedule = (Phase(kind="constant", share=1),)
    job = plan_job(
        tiny.changed(steps=100, validate_every=100, schedule=schedule, converged=0.99), str(scans), str(tmp_path)
    )
    steps: list[int] = []
    distributed.train_on_ray(job, lambda step, *_: steps.append(step), workers=Workers(2, 2))
    assert is_finished(job)
    assert latest_step(job.folder) == steps[-1] == 20, "the second of ten windows was not a hundredth of the first"
