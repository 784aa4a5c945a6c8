"""PostgreSQL with one database for MLflow, on the loopback, with a password."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import time
from pathlib import Path

from processes import Daemon, clean_environment, run, working_in
from settings import Settings, StackError

ADDRESS = "PERFUSE_POSTGRES_URL"
PROGRAMS = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
"""One folder a major version; the newest is last."""
PACKAGES = {"postgresql": PROGRAMS}
MODULES: tuple[str, ...] = ()
USER = "postgres" if os.getuid() == 0 else None
"""PostgreSQL refuses to run as root."""


def daemons(folder: Path) -> list[Daemon]:
    """The one server."""
    return [Daemon(folder, "postgres", stop_signal=signal.SIGINT)]


def start(settings: Settings) -> None:
    """Starts the server; the first time makes the cluster, a user with a fresh password, and the database."""
    (server,) = daemons(settings.folder)
    home = settings.folder / "postgres"
    new = ADDRESS not in settings.env
    port = settings.port(ADDRESS)
    password = secrets.token_urlsafe(24)
    if new:
        server.stop()
        _make_cluster(home, password)
    if server.pid() is None:
        _release(home / "data")
        listen = ["-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="]
        server.start([_program("postgres"), "-D", home / "data", "-p", str(port), *listen], clean_environment(), USER)
    server.wait_until(lambda: _accepts(port))
    if new:
        login = {"PGPASSWORD": password, "PGUSER": "mlflow", "PGHOST": "127.0.0.1", "PGPORT": str(port)}
        run([_program("createdb"), "mlflow"], clean_environment() | login)
        settings.save(**{ADDRESS: f"postgresql://mlflow:{password}@127.0.0.1:{port}/mlflow"})


def wait(settings: Settings) -> None:
    """Returns when the server accepts connections."""
    (server,) = daemons(settings.folder)
    server.wait_until(lambda: _accepts(settings.port(ADDRESS)))


def _make_cluster(home: Path, password: str) -> None:
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir()
    secret = home / "password"
    secret.write_text(password)
    if USER:
        shutil.chown(home, USER, USER)
        shutil.chown(secret, USER, USER)
    _check_reachable(home)
    login = ["-U", "mlflow", "-A", "scram-sha-256", f"--pwfile={secret}"]
    run([_program("initdb"), "-D", home / "data", *login], user=USER)
    secret.unlink()


def _release(data: Path) -> None:
    """Removes the lock of a killed server: PostgreSQL takes a dead one that init has not reaped yet for alive."""
    deadline = time.monotonic() + 10
    while left := working_in(data):
        if time.monotonic() > deadline:
            raise StackError(f"Processes {left} still work in {data}: end them first.")
        time.sleep(0.1)
    (data / "postmaster.pid").unlink(missing_ok=True)


def _check_reachable(home: Path) -> None:
    try:
        run(["test", "-x", home], user=USER)
    except StackError:
        message = f"The user {USER} cannot enter {home}: take a --dir whose parents others may pass, such as /var/tmp."
        raise StackError(message) from None


def _accepts(port: int) -> bool:
    asked = subprocess.run([_program("pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(port)], check=False)
    return asked.returncode == 0


def _program(name: str) -> Path:
    return PROGRAMS[-1] / name
