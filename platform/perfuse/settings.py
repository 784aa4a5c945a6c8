"""Where perfuse keeps things when nobody says otherwise: one work folder."""

import os
import tempfile
from pathlib import Path

from perfuse import storage


def work_folder() -> Path:
    """The folder of embedded runs: PERFUSE_WORKDIR, else ./perfuse-work."""
    return Path(os.environ.get("PERFUSE_WORKDIR", "perfuse-work")).absolute()


def storage_url() -> str:
    """Where checkpoints go: PERFUSE_STORAGE (a URL that all workers reach), else the work folder."""
    return storage.normal(os.environ.get("PERFUSE_STORAGE", str(work_folder() / "runs")))


def tracking_uri() -> str:
    """The MLflow server: MLFLOW_TRACKING_URI, else SQLite in the work folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{work_folder() / 'mlflow.db'}"


def scratch_folder() -> Path:
    """Where decoded slices lie that do not fit in memory: PERFUSE_SCRATCH, else the system's folder for temporary files."""
    return Path(os.environ.get("PERFUSE_SCRATCH") or tempfile.gettempdir())


def encoder_weights_url() -> str | None:
    """A folder or URL of pretrained encoders, ENCODER.safetensors each: PERFUSE_ENCODER_WEIGHTS; None: as published."""
    folder = os.environ.get("PERFUSE_ENCODER_WEIGHTS")
    return storage.normal(folder) if folder else None
