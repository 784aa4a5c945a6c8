"""Runs in MLflow: the one door to its tracking. An MLflow that does not answer is a ServerError, soon and in one message."""

import json
import logging
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perfuse import settings
from perfuse.errors import ServerError

if TYPE_CHECKING:
    from mlflow import MlflowClient

EXPERIMENT = "perfuse"
METRICS_AT_ONCE, PARAMS_AT_ONCE = 1000, 100
"""What MLflow takes in one request."""
STORES = {"boto3", "botocore", "s3transfer"}
"""Whose errors are those of a store of files that MLflow lets its clients reach themselves."""


@contextmanager
def answering() -> Iterator[None]:
    """Turn MLflow's connection failures into one message that names the server; files travel by HTTP requests of their own."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except Exception as error:
        if isinstance(error, (MlflowException, OSError)) and is_away(error):
            raise ServerError(
                f"MLflow at {shown(settings.tracking_uri())} does not answer. Start it, or correct MLFLOW_TRACKING_URI; "
                "unset, perfuse keeps runs in SQLite in its work folder."
            ) from error
        if type(error).__module__.split(".")[0] in STORES:
            raise ServerError(
                f"The store of files of MLflow at {shown(settings.tracking_uri())} does not answer: {error}. Check its address "
                "and the credentials (for S3: MLFLOW_S3_ENDPOINT_URL, AWS_ACCESS_KEY_ID)."
            ) from error
        raise


def is_away(error: BaseException) -> bool:
    """True when an error says that the server did not answer."""
    reply = getattr(error, "response", None)
    if reply is not None:
        return bool(reply.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR)
    text = str(error)
    return any(sign in text for sign in ("API request to", "Max retries", "Connection refused", "OperationalError"))


def shown(uri: str) -> str:
    """A URI without its password."""
    head, at, tail = uri.rpartition("@")
    return f"{head.split('://')[0]}://…@{tail}" if at and "://" in head else uri


def client() -> "MlflowClient":
    """A client of the configured server; for SQLite its folder is made."""
    for name, value in {
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    }.items():
        os.environ.setdefault(name, value)
    import mlflow

    for logger in ("mlflow", "alembic"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    uri = settings.tracking_uri()
    if uri.startswith("sqlite:///"):
        Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    try:
        return mlflow.MlflowClient(uri, uri)
    except mlflow.exceptions.MlflowException as error:
        raise ServerError(
            f"MLflow cannot use MLFLOW_TRACKING_URI={shown(uri)}. Give http(s)://HOST:PORT, or unset it: then perfuse keeps "
            "runs in SQLite in its work folder."
        ) from error


def experiment_id(name: str = EXPERIMENT) -> str:
    """The experiment's id; it is made when it is not there."""
    server = client()
    with answering():
        found = server.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        local = settings.tracking_uri().startswith("sqlite:///")
        place = (settings.work_folder() / "mlartifacts").as_uri() if local else None
        return str(server.create_experiment(name, artifact_location=place))


@dataclass(frozen=True)
class Told:
    """Metrics of a step, and when they were measured."""

    step: int
    values: dict[str, float]
    when_ms: int = field(default_factory=lambda: time.time_ns() // 1_000_000)


class Run:
    """One MLflow run."""

    def __init__(self, run_id: str) -> None:
        self.id = run_id
        self._client = client()

    @classmethod
    def start(cls, name: str, tags: dict[str, str] | None = None, *, parent: str | None = None) -> "Run":
        """Begin a run, shown beneath another when that is given by its id."""
        server = client()
        above = {"mlflow.parentRunId": parent} if parent else {}
        with answering():
            made = server.create_run(experiment_id(), run_name=name, tags={**(tags or {}), **above})
        return cls(str(made.info.run_id))

    @classmethod
    def resume(cls, run_id: str) -> "Run | None":
        """Go on with a run; None when the server does not know it."""
        from mlflow.exceptions import MlflowException

        server = client()
        with answering():
            try:
                server.get_run(run_id)
            except MlflowException as error:
                if is_away(error):
                    raise
                return None
            server.update_run(run_id, status="RUNNING")
        return cls(run_id)

    def params(self, values: dict[str, Any]) -> None:
        """Log parameters; nested ones by dots."""
        from mlflow.entities import Param

        flat = [Param(key, str(value)[:6000]) for key, value in _flat(values)]
        with answering():
            for start in range(0, len(flat), PARAMS_AT_ONCE):
                self._client.log_batch(self.id, params=flat[start : start + PARAMS_AT_ONCE])

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Log metrics of a step in one request."""
        self.log([Told(step=step, values=values)])

    def log(self, told: Sequence[Told]) -> None:
        """Log metrics of many steps in as few requests as MLflow allows; what it holds already is not doubled."""
        from mlflow.entities import Metric

        metrics = [Metric(k, float(v), each.when_ms, each.step) for each in told for k, v in each.values.items()]
        with answering():
            for start in range(0, len(metrics), METRICS_AT_ONCE):
                self._client.log_batch(self.id, metrics=metrics[start : start + METRICS_AT_ONCE])

    def history(self) -> dict[str, dict[int, float]]:
        """All metrics: by name, and by step in order; what was told last of a step."""
        with answering():
            names = sorted(self._client.get_run(self.id).data.metrics)
            told = {n: sorted(self._client.get_metric_history(self.id, n), key=lambda m: m.timestamp) for n in names}
        return {name: dict(sorted({m.step: m.value for m in values}.items())) for name, values in told.items()}

    def files(self, folder: str) -> list[str]:
        """The paths of the files in a folder of the run, and in those below."""
        with answering():
            found = [(f.path, f.is_dir) for f in self._client.list_artifacts(self.id, folder)]
        return [p for path, is_folder in found for p in (self.files(path) if is_folder else [path])]

    def read(self, path: str) -> bytes:
        """The bytes of a file of the run."""
        with tempfile.TemporaryDirectory() as folder, answering():
            return Path(self._client.download_artifacts(self.id, path, folder)).read_bytes()

    def file(self, path: str, data: bytes) -> None:
        """Log a file, as pictures/step-100.png."""
        with tempfile.TemporaryDirectory() as folder, answering():
            local = Path(folder) / Path(path).name
            local.write_bytes(data)
            parent = str(Path(path).parent)
            self._client.log_artifact(self.id, str(local), None if parent == "." else parent)

    def json(self, path: str, value: Any) -> None:
        """Log a JSON file."""
        self.file(path, json.dumps(value, indent=2, sort_keys=True).encode())

    def finish(self, status: str = "FINISHED") -> None:
        """End the run: FINISHED, FAILED or KILLED."""
        with answering():
            self._client.set_terminated(self.id, status)


def parent_of(run_id: str) -> str | None:
    """The run that a run is shown beneath; None where there is none, or no such run."""
    from mlflow.exceptions import MlflowException

    server = client()
    with answering():
        try:
            tags: dict[str, str] = server.get_run(run_id).data.tags
        except MlflowException as error:
            if is_away(error):
                raise
            return None
    return tags.get("mlflow.parentRunId")


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
