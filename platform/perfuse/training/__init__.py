"""The training engine: one job, any number of workers, no Ray. What a job is can be read here without PyTorch."""

from perfuse.training.job import TrainingJob, finished_bundle, is_finished, plan_job

__all__ = ["TrainingJob", "finished_bundle", "is_finished", "plan_job"]
