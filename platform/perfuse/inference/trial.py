"""One backend tried on one batch: here, or in a process of its own, which is ended when compiling takes too long.

python -m perfuse.inference.trial FOLDER     # what `trial_elsewhere` runs
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from perfuse.bundle import Bundle
from perfuse.contract import Frozen
from perfuse.inference.backends import Backend
from perfuse.inference.engine import Engine, Fixed, Images

LONG = 2.0
"""Seconds from which on the first answer of an eager backend is measure enough: what it prepares no longer shows."""
GLIMPSE = 5.0
"""Seconds in which a plan sees enough of a network; one that takes longer for one picture takes that."""
IMAGES, LOGITS, TASK, RESULT = "images.npy", "logits.npy", "task.json", "result.json"


class Task(Frozen):
    """What another process is told, beside the bundle and the images."""

    backend: Backend
    device: str
    threads: int


class Seconds(Frozen):
    """How long a backend took."""

    first: float
    """For its first answers, one of each stream, with all that it prepared."""
    batch: float
    """For each from then on, as many at once as there are streams."""


Trial = Callable[[Engine, Images], tuple[Seconds, Fixed]]


def trial(engine: Engine, images: Images) -> tuple[Seconds, Fixed]:
    """How long an engine takes for a batch, and its answer."""

    def answered() -> tuple[float, Fixed]:
        begin = time.perf_counter()
        *_, answer = engine.all_logits([lambda: images] * engine.streams)
        return time.perf_counter() - begin, answer

    first, answer = answered()
    done = first > LONG and engine.backend.startswith("eager")
    taken = first if done else min(answered()[0], answered()[0])
    return Seconds(first=first, batch=taken / engine.streams), answer


def glimpse(engine: Engine, images: Images) -> tuple[Seconds, Fixed]:
    """`trial` of the first of the images alone, and of twice as many while that fits into `GLIMPSE`: times as of all, their answer."""
    count, begin = 1, time.perf_counter()
    while True:
        since = time.perf_counter()
        seconds, answer = trial(engine, images[:count])
        now = time.perf_counter()
        if count == len(images) or now - begin + 3 * (now - since) > GLIMPSE:
            many = len(images) / count
            return Seconds(first=seconds.first * many, batch=seconds.batch * many), answer
        count = min(2 * count, len(images))


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
    from perfuse.models import build

    task = Task.model_validate_json((folder / TASK).read_text())
    bundle = Bundle.load(folder)
    network = build(bundle.contract.forward.network)
    network.load_state_dict(bundle.weights)
    engine = Engine.of(network, bundle.contract.forward, task.device, task.backend, task.threads)
    seconds, logits = trial(engine, np.load(folder / IMAGES))
    np.save(folder / LOGITS, logits)
    (folder / RESULT).write_text(seconds.model_dump_json())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
