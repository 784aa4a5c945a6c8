"""The MLflow run of a training: kept by a thread, so that no step waits for a server, and gone on with after a kill."""

from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any

from perfuse import storage
from perfuse.metrics.curve import Curve
from perfuse.tracking import Run
from perfuse.training import TrainingJob

RUN = "run.json"
"""In the job's folder: the id of its run."""


class RunLog:
    """Writes in the order it is told to, behind the training; an error of MLflow's is raised at the next word, or the end."""

    def __init__(self, job: TrainingJob, name: str, *, parent: str | None = None) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="mlflow")
        self._run: Future[Run] = self._pool.submit(_open, job, name, parent)
        self._pending: list[Future[None]] = []

    def __enter__(self) -> "RunLog":
        return self

    def __call__(self, step: int, metrics: dict[str, float], pictures: dict[str, bytes]) -> None:
        """Log metrics and PNG pictures of a step; waits for the run to be open, so that a server that is away shows at once."""
        self.run()
        self._raise_failures([f for f in self._pending if f.done()])

        def write() -> None:
            self.run().metrics(step, metrics)
            for title, png in pictures.items():
                self.run().file(f"pictures/{title}/step-{step:06d}.png", png)

        self._pending.append(self._pool.submit(write))

    def threshold(self, curve: Curve) -> None:
        """Log what was chosen on the validation scans, and how little it matters."""
        at, plateau = curve.chosen, curve.plateau
        chosen = {
            "threshold": at / 255,
            "selection_dice": float(curve.dice[at - 1]),
            "selection_surface_dice": float(curve.surface_dice[at - 1]),
            "plateau_low": plateau.low,
            "plateau_high": plateau.high,
        }
        self.run().json("threshold.json", chosen)
        self.run().metrics(0, chosen)

    def run(self) -> Run:
        """The run itself, when it is open."""
        return self._run.result()

    def _raise_failures(self, written: list[Future[None]]) -> None:
        for future in written:
            self._pending.remove(future)
            future.result()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the run as the training ended."""
        try:
            if kind is None:
                self._raise_failures(list(self._pending))
                self.run().finish()
            elif self._run.done() and self._run.exception() is None:
                self.run().finish("KILLED" if issubclass(kind, KeyboardInterrupt) else "FAILED")
        finally:
            self._pool.shutdown(wait=kind is None, cancel_futures=True)


def _open(job: TrainingJob, name: str, parent: str | None) -> Run:
    place = storage.join(job.folder, RUN)
    run = _earlier(place)
    if run is None:
        run = Run.start(name, {"perfuse.key": job.key, "perfuse.recipe": job.recipe.name}, parent=parent)
        storage.write_json(place, {"run_id": run.id})
        run.params({"recipe": job.recipe.model_dump(mode="json"), "key": job.key, "folder": job.folder})
        run.json("data.json", _data(job))
    return run


def _earlier(place: str) -> Run | None:
    try:
        return Run.resume(storage.read_json(place)["run_id"])
    except FileNotFoundError:
        return None


def _data(job: TrainingJob) -> dict[str, Any]:
    """The digests of all voxels and labels that the training sees."""
    return {
        "train": [source.model_dump(mode="json") for source in job.train],
        "validation": [source.model_dump(mode="json") for source in job.validation],
    }
