"""A Ray cluster of two nodes on the loopback, with dashboard and Jobs API, behind a token.

The nodes hold the credentials of the object store and the address of MLflow in their environment, so that jobs
inherit them and no secret travels in a job's metadata.
"""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path

from processes import Daemon, clean_environment
from settings import Settings
from web import answers

ADDRESS = "RAY_API_SERVER_ADDRESS"
PACKAGES: dict[str, str] = {}
MODULES = ("ray",)
NODES = 2
READY = "All nodes take jobs."
"""What ray_nodes.py prints then. A node is alive some seconds before its agent, and the Jobs API refuses until then."""


def daemons(folder: Path) -> list[Daemon]:
    """The one process that runs all nodes."""
    return [Daemon(folder, "ray")]


def start(settings: Settings) -> None:
    """Launches head and worker. Start the object store and MLflow before, for jobs to know them."""
    (cluster,) = daemons(settings.folder)
    port = settings.port(ADDRESS)
    if ADDRESS not in settings.env:
        address = f"http://127.0.0.1:{port}"
        settings.save(**{ADDRESS: address, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)})
    if cluster.pid() is None:
        script = Path(__file__).with_name("ray_nodes.py")
        (settings.folder / "ray").mkdir(exist_ok=True)
        cluster.start([sys.executable, "-P", script, str(port), str(NODES), READY], _environment(settings))


def wait(settings: Settings) -> None:
    """Returns when all nodes take jobs and the dashboard answers."""
    (cluster,) = daemons(settings.folder)
    url = f"{settings.env[ADDRESS]}/api/version"
    cluster.wait_until(lambda: READY in cluster.log.read_text() and answers(url), timeout_s=120)


def _environment(settings: Settings) -> dict[str, str]:
    programs = Path(sys.executable).parent
    return {
        **clean_environment(),
        **settings.chosen("AWS_", "MLFLOW_", "RAY_", "PERFUSE_BUCKET_URL"),
        "PATH": f"{programs}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "RAY_TMPDIR": str(settings.folder / "ray"),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # Ray binds to the loopback as it does there, not to all interfaces
    }
