"""One backend tried on one batch: here, or in a process of its own, which is ended when compiling takes too long.

python -m perfuse.inference.trial FOLDER     # what `trial_elsewhere` runs
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt

from perfuse.bundle import Bundle
from perfuse.contract import Frozen
from perfuse.inference.backends import Backend
from perfuse.inference.slab import Engine

LONG = 2.0
"""Seconds from which on the first answer of an eager backend is measure enough: what it prepares no longer shows."""
IMAGES, LOGITS, TASK, RESULT = "images.npy", "logits.npy", "task.json", "result.json"

Images = npt.NDArray[np.float32]
Fixed = npt.NDArray[np.int32]


class Task(Frozen):
    """What another process is told, beside the bundle and the images."""

    backend: Backend
    device: str
    threads: int


class Seconds(Frozen):
    """How long a backend took."""

    first: float
    """For its first answer, with all that it prepared."""
    batch: float
    """For one from then on."""


def trial(engine: Engine, images: Images) -> tuple[Seconds, Fixed]:
    """How long an engine takes for a batch, and its answer."""

    def seconds() -> float:
        begin = time.perf_counter()
        engine.logits(images)
        return time.perf_counter() - begin

    first = seconds()
    done = first > LONG and engine.backend.startswith("eager")
    return Seconds(first=first, batch=first if done else min(seconds(), seconds())), engine.logits(images)


def trial_elsewhere(bundle: Bundle, images: Images, task: Task, limit: float) -> tuple[Seconds, Fixed] | str:
    """The same in a process of its own, within `limit` seconds; or why it came to nothing.

    What is compiled there is kept by torch on this machine, and found again by whoever compiles the same.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle.save(folder)
        np.save(folder / IMAGES, images)
        (folder / TASK).write_text(task.model_dump_json())
        path = os.pathsep.join(part for part in sys.path if part)
        try:
            subprocess.run(
                [sys.executable, "-m", "perfuse.inference.trial", name],
                env=os.environ | {"PYTHONPATH": path},
                timeout=limit,
                check=True,
                capture_output=True,
                text=True,
            )
        except subprocess.TimeoutExpired:
            return f"not ready within {limit:.0f} s"
        except subprocess.CalledProcessError as error:
            return " ".join(error.stderr.strip().splitlines()[-1:])[:200] or f"it ended with code {error.returncode}"
        return Seconds.model_validate_json((folder / RESULT).read_text()), np.load(folder / LOGITS)


def main(folder: Path) -> None:
    """Do the task of a folder, and leave the result there."""
    import torch

    from perfuse.models import build

    task = Task.model_validate_json((folder / TASK).read_text())
    torch.set_num_threads(task.threads)
    bundle = Bundle.load(folder)
    network = build(bundle.contract.forward.network)
    network.load_state_dict(bundle.weights)
    engine = Engine.of(network, bundle.contract.forward, task.device, task.backend)
    seconds, logits = trial(engine, np.load(folder / IMAGES))
    np.save(folder / LOGITS, logits)
    (folder / RESULT).write_text(seconds.model_dump_json())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
