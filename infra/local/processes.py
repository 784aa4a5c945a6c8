"""The long-running processes of a stack: started, found again and ended, never by a broad name.

Each one leads a session of its own and leaves `run/<name>.pid`, which holds its pid and start time, so that a
recycled pid is never taken for ours. What a killed leader left behind is found by a mark in its environment, which
descendants inherit, or by the leader's session and the stack folder as current folder (a process that renames itself
may overwrite its environment).
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from settings import StackError

MARK = "PERFUSE_STACK_PROCESS"
GRACE_S = 20.0
OURS = ("AWS_", "CEPH_", "MLFLOW_", "PERFUSE_", "PG", "RAY_")
"""Variables of the caller's shell that must not leak into a stack."""


@dataclass(frozen=True)
class Life:
    """One living process: a pid alone is not an identity, since pids are recycled."""

    parent: int
    session: int
    started: int
    """Clock ticks after boot."""


@dataclass(frozen=True)
class Daemon:
    """One long-running process of the stack in `folder`, with whatever it starts in turn."""

    folder: Path
    name: str
    stop_signal: signal.Signals = signal.SIGTERM

    @property
    def log(self) -> Path:
        """What the process prints, since its last start."""
        return self.folder / "logs" / f"{self.name}.log"

    @property
    def _pid_file(self) -> Path:
        return self.folder / "run" / f"{self.name}.pid"

    @property
    def _mark(self) -> str:
        return f"{self.folder}:{self.name}"

    def pid(self) -> int | None:
        """The pid of the running leader, if it runs."""
        pid, started = self._recorded()
        life = _living().get(pid)
        return pid if life and life.started == started else None

    def start(self, argv: Sequence[str | Path], env: Mapping[str, str], user: str | None = None) -> None:
        """Starts the leader in the background, after ending what an earlier one left behind."""
        self.stop()
        for folder in (self.log.parent, self._pid_file.parent):
            folder.mkdir(exist_ok=True)
        with self.log.open("wb") as log:
            leader = subprocess.Popen(
                argv,
                env={**env, MARK: self._mark},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                start_new_session=True,
                **_identity(user),
            )
        life = _living().get(leader.pid)
        if life is None:
            raise self._failure("ended at once")
        self._pid_file.write_text(f"{leader.pid} {life.started}\n")

    def wait_until(self, ready: Callable[[], bool], timeout_s: float = 60.0) -> None:
        """Waits for the service. Raises StackError with the end of the log when the leader ends or time runs out."""
        deadline = time.monotonic() + timeout_s
        while True:
            answered = ready()
            if self.pid() is None:
                raise self._failure("ended")
            if answered:
                return
            if time.monotonic() > deadline:
                raise self._failure(f"did not answer within {timeout_s:.0f} s")
            time.sleep(0.2)

    def stop(self) -> None:
        """Ends the leader and all that it started: politely, then after a grace by force."""
        seen = self.members()
        leader = self.pid()
        deadline = time.monotonic()
        if leader is not None:
            _kill(leader, self.stop_signal)
            deadline += GRACE_S
        while left := self._still_alive(seen):
            if time.monotonic() > deadline:
                for pid in left:
                    _kill(pid, signal.SIGKILL)
            time.sleep(0.1)
        self._pid_file.unlink(missing_ok=True)

    def members(self) -> dict[int, Life]:
        """All living processes of this daemon: leader, bearers of the mark, its session, and their descendants."""
        living = _living()
        leader = self.pid()
        found: set[int] = set()
        fresh = {pid for pid, life in living.items() if pid == leader or self._started(pid, life)}
        while fresh:
            found |= fresh
            fresh = {pid for pid, life in living.items() if life.parent in fresh} - found
        return {pid: living[pid] for pid in found}

    def _started(self, pid: int, life: Life) -> bool:
        if life.session == self._recorded()[0] and (folder := _current_folder(pid)):
            return folder.is_relative_to(self.folder)
        return _has_mark(pid, self._mark)

    def _recorded(self) -> tuple[int, int]:
        """Pid and start time of the leader of the last start; zeros, which no process has, when there was none."""
        if not self._pid_file.exists():
            return 0, 0
        pid, started = self._pid_file.read_text().split()
        return int(pid), int(started)

    def _still_alive(self, seen: dict[int, Life]) -> list[int]:
        """Adds today's members to those seen; a child that lost its parent stays known by what was seen."""
        seen.update(self.members())
        living = _living()
        return [pid for pid, life in seen.items() if pid in living and living[pid].started == life.started]

    def _failure(self, what: str) -> StackError:
        tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])
        return StackError(f"{self.name} {what}. The end of {self.log}:\n{tail}")


def clean_environment() -> dict[str, str]:
    """The caller's environment without credentials, addresses and settings of other stacks."""
    return {name: value for name, value in os.environ.items() if not name.startswith(OURS)}


def run(argv: Sequence[str | Path], env: Mapping[str, str] | None = None, user: str | None = None) -> str:
    """Runs a short command to its end and returns its stdout. Raises StackError with its stderr when it fails."""
    done: subprocess.CompletedProcess[str] = subprocess.run(
        argv,
        env=env or clean_environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd="/",
        **_identity(user),
    )
    if done.returncode != 0:
        raise StackError(f"{Path(argv[0]).name} failed (exit code {done.returncode}): {done.stderr.strip()[-1500:]}")
    return done.stdout


def working_in(folder: Path) -> list[int]:
    """The living processes whose current folder is this one, as far as we may see."""
    return [pid for pid in _living() if _current_folder(pid) == folder]


def _identity(user: str | None) -> dict[str, Any]:
    return {"user": user, "group": user, "extra_groups": []} if user else {}


def _living() -> dict[int, Life]:
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (life := _life(entry)):
            found[int(entry.name)] = life
    return found


def _life(entry: Path) -> Life | None:
    try:
        fields = (entry / "stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    state, parent, session, started = fields[0], int(fields[1]), int(fields[3]), int(fields[19])
    return None if state in "ZX" else Life(parent, session, started)


def _kill(pid: int, how: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, how)


def _current_folder(pid: int) -> Path | None:
    try:
        return Path(f"/proc/{pid}/cwd").readlink()
    except OSError:
        return None


def _has_mark(pid: int, mark: str) -> bool:
    try:
        return f"{MARK}={mark}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except (FileNotFoundError, PermissionError, ProcessLookupError):
        return False
