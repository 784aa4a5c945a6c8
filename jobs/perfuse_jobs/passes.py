"""Passes over volumes on a Ray cluster: runs of blocks as tasks, each on all cores of the node where it lands."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from perfuse.parallel import in_order
from perfuse_jobs.session import TASK_CPUS, connect, refusals

TRIES = 3
"""When a process or a node dies."""


def spread(processes: int) -> Callable[[Callable[[Any], Any], Sequence[Any]], Iterator[Any]]:
    """The function that does the work of `perfuse.passes.Spread`, on the Ray of the job, or one started here."""
    connect(processes)
    import ray

    task = ray.remote(num_cpus=TASK_CPUS, max_retries=TRIES, scheduling_strategy="SPREAD")(_called)

    def run(work: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
        shared = ray.put(work)

        def call(item: Any) -> Any:
            with refusals():
                return ray.get(task.remote(shared, item))

        yield from in_order(call, items, threads=processes, waiting=processes)

    return run


def _called(work: Callable[[Any], Any], item: Any) -> Any:
    return work(item)
