"""From recipe to challenger, through deaths of workers and of the driver."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from perfuse import tracking
from perfuse.catalog import Scan
from perfuse.errors import ScanError, ServerError
from perfuse.recipes import Recipe
from perfuse.registry import load_bundle, scores_of
from perfuse.training import TrainingJob, plan_job
from perfuse.training.checkpoints import latest_step
from perfuse_jobs import distributed


@pytest.fixture
def job(tiny: Recipe, scans: Path, workdir: Path) -> TrainingJob:
    return plan_job(tiny, str(scans), str(workdir / "runs"))


def only_run() -> Any:
    client = tracking.client()
    (run,) = client.search_runs([tracking.experiment_id()])
    return run


def steps_of(run: Any, metric: str) -> list[int]:
    return [m.step for m in tracking.client().get_metric_history(run.info.run_id, metric)]


def values_of(run: Any, metric: str) -> list[float]:
    return [m.value for m in tracking.client().get_metric_history(run.info.run_id, metric)]


def artifacts(run: Any, folder: str = "") -> list[str]:
    return [item.path for item in tracking.client().list_artifacts(run.info.run_id, folder)]


def test_two_workers_make_a_challenger_and_the_same_command_makes_no_other(
    verb: Any, scans: Path, job: TrainingJob, tiny_settings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "quickstart", "--data", scans, "--name", "tubes", *tiny_settings, "--workers", "2", "--json"]
    uri = verb(*words)
    assert json.loads(capsys.readouterr().out) == {"model": uri} == {"model": "models:/tubes/1"}

    bundle, run = load_bundle("models:/tubes@challenger"), only_run()
    assert bundle.lineage["key"] == job.key
    assert run.info.status == "FINISHED"
    assert run.data.params["recipe.network.encoder"] == "tu-test_resnet"
    assert steps_of(run, "loss") == [1, 8, 10, 16, 20, 24]
    assert steps_of(run, "val_surface_dice") == [8, 16, 24]
    assert set(artifacts(run)) >= {"data.json", "threshold.json", "pictures", "report.html"}
    assert all(0 <= share <= 1 for share in values_of(run, "wait_share"))
    assert all(rate > 0 for rate in values_of(run, "crops_per_s"))
    assert artifacts(run, "pictures/c") == [f"pictures/c/step-{s:06d}.png" for s in (8, 16, 24)]

    label = Scan.open(str(scans / "c.ome.zarr")).label_info("tubes-selection")
    assert label.model is not None
    assert (label.model.uri, label.model.threshold) == (uri, bundle.contract.decision.threshold)
    (score,) = scores_of("tubes", "1").values()
    assert (score.kind, score.truth) == ("validation", "human")
    assert run.data.metrics["threshold"] == score.threshold == bundle.contract.decision.threshold / 255

    assert verb(*words) == uri
    assert "nothing to do" in capsys.readouterr().err
    assert only_run().info.end_time == run.info.end_time


@pytest.mark.usefixtures("in_process_ray")
def test_a_worker_that_is_killed_is_started_again_at_the_checkpoint(job: TrainingJob) -> None:
    steps: list[int] = []

    def report(step: int, metrics: dict[str, float], pictures: dict[str, bytes]) -> None:
        if step == 8 and 8 not in steps:
            os.kill(train_workers()[0], signal.SIGKILL)
        steps.append(step)

    distributed.train_on_ray(job, report, workers=2)
    assert latest_step(job.folder) == 24
    assert steps[-1] == 24
    assert steps.count(24) == 1
    assert 8 in steps


@pytest.mark.usefixtures("in_process_ray")
def test_sigterm_to_the_driver_is_a_checkpoint_and_an_end_as_by_ctrl_c(job: TrainingJob) -> None:
    job = job.model_copy(
        update={
            "recipe": job.recipe.model_copy(update={"steps": 4000, "validate_every": 4000, "checkpoint_every": 4000})
        }
    )
    with pytest.raises(KeyboardInterrupt):
        distributed.train_on_ray(job, lambda *_: os.kill(os.getpid(), signal.SIGTERM), workers=1)
    assert 0 < latest_step(job.folder) < 4000


def train_workers() -> list[int]:
    children = psutil.Process().children(recursive=True)
    return [p.pid for p in children if "RayTrainWorker" in " ".join(p.cmdline())]


def test_the_same_command_after_kill_9_goes_on_at_the_checkpoint(
    scans: Path, job: TrainingJob, tiny_settings: list[str]
) -> None:
    words = [sys.executable, "-m", "perfuse.cli", "train", "quickstart", "--data", str(scans), *tiny_settings]
    with subprocess.Popen(words, stderr=subprocess.DEVNULL, start_new_session=True) as killed:
        deadline = time.monotonic() + 180
        while latest_step(job.folder) < 8 and killed.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        killed.kill()
    at = latest_step(job.folder)
    assert 8 <= at < 24
    run = only_run()

    again = subprocess.run(words, capture_output=True, text=True, timeout=240, check=False)
    assert again.returncode == 0, again.stderr
    assert f"Going on at step {at}" in again.stderr
    assert again.stdout.strip() == "models:/quickstart/1"
    assert only_run().info.run_id == run.info.run_id
    assert steps_of(only_run(), "loss")[-1] == 24


def test_an_mlflow_that_is_away_is_named(
    verb: Any, scans: Path, workdir: Path, tiny_settings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(ServerError, match=r"MLflow at http://127\.0\.0\.1:9 does not answer"):
        verb("train", "quickstart", "--data", scans, *tiny_settings, "--local")


def test_a_damaged_scan_is_one_message_also_from_a_cutter(
    tiny: Recipe, scans: Path, tmp_path: Path, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(scans, tmp_path / "scans")
    for specimen in ("a", "b"):
        shard = tmp_path / "scans" / f"{specimen}.ome.zarr" / "0" / "c" / "0" / "0" / "0"
        shard.write_bytes(shard.read_bytes()[:-100])
    monkeypatch.setattr(distributed, "RESTARTS", 0)
    job = plan_job(tiny, str(tmp_path / "scans"), str(workdir / "runs"))
    with pytest.raises(ScanError, match=r"\.ome\.zarr is damaged") as raised:
        distributed.train_on_ray(job, lambda *_: None, workers=1)
    assert "\n" not in str(raised.value)
