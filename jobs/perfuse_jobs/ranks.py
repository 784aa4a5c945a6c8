"""What each worker of Ray Train runs: the engine, fed by a Ray Data pipeline of its own, until all ranks agree to end.

A rank wishes to end when SIGTERM comes to its process, when Ray drains a node that a rank runs on (a spot machine goes), or
when the driver has left its order. The wish of any rank ends all of them after the same step, with a checkpoint of it.
"""

import os
import signal
import threading
from contextlib import suppress
from typing import Any

import ray.train
import torch
import torch.distributed as dist
from ray.exceptions import RayError
from ray.train.torch import TorchConfig, prepare_model

from perfuse import storage
from perfuse.errors import PerfuseError
from perfuse.training import TrainingJob
from perfuse.training.engine import train
from perfuse_jobs.feeding import batches
from perfuse_jobs.session import refusal_in

LOOK_S = 1.0
"""Between two looks for the driver's order, and at what Ray knows of the nodes."""

_wish = threading.Event()
"""Of this process, which lives as long as its rank."""


def run_rank(config: dict[str, Any]) -> None:
    """Learn until the job's end or until a rank wishes to end.

    config: the job as JSON; reports, the queue to the driver, through which an error that is meant for the user travels
    unwrapped; order, the URL of a file by which the driver orders an end.
    """
    job = TrainingJob.model_validate_json(config["job"])
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // context.get_local_world_size()))
    ranks = dist.new_group(backend="gloo")  # of the ranks' CPUs, that no GPU is waited for

    def report(step: int, metrics: dict[str, float], pictures: dict[str, bytes]) -> None:
        if rank == 0:
            config["reports"].put((step, metrics, pictures))

    threading.Thread(target=_watch, args=(config["order"], rank), daemon=True).start()
    try:
        train(
            job,
            lambda first: batches(job, rank, world, first),
            rank=rank,
            world=world,
            report=report,
            stop=lambda: _agreed(ranks),
            wrap=_joined,
        )
    except Exception as error:
        if refusal := refusal_in(error):
            config["reports"].put(refusal)
        raise


def _joined(network: torch.nn.Module) -> torch.nn.Module:
    """A network whose ranks share their gradients; a shorter decoder leaves the encoder's last stage without any."""
    joined: torch.nn.Module = prepare_model(network, parallel_strategy_kwargs={"find_unused_parameters": True})
    return joined


def _agreed(ranks: Any) -> bool:
    """True on all ranks, a process group, when any of them wishes to end."""
    wish = torch.tensor(int(_wish.is_set()))
    dist.all_reduce(wish, dist.ReduceOp.MAX, ranks)
    return bool(wish)


def _watch(order: str, rank: int) -> None:
    """Wish to end when Ray says that a node goes, which all ranks must ask together, or the driver has given its order."""
    with suppress(RayError):  # the training has ended
        while not _wish.wait(LOOK_S):
            if ray.train.get_preemption_info() is not None:
                _wish.set()
            with suppress(PerfuseError):  # a store may be away for a while
                if rank == 0 and storage.exists(order):
                    _wish.set()


class _Ending(TorchConfig().backend_cls):  # type: ignore[misc]
    def on_training_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        """Heed SIGTERM in the workers' main threads, where Python's signals arrive; the training runs in another."""
        super().on_training_start(worker_group, backend_config)
        worker_group.execute(_heed_sigterm)


class EndingTorch(TorchConfig):  # type: ignore[misc]
    """Ray Train's process group of PyTorch, in processes that SIGTERM does not end before there is a checkpoint."""

    @property
    def backend_cls(self) -> type[_Ending]:
        """What starts it."""
        return _Ending


def _heed_sigterm() -> None:
    """In place of Ray's handler, which would end the process at once; heard when the driver next asks how it goes."""
    signal.signal(signal.SIGTERM, lambda *_: _wish.set())
