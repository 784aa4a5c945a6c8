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
from web import get_json

ADDRESS = "RAY_API_SERVER_ADDRESS"
PACKAGES: dict[str, str] = {}
MODULES = ("ray",)
NODES = 2


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
        cluster.start([sys.executable, "-P", script, str(port), str(NODES)], _environment(settings))


def wait(settings: Settings) -> None:
    """Returns when all nodes are alive."""
    (cluster,) = daemons(settings.folder)
    address, token = settings.env[ADDRESS], settings.env["RAY_AUTH_TOKEN"]
    cluster.wait_until(lambda: _nodes_alive(address, token) == NODES, timeout_s=120)


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


def _nodes_alive(url: str, token: str) -> int:
    answer = get_json(f"{url}/api/v0/nodes", token)
    nodes = answer["data"]["result"]["result"] if answer else []
    return sum(node["state"] == "ALIVE" for node in nodes)
