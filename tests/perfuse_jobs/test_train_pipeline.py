"""Ray Data carries the crops, and changes none."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from perfuse import sampling
from perfuse.errors import PerfuseError, RecipeError
from perfuse.recipes import Recipe
from perfuse.training import TrainingJob, plan_job
from perfuse_jobs import distributed, feeding, session
from perfuse_jobs.workers import Workers


@pytest.fixture
def job(tiny: Recipe, scans: Path, tmp_path: Path) -> TrainingJob:
    return plan_job(tiny.model_copy(update={"steps": 11}), str(scans), str(tmp_path))


def crops(job: TrainingJob, rank: int, world: int, first_step: int) -> list[dict[str, Any]]:
    return [step for row in sampling.rows(job, rank, world, first_step) for step in sampling.cut(job, row)]


@pytest.mark.usefixtures("in_process_ray")
@pytest.mark.parametrize("first_step", [0, 5])
def test_ranks_together_are_fed_the_very_crops_of_one_process(job: TrainingJob, first_step: int) -> None:
    expected = crops(job, 0, 1, first_step)
    ranks = [list(feeding.batches(job, rank, 3, first_step)) for rank in range(3)]
    assert [len(steps) for steps in ranks] == [11 - first_step] * 3
    assert [len(steps[0]["image"]) for steps in ranks] == [1, 1, 2]
    for whole, *parts in zip(expected, *ranks, strict=True):
        assert all(part["step"] == whole["step"] for part in parts)
        for name in ("position", "image", "target", "known"):
            np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), whole[name])


@pytest.mark.usefixtures("in_process_ray")
def test_after_the_last_step_there_is_nothing_to_feed(job: TrainingJob) -> None:
    assert list(feeding.batches(job, 0, 1, 11)) == []


def test_more_workers_than_crops_are_refused_before_ray_starts(job: TrainingJob) -> None:
    with pytest.raises(RecipeError, match="batch = 4 cannot be shared by 5 workers"):
        distributed.train_on_ray(job, lambda *_: None, workers=Workers(5, 5))


def test_a_cluster_needs_storage_that_all_nodes_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    session.check_shared("PERFUSE_STORAGE", "a URL")
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.delenv("PERFUSE_STORAGE", raising=False)
    with pytest.raises(PerfuseError, match="PERFUSE_STORAGE must name a URL"):
        session.check_shared("PERFUSE_STORAGE", "a URL")
    monkeypatch.setenv("PERFUSE_STORAGE", "s3://bucket/runs")
    session.check_shared("PERFUSE_STORAGE", "a URL")
