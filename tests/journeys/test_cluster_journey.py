"""The main job on a cluster: every verb a Ray job, scans on s3://, runs in MLflow on PostgreSQL.

Two Ray nodes, Ceph and PostgreSQL are real; the network is small, and so are the organs.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.journey, pytest.mark.timeout(900)]

LABELLED, UNLABELLED, VALIDATION, TEST = "organ-a", "organ-b", "organ-c", "organ-d"
SMALL = {
    "network.encoder": "tu-test_resnet",
    "network.decoder_channels": "32,16,16,8,8",
    "network.planes": "3",
    "crop": "64",
    "tile": "64",
    "batch": "8",
    "steps": "60",
    "validate_every": "30",
    "learning_rate": "5e-3",
}


def perfuse(*words: str | Path) -> subprocess.CompletedProcess[str]:
    ended = subprocess.run(
        [sys.executable, "-m", "perfuse.cli", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert ended.returncode == 0, f"{words}\n{ended.stdout}\n{ended.stderr}"
    return ended


def submit(*words: str | Path) -> str:
    """Runs a verb as a job and returns the job's log."""
    return perfuse("submit", "--", *words).stdout


def submit_json(*words: str | Path) -> Any:
    lines = submit(*words, "--json").splitlines()
    return json.loads("\n".join(lines[lines.index("{") : len(lines) - lines[::-1].index("}")]))


@dataclass(frozen=True)
class Organs:
    """Four phantoms of four donors, on s3://."""

    root: str

    def url(self, specimen: str) -> str:
        return f"{self.root}/{specimen}.ome.zarr"

    def train(self, labels: str, specimens: str) -> str:
        choice = {"labels": labels, "train": specimens, "validation": VALIDATION, "holdout": TEST}
        settings = [word for k, v in {**SMALL, **choice}.items() for word in ("--set", f"{k}={v}")]
        words = ["train", "quickstart", "--data", self.root, "--name", "organs", *settings, "--workers", "2"]
        model: str = submit_json(*words)["model"]
        return model


@pytest.fixture
def organs(stack_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Organs:
    monkeypatch.setenv("PERFUSE_STORAGE", f"{stack_url}/runs")
    organs = Organs(f"{stack_url}/scans")
    for seed, specimen in enumerate((LABELLED, UNLABELLED, VALIDATION, TEST)):
        slices = tmp_path / specimen
        perfuse("phantom", slices, "--shape", "40,96,96", "--seed", str(seed))
        labels = [] if specimen == UNLABELLED else ["--labels", slices / "labels"]
        about = ["--voxel-size-um", "50", "--specimen", specimen, "--organ", "phantom"]
        by_job = ["submit", "--"] if specimen == LABELLED else []
        perfuse(*by_job, "ingest", slices / "images", organs.url(specimen), *about, *labels)
    return organs


def test_from_slices_to_champion_by_jobs(organs: Organs) -> None:
    first = organs.train("human", LABELLED)
    soft = submit_json("pseudolabel", organs.url(UNLABELLED), "--model", first, "--output", "round1")
    assert (soft["kind"], soft["model"]["uri"]) == ("soft", first)

    second = organs.train("human,round1", f"{LABELLED},{UNLABELLED}")
    assert (first, second) == ("models:/organs/1", "models:/organs/2")
    assert "nothing to do" in train_again(organs)

    predict = ["predict", organs.url(TEST), "--model", second, "--output", "vessels", "--workers", "2"]
    made = submit_json(*predict)
    assert submit_json(*predict)["digest"] == made["digest"]

    scores = submit_json("evaluate", organs.url(TEST), "--prediction", "vessels", "--truth", "human")
    assert scores["model"] == second
    assert scores["dice"] > 0.1
    submit("promote", "organs", "2")
    history = json.loads(perfuse("history", "organs", "--json").stdout)
    assert history["champion"] == "2"
    assert not history["moved_behind_ledger"]
    check_what_the_cluster_keeps(organs)


def train_again(organs: Organs) -> str:
    """Without a job: another machine sees what the jobs have done."""
    choice = {"labels": "human", "train": LABELLED, "validation": VALIDATION, "holdout": TEST}
    settings = [word for k, v in {**SMALL, **choice}.items() for word in ("--set", f"{k}={v}")]
    return perfuse("train", "quickstart", "--data", organs.root, "--name", "organs", *settings, "--local").stderr


def check_what_the_cluster_keeps(organs: Organs) -> None:
    """Lineage from the scan to the run, and no secret in what everybody can read of the jobs."""
    shown = json.loads(perfuse("scan", "show", organs.url(TEST), "--json").stdout)
    assert {label["name"] for label in shown["labels"]} == {"human", "organ", "vessels"}
    jobs = subprocess.run(
        [sys.executable, "-c", "from ray.job_submission import *; print(JobSubmissionClient().list_jobs())"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "perfuse.cli train" in jobs
    assert os.environ["AWS_SECRET_ACCESS_KEY"] not in jobs
    assert os.environ["RAY_AUTH_TOKEN"] not in jobs
