"""From recipe to challenger, through deaths of workers and of the driver."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from perfuse import tracking
from perfuse.catalog import Scan
from perfuse.errors import RecipeError, ScanError, ServerError
from perfuse.recipes import Recipe
from perfuse.registry import load_bundle, scores_of
from perfuse.training import TrainingJob, plan_job, planning
from perfuse.training.checkpoints import latest_step
from perfuse_jobs import distributed
from perfuse_jobs.workers import Workers


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


@pytest.mark.usefixtures("in_process_ray")
def test_two_workers_make_a_challenger_also_after_kill_9_and_the_same_command_makes_no_other(
    verb: Any, tiny: Recipe, scans: Path, workdir: Path, tiny_settings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    longer = {"steps": 64, "validate_every": 16}
    job = plan_job(tiny.model_copy(update=longer), str(scans), str(workdir / "runs"))
    settings = [*tiny_settings, *(word for k, v in longer.items() for word in ("--set", f"{k}={v}"))]
    words = ["train", "quickstart", "--data", str(scans), "--name", "tubes", *settings, "--workers", "2", "--json"]
    at = kill_at_a_checkpoint(words, job)
    killed = only_run()

    uri = verb(*words)
    said = capsys.readouterr()
    assert json.loads(said.out) == {"model": uri} == {"model": "models:/tubes/1"}
    assert f"Going on at step {at}" in said.err

    bundle, run = load_bundle("models:/tubes@challenger"), only_run()
    assert run.info.run_id == killed.info.run_id
    assert bundle.lineage["key"] == job.key
    assert run.info.status == "FINISHED"
    assert run.data.params["recipe.network.encoder"] == "tu-test_resnet"
    told = sorted({at + 1} | {step for step in range(at + 1, 65) if step % 10 == 0 or step % 16 == 0})
    assert steps_of(run, "loss")[-len(told) :] == told
    validated = [step for step in (16, 32, 48, 64) if step > at]
    assert steps_of(run, "val_surface_dice")[-len(validated) :] == validated
    assert set(artifacts(run)) >= {"data.json", "threshold.json", "pictures", "report.html"}
    assert all(0 <= share <= 1 for share in values_of(run, "wait_share"))
    assert all(rate > 0 for rate in values_of(run, "crops_per_s"))
    assert set(artifacts(run, "pictures/c")) >= {f"pictures/c/step-{s:06d}.png" for s in validated}

    label = Scan.open(str(scans / "c.ome.zarr")).label_info("tubes-selection")
    assert label.model is not None
    assert (label.model.uri, label.model.threshold) == (uri, bundle.contract.decision.threshold)
    (score,) = scores_of("tubes", "1").values()
    assert (score.kind, score.truth) == ("validation", "human")
    assert run.data.metrics["threshold"] == score.threshold == bundle.contract.decision.threshold / 255

    assert verb(*words) == uri
    assert "nothing to do" in capsys.readouterr().err
    assert only_run().info.end_time == run.info.end_time


def kill_at_a_checkpoint(words: list[str], job: TrainingJob) -> int:
    """Start a training, kill it -9 at the first checkpoint, and say which is the last: its ranks outlive it for a second or two."""
    command = [sys.executable, "-m", "perfuse.cli", *words]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True) as driver:
        deadline = time.monotonic() + 180
        while latest_step(job.folder) == 0 and driver.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        ranks = psutil.Process(driver.pid).children(recursive=True)
        driver.kill()
    psutil.wait_procs(ranks, timeout=60)
    at = latest_step(job.folder)
    assert 16 <= at < 64
    return at


def test_a_validation_that_was_killed_is_made_up_for_in_the_log_too(
    verb: Any, scans: Path, workdir: Path, tiny_settings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = [*tiny_settings, "--set", "steps=4", "--set", "validate_every=2"]
    words = ["train", "quickstart", "--data", str(scans), "--name", "tubes", *settings, "--local"]

    def killed(*_: object) -> None:
        raise SystemExit(9)

    with monkeypatch.context() as patch:
        patch.setattr("perfuse.training.engine.validate", killed)
        with pytest.raises(SystemExit):
            verb(*words)
    verb(*words)
    assert steps_of(only_run(), "val_surface_dice") == [2, 4]


def test_resume_begins_nothing_and_another_training_starts_from_these_weights(
    verb: Any, scans: Path, workdir: Path, tiny_settings: list[str]
) -> None:
    few = ["--set", "steps=2", "--set", "validate_every=2"]
    words = ["train", "quickstart", "--data", scans, *tiny_settings, *few, "--local"]
    with pytest.raises(RecipeError, match="nothing to resume"):
        verb(*words, "--resume")
    uri = verb(*words)
    assert verb(*words, "--resume") == uri
    (run,) = (place.name for place in (workdir / "runs").iterdir() if place.is_dir())
    other = verb(*words, "--init-from", f"{run}@2", "--set", "learning_rate=1e-4")
    assert load_bundle(other).lineage["recipe"]["init_from"] == f"{run}@2"


@pytest.mark.parametrize(
    ("device", "said"),
    [
        (("cuda", "NVIDIA H200"), "0.5 GPU-hours on NVIDIA H200:"),
        (("cpu", "CPU of 2 cores"), "0.5 hours on CPU of 2 cores:"),
    ],
)
def test_a_plan_is_in_gpu_hours_where_there_is_a_gpu(
    verb: Any,
    scans: Path,
    workdir: Path,
    tiny_settings: list[str],
    monkeypatch: Any,
    capsys: Any,
    device: Any,
    said: str,
) -> None:
    def there(job: TrainingJob, workers: int) -> planning.TrainingPlan:
        about = {
            "device": device[0],
            "device_name": device[1],
            "step_seconds": 75,
            "device_hours": 0.5,
            "gpu_hours": 0.25,
        }
        return plan(job, workers).model_copy(update=about)

    plan = planning.plan_training
    monkeypatch.setattr(planning, "plan_training", there)
    verb("train", "quickstart", "--data", scans, *tiny_settings, "--plan")
    shown = capsys.readouterr().out
    assert f"{said} 75 s a step" in shown
    assert ("0.25 GPU-hours, if a GPU sustains 50 TFLOP/s" in shown) == (device[0] == "cpu")
    assert "steps       24\ncrops       96\n" in shown


SIGMOID = """
from torch import nn

class Net(nn.Sequential):
    def __init__(self, in_channels, classes):
        super().__init__(nn.Conv2d(in_channels, classes, 1), nn.Sigmoid())
"""


@pytest.mark.parametrize(
    ("setting", "said"),
    [("network.module=net_of_test_train:Net", "sigmoid"), ("precision=fp16", "precision = fp16 needs a GPU")],
)
def test_a_plan_refuses_what_the_training_would(
    verb: Any,
    scans: Path,
    workdir: Path,
    tmp_path: Path,
    tiny_settings: list[str],
    monkeypatch: Any,
    setting: str,
    said: str,
) -> None:
    (tmp_path / "net_of_test_train.py").write_text(SIGMOID)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RecipeError, match=said):
        verb("train", "quickstart", "--data", scans, *tiny_settings, "--set", setting, "--plan")


def test_an_mlflow_that_is_away_is_named(
    verb: Any, scans: Path, workdir: Path, tiny_settings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(ServerError, match=r"MLflow at http://127\.0\.0\.1:9 does not answer"):
        verb("train", "quickstart", "--data", scans, *tiny_settings, "--local")


@pytest.mark.usefixtures("in_process_ray")
def test_a_damaged_scan_is_one_message_at_once_also_from_a_cutter(
    tiny: Recipe, scans: Path, tmp_path: Path, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(scans, tmp_path / "scans")
    for specimen in ("a", "b"):
        shard = tmp_path / "scans" / f"{specimen}.ome.zarr" / "0" / "c" / "0" / "0" / "0"
        shard.write_bytes(shard.read_bytes()[:-100])
    starts: list[Any] = []
    trainer = distributed._trainer
    monkeypatch.setattr(distributed, "_trainer", lambda *words: starts.append(words) or trainer(*words))
    job = plan_job(tiny, str(tmp_path / "scans"), str(workdir / "runs"))
    with pytest.raises(ScanError, match=r"\.ome\.zarr is damaged") as raised:
        distributed.train_on_ray(job, lambda *_: None, workers=Workers(2, 2))
    assert "\n" not in str(raised.value)
    assert len(starts) == 1
