"""Training in this process, without Ray: threads cut the next crops, or the GPU does, while the network learns from these."""

from collections.abc import Iterator
from typing import Any

from perfuse import sampling
from perfuse.sampling.resident import feed_resident, fits
from perfuse.training.engine import Report, train
from perfuse.training.job import TrainingJob, is_finished
from perfuse.training.termination import on_sigterm


def train_local(job: TrainingJob, report: Report) -> None:
    """Run a job to its end; the same command goes on where a killed one stopped.

    SIGTERM ends it as Ctrl-C would, by KeyboardInterrupt, but after a whole step and with a checkpoint of it.
    """
    with on_sigterm() as stop:
        train(job, lambda first: batches(job, first), report=report, stop=stop.is_set)
    if stop.is_set() and not is_finished(job):
        raise KeyboardInterrupt


def batches(job: TrainingJob, first_step: int) -> Iterator[dict[str, Any]]:
    """All batches from `first_step` on: cut on the GPU where there is one and the scans fit in half of its memory."""
    if fits(job):
        return feed_resident(job, "cuda", first_step=first_step)
    return sampling.feed(job, first_step=first_step)
