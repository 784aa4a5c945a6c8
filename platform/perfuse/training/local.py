"""Training in this process, without Ray: threads cut the next crops while the network learns from these."""

from perfuse import sampling
from perfuse.training.engine import Report, train
from perfuse.training.job import TrainingJob, is_finished
from perfuse.training.termination import on_sigterm


def train_local(job: TrainingJob, report: Report) -> None:
    """Run a job to its end; the same command goes on where a killed one stopped.

    SIGTERM ends it as Ctrl-C would, by KeyboardInterrupt, but after a whole step and with a checkpoint of it.
    """
    with on_sigterm() as stop:
        train(job, lambda first: sampling.feed(job, first_step=first), report=report, stop=stop.is_set)
    if stop.is_set() and not is_finished(job):
        raise KeyboardInterrupt
