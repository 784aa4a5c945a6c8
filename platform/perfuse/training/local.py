"""Training in this process, without Ray: a thread cuts the next crops while the network learns from these."""

from collections.abc import Iterator
from queue import Queue
from threading import Event, Thread
from typing import Any

from perfuse import sampling
from perfuse.training.engine import Report, train
from perfuse.training.job import TrainingJob, is_finished
from perfuse.training.termination import on_sigterm

AHEAD = 8
"""Batches that are kept ready."""


def train_local(job: TrainingJob, report: Report) -> None:
    """Run a job to its end; the same command goes on where a killed one stopped.

    SIGTERM ends it as Ctrl-C would, by KeyboardInterrupt, but after a whole step and with a checkpoint of it.
    """
    with on_sigterm() as stop:
        train(job, lambda first: _ahead(job, first), report=report, stop=stop.is_set)
    if stop.is_set() and not is_finished(job):
        raise KeyboardInterrupt


def _ahead(job: TrainingJob, first_step: int) -> Iterator[dict[str, Any]]:
    queue: Queue[Any] = Queue(AHEAD)
    leave = Event()

    def feed() -> None:
        try:
            for row in sampling.rows(job, 0, 1, first_step):
                for batch in sampling.cut(job, row):
                    if leave.is_set():
                        return
                    queue.put(batch)
            queue.put(None)
        except Exception as error:  # noqa: BLE001 - raised again in the thread that trains
            queue.put(error)

    thread = Thread(target=feed, daemon=True)
    thread.start()
    try:
        while (batch := queue.get()) is not None:
            if isinstance(batch, Exception):
                raise batch
            yield batch
    finally:
        leave.set()
        while not queue.empty():
            queue.get_nowait()
