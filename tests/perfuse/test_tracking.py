"""Runs in MLflow: what is told is there once, in order, and failures of a server are named."""

import pytest
import requests

from perfuse import tracking
from perfuse.errors import ServerError
from perfuse.tracking import Run, Told


@pytest.mark.usefixtures("mlflow_sqlite")
def test_what_is_told_twice_is_there_once_and_the_last_word_counts() -> None:
    run = Run.start("r")
    told = [Told(step, {"loss": 1 / (step + 1), "rate": 0.5}, when_ms=step) for step in range(tracking.METRICS_AT_ONCE)]
    run.log(told)
    run.log(told[-3:])
    run.log([Told(7, {"loss": 9.0}, when_ms=10_000)])
    history = run.history()
    assert list(history["loss"]) == list(range(len(told)))
    assert history["loss"] == {t.step: t.values["loss"] for t in told} | {7: 9.0}
    assert len(tracking.client().get_metric_history(run.id, "rate")) == len(told)


@pytest.mark.usefixtures("mlflow_sqlite")
def test_files_are_listed_with_their_folders_and_read_back() -> None:
    run = Run.start("r")
    for path in ("a.txt", "pictures/k/step-1.png", "pictures/l/step-2.png"):
        run.file(path, path.encode())
    assert run.files("pictures") == ["pictures/k/step-1.png", "pictures/l/step-2.png"]
    assert run.read("pictures/l/step-2.png") == b"pictures/l/step-2.png"


@pytest.mark.parametrize(("status", "kind"), [(503, ServerError), (403, requests.HTTPError)])
def test_a_door_that_answers_for_a_server_that_is_away_counts_as_away(status: int, kind: type[Exception]) -> None:
    reply = requests.Response()
    reply.status_code = status
    with pytest.raises(kind), tracking.answering():
        reply.raise_for_status()
