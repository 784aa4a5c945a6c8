"""Fixtures that every test may use: real servers, real data, and an environment without the user's own settings.

The servers are those of infra/local, started when a test first asks and stopped when the session ends, however it
ends. Where one cannot run, its tests skip with the reason; under PERFUSE_REQUIRE_SERVERS=1 (CI) they fail instead.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

hypothesis.settings.register_profile("busy machines", deadline=None)
hypothesis.settings.load_profile("busy machines")

ROOT = Path(__file__).parents[1]
STACK = ROOT / "infra" / "local" / "stack.py"
CANNOT_RUN_HERE = 2
"""The exit code of `stack.py up` when packages or rights are missing."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests that need real servers, by the fixtures that they ask for."""
    for item in items:
        fixtures = set(getattr(item, "fixturenames", ()))
        if fixtures & {"s3", "stack"}:
            item.add_marker("ceph")
        if fixtures & {"postgres", "stack"}:
            item.add_marker("postgres")


def run_stack(command: str, *words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, STACK, command, *words], capture_output=True, text=True, timeout=300, check=False
    )


@pytest.fixture(scope="session", autouse=True)
def _fresh_home() -> Iterator[None]:
    """No credentials, tokens, addresses or settings of the user's; a home that whatever writes there may fill."""
    with tempfile.TemporaryDirectory(prefix="perfuse-home-") as home, pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", home)
        for name in _addresses():
            patch.delenv(name)
        yield


@pytest.fixture(scope="session", autouse=True)
def _ctrl_c() -> None:
    """Programs that tests start hear SIGINT, also where a shell began the tests in the background, deaf to it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No addresses of real servers, and no file system that an earlier test opened with its credentials."""
    _forget_addresses()
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    yield
    _forget_addresses()
    from fsspec.registry import registry

    for file_system in registry.values():
        _close_sessions_of_zarr(file_system)
        file_system.clear_instance_cache()


def _forget_addresses() -> None:
    """For good: MLflow keeps its own there, and what were put back after a test would be those of the next module's fixtures."""
    for name in _addresses():
        del os.environ[name]


def _addresses() -> list[str]:
    return [name for name in os.environ if name.startswith(("AWS_", "MLFLOW_", "RAY_"))]


def _close_sessions_of_zarr(file_system: Any) -> None:
    """s3fs closes the connections of its own loop; those that Zarr opened in its loop are left to us."""
    from zarr.core.sync import sync

    for instance in list(file_system._cache.values()):
        if getattr(instance, "_s3", None) is not None and instance.asynchronous:
            sync(instance._s3creator.__aexit__(None, None, None))


@pytest.fixture(scope="session")
def stack_folder() -> Iterator[Path]:
    """A stack folder, short enough for Unix sockets; at the end everything in it is stopped."""
    folder = Path(tempfile.mkdtemp(prefix="perfuse-", dir="/tmp"))
    try:
        yield folder
    finally:
        stopped = run_stack("down", "--dir", folder)
        left = processes_of(folder)
        shutil.rmtree(folder)
    assert stopped.returncode == 0, stopped.stderr
    assert left == []


def processes_of(folder: Path) -> list[str]:
    """The command lines of processes that a stack in the folder started, or that name it."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            command = (entry / "cmdline").read_bytes()
            known = command + (entry / "environ").read_bytes()
        except (OSError, ProcessLookupError):
            continue
        if entry.name != str(os.getpid()) and str(folder).encode() in known:
            found.append(command.replace(b"\0", b" ").decode(errors="replace"))
    return found


def start(folder: Path, part: str) -> dict[str, str]:
    """Starts a part of the stack and returns the environment of its clients."""
    begun = run_stack("up", part, "--dir", folder)
    if begun.returncode == CANNOT_RUN_HERE and os.environ.get("PERFUSE_REQUIRE_SERVERS") != "1":
        pytest.skip(begun.stderr.strip())
    if begun.returncode != 0:
        pytest.fail(f"up {part}: {begun.stderr.strip()}", pytrace=False)
    return dict(line.split("=", 1) for line in (folder / "stack.env").read_text().splitlines())


@pytest.fixture(scope="session")
def s3(stack_folder: Path) -> dict[str, str]:
    """A running object store: the environment of its clients (AWS_…, PERFUSE_BUCKET_URL)."""
    return start(stack_folder, "s3")


@pytest.fixture
def s3_again(s3: dict[str, str], stack_folder: Path) -> Callable[[], object]:
    """Starts what has died of the object store; nothing where all runs."""
    return lambda: start(stack_folder, "s3")


@pytest.fixture(scope="session")
def postgres(stack_folder: Path) -> str:
    """The URL of a running PostgreSQL's database."""
    return start(stack_folder, "postgres")["PERFUSE_POSTGRES_URL"]


@pytest.fixture(scope="session")
def stack(stack_folder: Path) -> dict[str, str]:
    """Object store, PostgreSQL, MLflow and a Ray cluster of two nodes: the environment of their clients."""
    return start(stack_folder, "all")


@pytest.fixture
def s3_url(s3: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> str:
    """A fresh prefix in the object store; this test's environment holds the credentials."""
    return _enter({name: value for name, value in s3.items() if not name.startswith(("MLFLOW_", "RAY_"))}, monkeypatch)


@pytest.fixture
def stack_url(stack: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> str:
    """A fresh prefix in the object store; this test's environment is that of a client of the whole stack."""
    return _enter(stack, monkeypatch)


def _enter(env: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> str:
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    return f"{env['PERFUSE_BUCKET_URL']}/tests/{uuid.uuid4().hex}"


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Networks as small as those of tests are slower on more threads."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def mlflow_sqlite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URI of a fresh MLflow on SQLite, which is also this test's default."""
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    return uri


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real scans."""
    folder = Path(os.environ.get("PERFUSE_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}: set PERFUSE_TEST_DATA to the folder that holds them")
    return folder
