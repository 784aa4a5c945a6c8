"""The MLflow run of a training: kept by a thread, so that no step waits for a server, and gone on with after a kill.

An MLflow that is away in the middle, or when a training goes on, stops nothing: what it does not take is kept, and told when
it is back. A training that begins needs it.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from threading import Event
from types import TracebackType
from typing import Any, TypeVar

from perfuse import storage
from perfuse.console import say
from perfuse.errors import ServerError
from perfuse.metrics.curve import Curve
from perfuse.report import page
from perfuse.scoring import Evaluation
from perfuse.tracking import Run, Told
from perfuse.training import TrainingJob

Answer = TypeVar("Answer")
RUN, UNSENT, REPORT = "run.json", "unsent.json", "report.html"
"""In the job's folder: the id of its run; metrics that MLflow has not taken; the page about the training."""

LONGEST_WAIT_S = 60.0
"""Between two tries while MLflow is away; the first waits are shorter."""
PATIENCE_S = 60.0
"""For an MLflow that is away when the training is done."""


class RunLog:
    """Writes in the order it is told to, behind the training; what MLflow refuses is raised at the next word, or the end."""

    def __init__(self, job: TrainingJob, name: str, *, parent: str | None = None) -> None:
        self._job, self._name = job, name
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="mlflow")
        self._known = storage.exists(storage.join(job.folder, RUN))
        self._untold: deque[tuple[Told, dict[str, bytes]]] = deque()
        self._sent: list[Future[None]] = []
        self._hurry, self._until = Event(), math.inf
        self._away = self._gave_up = False
        self._run: Future[Run] = self._pool.submit(self._opened, parent)

    def __enter__(self) -> "RunLog":
        return self

    def __call__(self, step: int, metrics: dict[str, float], pictures: dict[str, bytes]) -> None:
        """Log metrics and PNG pictures of a step; the first of a run waits for it to be open: a server that is away shows at once."""
        if not self._known:
            self.run()
        self._raise_failures([f for f in self._sent if f.done()])
        self._untold.append((Told(step, metrics), pictures))
        self._sent.append(self._pool.submit(self._send))

    def flush(self) -> None:
        """Wait until MLflow has all; ServerError when it stays away for `PATIENCE_S`."""
        self._finish_sending(PATIENCE_S)

    def thresholds(self, curves: Mapping[str, Curve]) -> None:
        """Log what was chosen on the validation scans, and how little it matters: of each class under NAME.CLASS."""
        chosen = {
            f"{name}.{class_name}" if class_name else name: value
            for class_name, curve in curves.items()
            for name, value in _chosen(curve).items()
        }
        self.run().json("threshold.json", chosen)
        self.run().metrics(0, chosen)

    def report(self, model: str, curves: Mapping[str, Curve], scores: Sequence[Evaluation]) -> str:
        """Write the page about the finished training into its folder and its run; returns its URL."""
        run = self.run()
        last = {path.split("/")[1]: path for path in sorted(run.files("pictures"))}
        pictures = {specimen: run.read(path) for specimen, path in last.items()}
        return self._write(page(self._job, model, run.history(), pictures, curves, scores))

    def _write(self, html: str) -> str:
        url, data = storage.join(self._job.folder, REPORT), html.encode()
        storage.write_bytes(url, data)
        self.run().file(REPORT, data)
        return url

    def _report_so_far(self, pictures: Mapping[str, bytes]) -> None:
        self._write(page(self._job, self._name, self.run().history(), pictures))

    def run(self) -> Run:
        """The run itself, when it is open."""
        return self._run.result()

    def _opened(self, parent: str | None) -> Run:
        """The run; one that was begun earlier is waited for."""
        act = partial(_open, self._job, self._name, parent)
        return self._insist(act) if self._known else act()

    def _send(self) -> None:
        """All that waits: metrics in one request, then the pictures; after a validation the page as it stands."""
        waiting = list(self._untold)
        if not waiting or self._gave_up:
            return
        run = self.run()
        self._insist(partial(run.log, [told for told, _ in waiting]))
        for told, pictures in waiting:
            for title, png in pictures.items():
                path = f"pictures/{title}/step-{told.step:06d}.png"
                self._insist(partial(run.file, path, png))
        if validations := [pictures for _, pictures in waiting if pictures]:
            self._insist(partial(self._report_so_far, validations[-1]))
        for _ in waiting:
            self._untold.popleft()

    def _insist(self, act: Callable[[], Answer]) -> Answer:
        """What an act answers: tried again, less and less often, until MLflow answers or patience ends."""
        wait = 1.0
        while True:
            try:
                answer = act()
            except ServerError as error:
                if time.monotonic() >= self._until:
                    self._gave_up = True
                    raise
                if not self._away:
                    say(f"{error} Meanwhile the training goes on, and MLflow is told when it is back.")
                self._away = True
                if self._hurry.wait(wait):
                    time.sleep(1)
                wait = min(2 * wait, LONGEST_WAIT_S)
            else:
                if self._away:
                    say("MLflow answers again.")
                self._away = False
                return answer

    def _raise_failures(self, sent: list[Future[None]]) -> None:
        for future in sent:
            self._sent.remove(future)
            future.result()

    def _finish_sending(self, patience_s: float) -> None:
        self._until = time.monotonic() + patience_s
        self._hurry.set()
        self.run()
        self._raise_failures(list(self._sent))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the run as the training ended; metrics that MLflow has not taken stay in the job's folder."""
        try:
            if kind is None:
                self.flush()
                self.run().finish()
            else:
                with suppress(Exception):  # the error that ended the training is the one to tell
                    self._finish_sending(0)
                    self.run().finish("KILLED" if issubclass(kind, KeyboardInterrupt) else "FAILED")
        finally:
            self._pool.shutdown()
            if self._untold:
                place = storage.join(self._job.folder, UNSENT)
                earlier = storage.read_json(place) if storage.exists(place) else []
                storage.write_json(place, [*earlier, *(asdict(told) for told, _ in self._untold)])


def _chosen(curve: Curve) -> dict[str, float]:
    at, plateau = curve.chosen, curve.plateau
    return {
        "threshold": at / 255,
        "selection_dice": float(curve.dice[at - 1]),
        "selection_surface_dice": float(curve.surface_dice[at - 1]),
        "plateau_low": plateau.low,
        "plateau_high": plateau.high,
    }


def _open(job: TrainingJob, name: str, parent: str | None) -> Run:
    place = storage.join(job.folder, RUN)
    run = _earlier(place)
    if run is None:
        run = Run.start(name, {"perfuse.key": job.key, "perfuse.recipe": job.recipe.name}, parent=parent)
        storage.write_json(place, {"run_id": run.id})
        run.params({"recipe": job.recipe.model_dump(mode="json"), "key": job.key, "folder": job.folder})
        run.json("data.json", _data(job))
    _tell_late(run, storage.join(job.folder, UNSENT))
    return run


def _earlier(place: str) -> Run | None:
    try:
        return Run.resume(storage.read_json(place)["run_id"])
    except FileNotFoundError:
        return None


def _tell_late(run: Run, unsent: str) -> None:
    if storage.exists(unsent):
        run.log([Told(**told) for told in storage.read_json(unsent)])
        storage.remove_file(unsent)


def _data(job: TrainingJob) -> dict[str, Any]:
    """The digests of all voxels and labels that the training sees."""
    return {
        "train": [source.model_dump(mode="json") for source in job.train],
        "validation": [source.model_dump(mode="json") for source in job.validation],
    }
