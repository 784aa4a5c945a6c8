"""Any verb as a Ray job: ships this very code, follows the log, and ends as the job ended."""

import asyncio
import importlib.util
import logging
import os
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import distribution
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from perfuse import storage
from perfuse.console import say
from perfuse.errors import PerfuseError, ServerError
from perfuse.recipes.loading import FILES
from perfuse_jobs.carried import carried

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

PACKAGES = ("perfuse", "perfuse_ingest", "perfuse_jobs", "perfuse_serving")
PASSED_ON = ("MLFLOW_TRACKING_URI", "PERFUSE_STORAGE", "PERFUSE_WORKDIR")
"""Variables that a job inherits from its submitter. Credentials are the nodes' own: a job's metadata are public."""

WEIGHTS = "PERFUSE_ENCODER_WEIGHTS"
"""A job inherits it too where it is a URL; a folder is one of the nodes."""

STOPPING = {"RAY_JOB_STOP_WAIT_TIME_S": "60"}
"""Time for a job that is told to stop to finish its step and write a checkpoint; Ray else kills it after three seconds."""

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
INTERRUPTED = 130


def submit(words: Sequence[str], *, address: str | None = None, wait: bool = True) -> int:
    """Run `perfuse WORDS…` on a Ray cluster and return its exit code; 0 at once when not told to wait.

    address: of the Jobs API (http://head:8265); default RAY_API_SERVER_ADDRESS, RAY_ADDRESS, then this machine.
    Raises ServerError when no cluster answers there, PerfuseError for words that cannot mean the same on its nodes.
    """
    check_words(words)
    sent, own = carried(words)
    with jobs_client(address) as client:
        job = start(client, shlex.join(["python", "-m", "perfuse.cli", *sent]), own)
        say(f"Job {job}: perfuse {shlex.join(sent)}")
        return follow(client, job) if wait else 0


def check_words(words: Sequence[str]) -> None:
    """Refuse relative paths, which mean another folder on the nodes; warn of absolute ones, which nodes may not see.

    Recipe and campaign files are none of them: they go with the job.
    """
    elsewhere = [w for w in words if "/" in w and not storage.is_remote(w) and not w.lower().endswith(FILES)]
    paths = [w for w in elsewhere if Path(w).exists()]
    for path in paths:
        if not Path(path).is_absolute():
            raise PerfuseError(
                f"{path} is relative to this folder, and a job runs in another. Give an absolute path that all nodes "
                "see, or a URL (s3://…)."
            )
        say(f"Note: {path} is a path on this machine; the job finds it only where the nodes see the same disk.")


@contextmanager
def jobs_client(address: str | None = None) -> "Iterator[JobSubmissionClient]":
    """A client of the Jobs API; errors of reaching it, then or later, become ServerError."""
    import requests
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    logging.getLogger("ray").setLevel(logging.WARNING)
    variable = "RAY_API_SERVER_ADDRESS"  # which Ray prefers to what its caller says
    asked = address or os.environ.get(variable) or os.environ.get("RAY_ADDRESS") or DEFAULT_ADDRESS
    before = os.environ.get(variable)
    os.environ[variable] = asked
    try:
        yield JobSubmissionClient(asked)
    except (ConnectionError, ValueError, requests.exceptions.RequestException) as error:
        raise ServerError(
            f"No Ray cluster answers at {asked}. Give the address of its Jobs API with --address http://HEAD:8265 "
            "(or RAY_API_SERVER_ADDRESS)."
        ) from error
    except AuthenticationError as error:
        raise ServerError(
            f"The Ray cluster at {asked} refuses the token. Set RAY_AUTH_MODE=token and the cluster's RAY_AUTH_TOKEN."
        ) from error
    except RuntimeError as error:
        raise ServerError(f"The Ray cluster at {asked} refuses: {error}") from error
    finally:
        os.environ.pop(variable)
        if before is not None:
            os.environ[variable] = before


def start(client: "JobSubmissionClient", entrypoint: str, own: Mapping[str, Path] = MappingProxyType({})) -> str:
    """Submit a shell command with this code, and what of the user's own is `carried`, as its working folder; returns the job's id."""
    with tempfile.TemporaryDirectory(prefix="perfuse-job-") as folder:
        stage(Path(folder), own)
        runtime_env: dict[str, Any] = {"working_dir": folder, "env_vars": passed_on() | STOPPING}
        return str(client.submit_job(entrypoint=entrypoint, runtime_env=runtime_env))


def stage(folder: Path, own: Mapping[str, Path] = MappingProxyType({})) -> None:
    """Lay the packages side by side, with the metadata by which they are found: what `pip install --target` makes.

    own: files and folders of the user to lay beside them, by place.

    A folder beats a wheel here: Ray puts a job's working folder first on the path of every process, so nothing is
    installed, and entry points are found beside the code, before those of a perfuse that a node's image may hold.
    """
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise PerfuseError(f"The package {package} is not installed here, so it cannot be shipped. Run make setup.")
        _lay(Path(spec.submodule_search_locations[0]), folder / package)
    for place, path in own.items():
        if place not in PACKAGES:
            _lay(path, folder / place)
    about = distribution("perfuse")
    metadata = folder / f"perfuse-{about.version}.dist-info"
    metadata.mkdir()
    for name in ("METADATA", "entry_points.txt"):
        (metadata / name).write_text(about.read_text(name) or "")


def _lay(source: Path, place: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, place, ignore=shutil.ignore_patterns("__pycache__"))
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, place)


def passed_on() -> dict[str, str]:
    """The submitter's settings that a job inherits; those that hold a password stay here, and it is said."""
    settings = {name: os.environ[name] for name in PASSED_ON if os.environ.get(name)}
    if storage.is_remote(weights := os.environ.get(WEIGHTS, "")):
        settings[WEIGHTS] = weights
    secret = [name for name, value in settings.items() if urlsplit(value).password is not None]
    for name in secret:
        say(f"Note: {name} holds a password and is not sent; set it in the environment of the cluster's nodes.")
    return {name: value for name, value in settings.items() if name not in secret}


def follow(client: "JobSubmissionClient", job: str) -> int:
    """Print a job's log as it comes; returns the job's exit code. Ctrl-C leaves the job running and says so."""
    try:
        asyncio.run(_print_log(client, job))
    except KeyboardInterrupt:
        say(f"\nJob {job} goes on. Stop it with: ray job stop {job} --address {client.get_address()}")
        return INTERRUPTED
    while not (info := client.get_job_info(job)).status.is_terminal():
        time.sleep(0.2)
    if info.driver_exit_code is None:
        say(f"Job {job} ended as {info.status}: {info.message}")
        return 1
    return int(info.driver_exit_code)


async def _print_log(client: "JobSubmissionClient", job: str) -> None:
    async for text in client.tail_job_logs(job):
        sys.stdout.write(text)
        sys.stdout.flush()
