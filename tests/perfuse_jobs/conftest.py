"""Small phantom scans, the verbs in this process, and a Ray that ends with its module."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from perfuse.recipes import Recipe, load_recipe

Verb = Callable[..., Any]

TINY = {
    "network.encoder": "tu-test_resnet",
    "network.decoder_channels": "16,8,8,8",
    "network.planes": "1",
    "axes": "z",
    "crop": "32",
    "tile": "64",
    "batch": "4",
    "steps": "24",
    "validate_every": "8",
}
"""A network of 0.4 million weights that learns a little in seconds."""


def run_verb(*words: str | Path) -> Any:
    from perfuse.cli import build

    command = typer.main.get_command(build())
    return command.main([str(w) for w in words], prog_name="perfuse", standalone_mode=False)


@pytest.fixture(scope="session")
def verb() -> Verb:
    """Runs a verb in this process and returns what its function returns."""
    return run_verb


@pytest.fixture(scope="session")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three labelled phantoms of three donors: a, b and c; c is the one that is chosen for validation."""
    folder = tmp_path_factory.mktemp("phantoms")
    for seed, specimen in enumerate(("a", "b", "c")):
        slices = folder / specimen
        run_verb("phantom", slices, "--shape", "32,64,64", "--seed", str(seed))
        about = ["--voxel-size-um", "50", "--specimen", specimen, "--organ", "phantom", "--labels", slices / "labels"]
        run_verb("ingest", slices / "images", folder / "scans" / f"{specimen}.ome.zarr", *about)
    return folder / "scans"


@pytest.fixture
def tiny() -> Recipe:
    return load_recipe("quickstart", [f"{key}={value}" for key, value in TINY.items()])


@pytest.fixture
def tiny_settings() -> list[str]:
    return [word for key, value in TINY.items() for word in ("--set", f"{key}={value}")]


@pytest.fixture
def workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An embedded work folder: SQLite MLflow, checkpoints."""
    monkeypatch.setenv("PERFUSE_WORKDIR", str(tmp_path / "work"))
    return tmp_path / "work"


@pytest.fixture(autouse=True)
def _on_a_busy_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's workers are as urgent as what else runs on the machine (by default they wait for all of it); nodes may start slowly."""
    monkeypatch.setenv("RAY_worker_niceness", "0")
    monkeypatch.setenv("RAY_raylet_start_wait_time_s", "200")


@pytest.fixture(scope="module")
def in_process_ray() -> Iterator[None]:
    """A Ray of this process, for all tests of a module; none is left behind."""
    import ray

    from perfuse_jobs.session import connect

    with pytest.MonkeyPatch.context() as patch:
        for name in [n for n in os.environ if n.startswith("RAY_")]:
            patch.delenv(name)
        patch.setenv("RAY_worker_niceness", "0")
        connect(2)
        yield
        ray.shutdown()


class MlflowServer:
    """An MLflow server on SQLite, which can be killed and started again at the same address."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri, self.folder = f"http://127.0.0.1:{self.port}", folder
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        stores = ["--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db", "--artifacts-destination", self.folder]
        words = ["-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1", *stores]
        self.process = subprocess.Popen(
            [sys.executable, *words],
            env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + 120
        while not self.answers():
            assert time.monotonic() < deadline, "MLflow does not start"
            time.sleep(0.2)

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=1) as reply:
                return bool(reply.status == 200)
        except OSError:
            return False

    def kill(self) -> None:
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


@pytest.fixture
def mlflow_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MlflowServer]:
    server = MlflowServer(tmp_path)
    server.start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    yield server
    server.kill()
