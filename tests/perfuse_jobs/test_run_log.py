"""The run in MLflow, through a server that goes away in the middle and comes back."""

import time
from base64 import b64encode
from pathlib import Path
from typing import Any

import pytest

from perfuse import storage, tracking
from perfuse.errors import ServerError
from perfuse.recipes import Recipe
from perfuse.training import TrainingJob, plan_job
from perfuse.training.checkpoints import latest_step
from perfuse.training.local import train_local
from perfuse_jobs import run_log
from perfuse_jobs.run_log import RunLog

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def job(tiny: Recipe, scans: Path, workdir: Path) -> TrainingJob:
    return plan_job(tiny, str(scans), str(workdir / "runs"))


def test_a_server_that_goes_away_stops_nothing_and_misses_nothing(
    job: TrainingJob, mlflow_server: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    told: dict[int, float] = {}
    seconds: list[float] = []
    with RunLog(job, "tubes") as log:

        def report(step: int, metrics: dict[str, float], pictures: dict[str, bytes]) -> None:
            if step == 8:
                mlflow_server.kill()
            told[step] = metrics["loss"]
            begin = time.monotonic()
            log(step, metrics, pictures)
            seconds.append(time.monotonic() - begin)

        train_local(job, report)
        assert latest_step(job.folder) == 24, "the training is done while MLflow is away"
        assert max(seconds[1:]) < 0.3, "no step waits; the first does, for the run to be open"
        mlflow_server.start()
        log.flush()
        run = log.run()
    assert list(told) == [1, 8, 10, 16, 20, 24]
    assert run.history()["loss"] == pytest.approx(told)
    assert run.files("pictures") == [f"pictures/c/step-{s:06d}.png" for s in (8, 16, 24)]
    assert run.read("pictures/c/step-000016.png").startswith(b"\x89PNG")
    assert tracking.client().get_run(run.id).info.status == "FINISHED"
    said = capsys.readouterr().err
    assert said.count("does not answer") == said.count("MLflow answers again") == 1


@pytest.mark.parametrize("ending", [None, KeyboardInterrupt])
def test_what_is_not_told_at_the_end_is_told_by_the_same_command(
    job: TrainingJob, mlflow_sqlite: str, monkeypatch: pytest.MonkeyPatch, ending: type[BaseException] | None
) -> None:
    def away(*_: object) -> None:
        raise ServerError("MLflow does not answer.")

    def cut_off() -> None:
        with monkeypatch.context() as patch, RunLog(job, "tubes") as log:
            log(1, {"loss": 1.0}, {"c": b"seen"})
            log.flush()
            patch.setattr(tracking.Run, "log", away)
            patch.setattr(run_log, "PATIENCE_S", 1.5)
            for step in (2, 3):
                log(step, {"loss": 1 / step}, {})
            if ending:
                raise ending
            log.flush()

    with pytest.raises(ending or ServerError):
        cut_off()
    assert [entry["step"] for entry in storage.read_json(f"{job.folder}/unsent.json")] == [2, 3]
    report = storage.read_bytes(f"{job.folder}/report.html").decode()
    assert "<h1>tubes</h1>" in report
    assert "1 steps of 4 crops; not finished, of 24 steps" in report
    assert b64encode(b"seen").decode() in report
    with RunLog(job, "tubes") as log:
        assert log.run().history()["loss"] == {1: 1, 2: 1 / 2, 3: 1 / 3}
        assert log.run().read("report.html").decode() == report
    assert not storage.exists(f"{job.folder}/unsent.json")


def test_a_training_that_goes_on_while_mlflow_is_away_is_told_later_and_one_that_begins_is_refused(
    job: TrainingJob, mlflow_sqlite: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def away(*_: object, **__: object) -> None:
        raise ServerError("MLflow does not answer.")

    def stopped(*steps: int, by: BaseException) -> None:
        with RunLog(job, "tubes") as log:
            for step in steps:
                log(step, {"loss": 1 / step}, {})
            raise by

    monkeypatch.setattr(run_log, "PATIENCE_S", 0.1)
    with monkeypatch.context() as patch:
        patch.setattr(tracking.Run, "start", away)
        with pytest.raises(ServerError, match="does not answer"):
            stopped(1, by=AssertionError("it goes on"))
    with pytest.raises(KeyboardInterrupt):
        stopped(1, by=KeyboardInterrupt())
    with monkeypatch.context() as patch:
        patch.setattr(tracking.Run, "resume", away)
        for step in (2, 3):
            with pytest.raises(KeyboardInterrupt):
                stopped(step, by=KeyboardInterrupt())
        with pytest.raises(ServerError, match="does not answer"), RunLog(job, "tubes") as log:
            log.flush()
    assert [told["step"] for told in storage.read_json(f"{job.folder}/unsent.json")] == [2, 3]
    with RunLog(job, "tubes") as log:
        log(4, {"loss": 1 / 4}, {})
        log.flush()
        assert log.run().history()["loss"] == {1: 1, 2: 1 / 2, 3: 1 / 3, 4: 1 / 4}
    assert "Meanwhile the training goes on" in capsys.readouterr().err
