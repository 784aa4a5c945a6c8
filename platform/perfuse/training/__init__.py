"""The training engine: one job, any number of workers, no Ray."""

from perfuse.training.engine import train
from perfuse.training.job import TrainingJob, finished_bundle, is_finished, plan_job
from perfuse.training.local import train_local

__all__ = ["TrainingJob", "finished_bundle", "is_finished", "plan_job", "train", "train_local"]
