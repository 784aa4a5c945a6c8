"""Runs the nodes of a local Ray cluster until it is told to end: python ray_nodes.py DASHBOARD_PORT NODES.

`ray start` takes no second node on the loopback; Ray's own cluster helper does.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from ray.cluster_utils import Cluster

CPUS_PER_NODE = 4
"""Logical, whatever the machine has: Ray Train beside Ray Data waits for ever on fewer."""

OBJECT_STORE_BYTES = 200_000_000


def main(dashboard_port: int, nodes: int) -> None:
    """Starts the nodes; returns only when the head has lost a process."""
    size: dict[str, Any] = {
        "num_cpus": CPUS_PER_NODE,
        "object_store_memory": OBJECT_STORE_BYTES,
        "node_ip_address": "127.0.0.1",
    }
    dashboard = {"include_dashboard": True, "dashboard_host": "127.0.0.1", "dashboard_port": dashboard_port}
    cluster = Cluster(initialize_head=True, head_node_args=size | dashboard)
    head = cluster.head_node
    for _ in range(nodes - 1):
        cluster.add_node(**size)
    while head and head.remaining_processes_alive():
        time.sleep(1)
    sys.exit("A process of the head node has ended.")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
