"""A training on two Ray nodes, to which everything happens that can: python machines.py JOB.json, whose folder may be on s3://.

Prints a JSON list, in order: of each start of the ranks how many there are and the first step that they take, of each event a step
that must not be lost: the last that was reported, or, where nobody was told before, the last that was saved. A process of its
own, for Ray reads the addresses that it may take when imported.
"""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import ray
from ray.cluster_utils import Cluster
from ray.core.generated.autoscaler_pb2 import DrainNodeReason

from perfuse.training import TrainingJob
from perfuse.training.checkpoints import latest_step
from perfuse_jobs import distributed, ranks
from perfuse_jobs.workers import Workers

WORKER_CPUS = 2
NODE = {"num_cpus": 3, "object_store_memory": 100_000_000, "node_ip_address": "127.0.0.1"}
"""Room for one rank and its cutters."""


class Machines:
    """The nodes, the ranks' processes, and what has happened."""

    def __init__(self, job: TrainingJob, notes: Path) -> None:
        self.job, self.notes, self.told, self.step = job, notes, list[dict[str, Any]](), 0
        self.cluster = Cluster(initialize_head=True, head_node_args=NODE | {"include_dashboard": False})
        self.second = self.cluster.add_node(**NODE)
        ray.init(self.cluster.address, logging_level="error", log_to_driver=False)
        self.notes.mkdir()
        self.run_rank = self._noting(ranks.run_rank, str(self.notes))

    @staticmethod
    def _noting(run_rank: Callable[[Any], None], notes: str) -> Callable[[Any], None]:
        """The same function, which first notes its process; of no module, so that Ray sends it as it is."""

        def noting(config: Any) -> None:
            import ray.train

            os.cpu_count = lambda: 1  # type: ignore[assignment] # so small a network is slower on more threads
            context = ray.train.get_context()
            note = Path(notes, str(context.get_world_rank()))
            note.with_suffix(".new").write_text(f"{os.getpid()} {context.get_world_size()}")
            note.with_suffix(".new").replace(note)
            run_rank(config)

        return noting

    def note(self, rank: int) -> tuple[int, int]:
        """Process and world size of a rank that was started last."""
        pid, world = map(int, (self.notes / str(rank)).read_text().split())
        return pid, world

    def train(self, job: TrainingJob, *events: Callable[[], None]) -> None:
        """Train; the first report of each start of the ranks makes the next event happen."""
        left, seen = list(events), set[int]()

        def report(step: int, *_: object) -> None:
            self.step = step
            pid, world = self.note(0)
            if pid in seen:
                return
            seen.add(pid)
            self.told.append({"ranks": world, "first": step})
            if left:
                threading.Thread(target=left.pop(0)).start()

        distributed.train_on_ray(job, report, workers=Workers(1, 2))

    def terminate_a_rank(self) -> None:
        """SIGTERM to the rank that does not write checkpoints."""
        self._tell("SIGTERM to rank 1", self.step)
        os.kill(self.note(1)[0], signal.SIGTERM)

    def terminate_the_driver(self) -> None:
        """SIGTERM to this process."""
        self._tell("SIGTERM to the driver", self.step)
        os.kill(os.getpid(), signal.SIGTERM)

    def take_a_node(self) -> None:
        """As a cloud does: it says so, and soon does it."""
        rank = psutil.Process(self.note(0)[0])
        deadline = int(time.time() * 1000) + 60_000
        why = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
        store: Any = self.cluster.head_node.get_gcs_client()
        self._tell("drain", self.step)
        store.drain_node(self.second.node_id, why, "", deadline)
        psutil.wait_procs([rank], timeout=60)
        self.cluster.remove_node(self.second, allow_graceful=False)

    def kill_a_rank(self) -> None:
        """Kill -9 to one that has just saved."""
        before = latest_step(self.job.folder)
        while latest_step(self.job.folder) == before:
            time.sleep(0.01)
        self._tell("kill -9", latest_step(self.job.folder))
        os.kill(self.note(0)[0], signal.SIGKILL)

    def _tell(self, event: str, step: int) -> None:
        self.told.append({"event": event, "step": step})


def main(job: TrainingJob, notes: Path) -> None:
    """Train until the driver is terminated, with a checkpoint only where something happens; then on, with many."""
    distributed.TASK_CPUS = WORKER_CPUS
    machines = Machines(job, notes)
    ranks.run_rank = machines.run_rank
    try:
        machines.train(job, machines.terminate_a_rank, machines.terminate_the_driver)
    except KeyboardInterrupt:
        machines.told.append({"event": "KeyboardInterrupt", "step": latest_step(job.folder)})
    often = job.model_copy(update={"recipe": job.recipe.model_copy(update={"checkpoint_every": 10})})
    machines.train(often, machines.take_a_node, machines.kill_a_rank)
    ray.shutdown()
    machines.cluster.shutdown()
    print(json.dumps(machines.told))


if __name__ == "__main__":
    described = Path(sys.argv[1])
    main(TrainingJob.model_validate_json(described.read_text()), described.with_name("pids"))
