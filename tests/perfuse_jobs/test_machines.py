"""Machines come and go, and a training loses no more than the steps since its last checkpoint: none, where it was told before."""

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from perfuse.errors import PerfuseError
from perfuse.recipes import Recipe
from perfuse.training import plan_job
from perfuse.training.checkpoints import latest_step
from perfuse_jobs.workers import Workers

SCRIPT = Path(__file__).with_name("machines.py")


def test_a_training_goes_on_through_all_that_can_happen(tiny: Recipe, scans: Path, tmp_path: Path, s3_url: str) -> None:
    """Its checkpoints are on a real S3."""
    recipe = tiny.model_copy(update={"steps": 200, "validate_every": 200, "checkpoint_every": 200})
    job = plan_job(recipe, str(scans), f"{s3_url}/runs")
    (tmp_path / "job.json").write_text(job.model_dump_json())
    env = {**os.environ, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}  # nodes may be on the loopback
    words = [sys.executable, str(SCRIPT), str(tmp_path / "job.json")]
    ended = subprocess.run(words, env=env, capture_output=True, text=True, timeout=800, check=False)
    assert ended.returncode == 0, ended.stderr
    told = json.loads(ended.stdout.splitlines()[-1])

    happened = [entry.get("event") or entry["ranks"] for entry in told]
    assert happened == [
        *(2, "SIGTERM to rank 1"),
        *(2, "SIGTERM to the driver", "KeyboardInterrupt"),
        *(2, "drain"),
        *(1, "kill -9"),
        1,
    ]
    assert told[0]["first"] == 1
    for entry, start in pairwise(told):
        if "first" in start:
            assert entry["step"] < start["first"], f"{entry}: ranks went on at {start['first']}"
    resumed = [start["first"] - 1 for start in told[1:] if "first" in start]
    assert 0 < resumed[0] < resumed[1] < resumed[2] < resumed[3]
    assert resumed[0] < 200 > resumed[1], "saved when they were told: no checkpoint was due"
    assert latest_step(job.folder) == 200


@pytest.mark.parametrize(("said", "meant"), [("3", Workers(3, 3)), ("2..4", Workers(2, 4))])
def test_workers_are_some_or_between(said: str, meant: Workers) -> None:
    assert Workers.parse(said) == meant
    assert str(meant) == said


@pytest.mark.parametrize("said", ["0", "4..2", "0..2", "2..", "two", "-1"])
def test_other_numbers_of_workers_are_refused(said: str) -> None:
    with pytest.raises(PerfuseError, match=r"--workers .*as 2\.\.4"):
        Workers.parse(said)
