"""Training in this process, without Ray: threads cut the next crops while the network learns from these."""

from perfuse import sampling
from perfuse.training.engine import Report, train
from perfuse.training.job import TrainingJob


def train_local(job: TrainingJob, report: Report) -> None:
    """Run a job to its end; the same command goes on where a killed one stopped."""
    train(job, lambda first_step: sampling.feed(job, first_step=first_step), report=report)
