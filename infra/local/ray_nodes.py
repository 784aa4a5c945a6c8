"""Runs the nodes of a local Ray cluster until it is told to end: python ray_nodes.py DASHBOARD_PORT NODES READY.

`ray start` takes no second node on the loopback; Ray's own cluster helper does.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from ray._private.ray_constants import KV_NAMESPACE_DASHBOARD
from ray.cluster_utils import Cluster
from ray.dashboard.consts import DASHBOARD_AGENT_ADDR_NODE_ID_PREFIX

CPUS_PER_NODE = 4
"""Logical, whatever the machine has: Ray Train beside Ray Data waits for ever on fewer."""

OBJECT_STORE_BYTES = 200_000_000


def main(dashboard_port: int, nodes: int, ready: str) -> None:
    """Starts the nodes, prints `ready` when all take jobs, and ends only when the head has lost a process."""
    size: dict[str, Any] = {
        "num_cpus": CPUS_PER_NODE,
        "object_store_memory": OBJECT_STORE_BYTES,
        "node_ip_address": "127.0.0.1",
        "dashboard_agent_listen_port": 0,  # the default port may be another Ray's, and the Jobs API needs the agent
    }
    dashboard = {"include_dashboard": True, "dashboard_host": "127.0.0.1", "dashboard_port": dashboard_port}
    cluster = Cluster(initialize_head=True, head_node_args=size | dashboard)
    for number in range(1, nodes):
        # a node unpacks a job's code anew, and must not do so where another node's processes stand
        cluster.add_node(**size, runtime_env_dir_name=f"runtime_resources_{number}")
    head: Any = cluster.head_node
    _wait_for_agents(head, nodes)
    print(ready, flush=True)
    while head.remaining_processes_alive():
        time.sleep(1)
    sys.exit("A process of the head node has ended.")


def _wait_for_agents(head: Any, nodes: int) -> None:
    store = head.get_gcs_client()
    while len(store.internal_kv_keys(DASHBOARD_AGENT_ADDR_NODE_ID_PREFIX.encode(), KV_NAMESPACE_DASHBOARD)) < nodes:
        time.sleep(0.2)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
