"""The Ray that this process works with: the cluster it stands in, else one started in this process."""

import logging
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from perfuse import errors
from perfuse.errors import PerfuseError, ServerError
from perfuse_jobs.workers import Workers

TASK_CPUS = 0.5
"""Logical CPUs of an actor, a task, a training worker, each of which uses what cores there are. With whole ones, those who hold
a few would leave the others none on small machines, and both would wait for ever."""

FEWEST_CPUS = 4
"""Logical, of a Ray in this process, whatever the machine has: for the same reason."""

_REFUSAL = re.compile(r"^perfuse\.errors\.(\w+): (.+)$", re.MULTILINE)


def connect(workers: int = 1) -> None:
    """Make Ray ready; does nothing when it is. A Ray that was started here ends with the process, or `ray.shutdown()`.

    The cluster of a submitted job or of RAY_ADDRESS is used; ServerError when it does not answer. Otherwise Ray starts
    in this process, on the loopback, without dashboard, with logical CPUs for `workers` beside Ray Data.
    """
    quieten()
    import ray

    if ray.is_initialized():
        return
    try:
        with _muted():
            ray.init(**_options(workers))
    except ConnectionError as error:
        raise ServerError(
            f"No Ray cluster answers at RAY_ADDRESS={os.environ.get('RAY_ADDRESS')}. Start it (`ray start --head`), "
            "correct the address, or unset RAY_ADDRESS to run Ray in this process."
        ) from error


@contextmanager
def _muted() -> Iterator[None]:
    """Ray's native code writes to the file descriptor itself that it was told to be quiet; failures come as exceptions."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def quieten() -> None:
    """No usage reports; no progress of Ray's beside ours; no warnings of Ray's about its own doings; patience.

    Said again after `ray.data` is imported, which sets the levels of its logs.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_gcs_server_port_wait_time_s", "120")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    for logger, level in {"ray.data": logging.CRITICAL, "ray.train": logging.ERROR}.items():
        logging.getLogger(logger).setLevel(level)  # what Ray Data logs as an error, it raises too
    warnings.filterwarnings("ignore", module=r"ray\.")


def refusal_in(error: BaseException) -> PerfuseError | None:
    """What a task raised for the user, if that is what ended the work. Of an error in another process Ray keeps the text alone."""
    if told := _REFUSAL.findall(str(error)):  # first, for Ray's copy of an error is of the error's class too
        kind: type[PerfuseError] = getattr(errors, told[-1][0])
        return kind(told[-1][1])
    if isinstance(error, PerfuseError):
        return error
    return refusal_in(error.__cause__) if error.__cause__ is not None else None


@contextmanager
def refusals() -> Iterator[None]:
    """What a task raised for the user is raised as it was, without what Ray wraps around it."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - whatever Ray raises
        raise refusal_in(error) or error from None


def on_cluster() -> bool:
    """True when the Ray in use was started by somebody else, as in a submitted job."""
    return bool(os.environ.get("RAY_ADDRESS"))


def nodes() -> list[dict[str, Any]]:
    """Of the Ray in use, that are alive and have CPUs to compute with."""
    import ray

    return [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]


def needs_ray(workers: Workers) -> bool:
    """False where work of one process needs no other: a Ray of one machine's own would only have to be started."""
    return workers.most > 1 or on_cluster()


def check_shared(name: str, what: str) -> None:
    """Raise PerfuseError when this is a cluster and a variable that its nodes must agree on is not set."""
    if on_cluster() and not os.environ.get(name):
        raise PerfuseError(
            f"On a Ray cluster {name} must name {what}, for the nodes share no work folder. Set it for the nodes, or "
            "in the shell that runs `perfuse submit`, which passes it on."
        )


def _options(workers: int) -> dict[str, Any]:
    quiet: dict[str, Any] = {"logging_level": "error", "log_to_driver": False}
    if on_cluster():
        return quiet
    return quiet | {
        "address": "local",
        "num_cpus": max(os.cpu_count() or 1, FEWEST_CPUS, workers + 2),
        "include_dashboard": False,
        "_node_ip_address": "127.0.0.1",
    }
