#!/usr/bin/env python3
"""The local stack, without containers: python infra/local/stack.py up | status | env | down [PART …] [--dir DIR].

Parts: s3 (Ceph), postgres, mlflow (on both), ray (head and worker). Every server listens on the loopback alone.
"""

from __future__ import annotations

import argparse
import fcntl
import importlib.util
import os
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ceph
import mlflow_server
import postgres
import ray_cluster
from settings import Settings, StackError, open_folder

PARTS = {"s3": ceph, "postgres": postgres, "mlflow": mlflow_server, "ray": ray_cluster}
"""In the order of starting."""
DEFAULT_FOLDER = Path("/var/tmp") / f"perfuse-{os.getuid()}"


def main() -> int:
    """The exit code: 2 with one message when the user can mend it, 1 when `status` finds a part stopped."""
    options = _parse()
    os.umask(0o077)
    try:
        if options.command == "packages":
            print(*debian_packages(list(PARTS)))
            return 0
        folder = open_folder(options.dir)
        ports = {part.ADDRESS: port for name, part in PARTS.items() if (port := getattr(options, f"{name}_port", None))}
        with _alone(folder):
            settings = Settings(folder, ports)
            settings.load()
            return COMMANDS[options.command](settings, options.parts)
    except StackError as error:
        print(f"stack: {error}", file=sys.stderr)
        return 2


def up(settings: Settings, names: list[str]) -> int:
    """Starts the parts that do not run yet (MLflow brings what it stands on)."""
    wanted = {"s3", "postgres", *names} if "mlflow" in names else set(names)
    chosen = [name for name in PARTS if name in wanted]
    _check_installed(chosen)
    begin = time.monotonic()
    for name in chosen:
        PARTS[name].start(settings)
    for name in chosen:
        PARTS[name].wait(settings)
        print(f"{name:9} {settings.env[PARTS[name].ADDRESS].rpartition('@')[2]}")
    print(f'up after {time.monotonic() - begin:.0f} s; clients: eval "$({sys.argv[0]} env --dir {settings.folder})"')
    return 0


def down(settings: Settings, names: list[str]) -> int:
    """Stops the parts. Their data stay in the folder."""
    for name in reversed(PARTS):
        if name in names:
            for daemon in reversed(PARTS[name].daemons(settings.folder)):
                daemon.stop()
    return 0


def status(settings: Settings, names: list[str]) -> int:
    """One line a process; exit code 1 unless all run."""
    daemons = [daemon for name in names for daemon in PARTS[name].daemons(settings.folder)]
    pids = {daemon: daemon.pid() for daemon in daemons}
    for daemon, pid in pids.items():
        print(f"{daemon.name:9} {f'runs, pid {pid}' if pid else 'stopped':18} log {daemon.log}")
    return 0 if all(pids.values()) else 1


def env(settings: Settings, _names: list[str]) -> int:
    """The lines that make a shell a client of the stack."""
    for name, value in settings.env.items():
        print(f"export {name}={shlex.quote(value)}")
    return 0


COMMANDS = {"up": up, "down": down, "status": status, "env": env}


def debian_packages(names: list[str], *, missing_only: bool = False) -> list[str]:
    """The Debian packages that the parts stand on, or those of them that are not installed."""
    found = {package: program for name in names for package, program in PARTS[name].PACKAGES.items()}
    return [package for package, program in found.items() if not (missing_only and program)]


def _check_installed(names: list[str]) -> None:
    packages = debian_packages(names, missing_only=True)
    modules = [module for name in names for module in PARTS[name].MODULES if importlib.util.find_spec(module) is None]
    lines = []
    if packages:
        install = f"apt-get update && apt-get install -y --no-install-recommends {' '.join(packages)}"
        lines.append(f"these Debian packages are missing: {', '.join(packages)}. As root: {install}")
    if modules:
        lines.append(f"{sys.executable} lacks {', '.join(modules)}: use the project's .venv/bin/python (`make setup`)")
    if lines:
        raise StackError("; ".join(lines))


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One command at a time per folder; a second waits."""
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("packages", help="print the Debian packages that the stack needs")
    for name, command in COMMANDS.items():
        sub = commands.add_parser(name, help=command.__doc__)
        if name != "env":
            sub.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}, all (default)")
        sub.add_argument("--dir", type=Path, default=DEFAULT_FOLDER, help="stack folder (default: %(default)s)")
        for part in PARTS if name == "up" else ():
            sub.add_argument(f"--{part}-port", type=int, help="at the first start (default: a free port)")
    options = parser.parse_args()
    if unknown := set(getattr(options, "parts", [])) - {*PARTS, "all"}:
        parser.error(f"unknown part {', '.join(sorted(unknown))}: choose from {', '.join(PARTS)}, all")
    if not getattr(options, "parts", []) or "all" in options.parts:
        options.parts = list(PARTS)
    return options


if __name__ == "__main__":
    sys.exit(main())
