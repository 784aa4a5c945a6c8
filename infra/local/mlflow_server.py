"""The MLflow server: runs and models in PostgreSQL, artifacts in the object store, through the server's own door."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import ceph
import postgres
from processes import Daemon, clean_environment
from settings import Settings
from web import answers

ADDRESS = "MLFLOW_TRACKING_URI"
PACKAGES: dict[str, str] = {}
MODULES = ("mlflow", "psycopg", "boto3")


def daemons(folder: Path) -> list[Daemon]:
    """The one server."""
    return [Daemon(folder, "mlflow")]


def start(settings: Settings) -> None:
    """Launches the server; the object store and PostgreSQL must serve. Secrets travel by environment, never in argv."""
    (server,) = daemons(settings.folder)
    port = settings.port(ADDRESS)
    if server.pid() is None:
        options = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
        stores = {
            "MLFLOW_BACKEND_STORE_URI": settings.env[postgres.ADDRESS],
            "MLFLOW_ARTIFACTS_DESTINATION": f"s3://{ceph.BUCKET}/mlflow",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # eight processes and 30 s that nothing here uses
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
        server.start(
            [sys.executable, "-m", "mlflow", "server", *options], clean_environment() | settings.chosen("AWS_") | stores
        )
    settings.save(**{ADDRESS: f"http://127.0.0.1:{port}"})


def wait(settings: Settings) -> None:
    """Returns when the server answers."""
    (server,) = daemons(settings.folder)
    server.wait_until(partial(answers, f"{settings.env[ADDRESS]}/health"), timeout_s=120)
