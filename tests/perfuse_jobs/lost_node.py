"""A prediction on two Ray nodes, one of which is killed when the first slab is written: python lost_node.py SCAN OUTPUT.

Prints as JSON how many slabs were still to do, and how many processes that held the network went with the node. A process of its
own, for Ray reads the addresses that it may take when imported.
"""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import ray
from ray.cluster_utils import Cluster

sys.path.insert(0, str(Path(__file__).parent))

from test_predict import bundle

from perfuse.inference import predict, prepare
from perfuse_jobs import predict as jobs
from perfuse_jobs.session import quieten
from perfuse_jobs.workers import Workers

NODE = {"num_cpus": 1, "object_store_memory": 100_000_000, "node_ip_address": "127.0.0.1"}
"""Room for one process that holds the network, and for no other while that is at work."""


def main(scan_url: str, output: str) -> None:
    quieten()
    cluster = Cluster(initialize_head=True, head_node_args=NODE | {"num_cpus": 0, "include_dashboard": False})
    nodes = [cluster.add_node(**NODE) for _ in range(2)]
    ray.init(cluster.address, logging_level="error", log_to_driver=False)
    told: dict[str, int] = {}

    def kill_a_node() -> None:
        raylets = {node: psutil.Process(node.all_processes["raylet"][0].process.pid) for node in nodes}
        actors = {node: sum("SlabActor" in p.name() for p in raylet.children()) for node, raylet in raylets.items()}
        node = max(nodes, key=lambda node: actors[node])
        told["left"], told["actors"] = len(prepare(scan_url, bundle(), output).slabs_to_do()), actors[node]
        cluster.remove_node(node, allow_graceful=False)

    @contextmanager
    def killing(what: str, total: int) -> Iterator[Callable[[], None]]:
        del what, total
        yield lambda: None if told else kill_a_node()

    jobs.TASK_CPUS = 1.0
    jobs.progress = killing  # type: ignore[assignment]
    predict(scan_url, bundle(), output, runner=jobs.on_ray(Workers(2, 2)))
    told["nodes"] = sum(node["Alive"] for node in ray.nodes())
    ray.shutdown()
    cluster.shutdown()
    print(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
