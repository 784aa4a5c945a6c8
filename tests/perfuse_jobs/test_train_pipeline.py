"""Ray Data carries the crops, and changes none."""

import json
import os
import subprocess
import sys
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


TWO_KINDS = """
import json, sys
import ray
from ray.cluster_utils import Cluster
from perfuse.training import TrainingJob
from perfuse_jobs import feeding

node = {"num_cpus": 9, "object_store_memory": 100_000_000, "node_ip_address": "127.0.0.1"}
cluster = Cluster(initialize_head=True, head_node_args=node | {"num_gpus": 1, "include_dashboard": False})
ray.init(cluster.address, logging_level="error", log_to_driver=False)
cut = feeding._cut

def noted(row, job):
    for batch in cut(row, job):
        yield batch | {"node": [ray.get_runtime_context().get_node_id()]}

feeding._cut = noted

def nodes_that_cut():
    job = TrainingJob.model_validate_json(sys.argv[1])
    return sorted({batch["node"] for batch in feeding.batches(job, 0, 1, 0)})

gpu = ray.get_runtime_context().get_node_id()
alone, room_alone = nodes_that_cut(), feeding._room(1)[0]
cpu = cluster.add_node(**node | {"num_cpus": 13}).node_id
rooms = [feeding._room(world)[0] for world in (1, 2, 100)]
told = {"alone": alone, "both": nodes_that_cut(), "gpu": gpu, "cpu": cpu, "cutters": [room_alone, *rooms]}
ray.shutdown()
cluster.shutdown()
print(json.dumps(told))
"""


def test_crops_are_cut_on_nodes_without_gpus_where_there_are_some(job: TrainingJob) -> None:
    """And by as many processes as half of the CPUs there, between 2 and 8 for each rank."""
    env = {**os.environ, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}  # nodes may be on the loopback
    words = [sys.executable, "-c", TWO_KINDS, job.changed(recipe=job.recipe.changed(steps=100)).model_dump_json()]
    ended = subprocess.run(words, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stderr
    told = json.loads(ended.stdout.splitlines()[-1])
    assert told["alone"] == [told["gpu"]]
    assert told["both"] == [told["cpu"]]
    assert told["cutters"] == [4, 6, 3, 2]


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
