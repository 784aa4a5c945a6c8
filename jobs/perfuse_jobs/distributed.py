"""A training job on Ray: Ray Train places the ranks and runs them, and they are started again here until the job is finished.

Checkpoints are the engine's own (docs/decisions/0003), so ranks that are started again, as many or fewer, go on from the
job's folder. Rank 0 reports through a queue to the driver, which alone speaks to MLflow and to the person at the terminal.
"""

import os
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from perfuse import sampling, storage
from perfuse.console import say
from perfuse.errors import PerfuseError
from perfuse.training import TrainingJob, is_finished
from perfuse.training.checkpoints import latest_step
from perfuse.training.termination import on_sigterm
from perfuse_jobs.session import TASK_CPUS, connect
from perfuse_jobs.workers import Workers

if TYPE_CHECKING:
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from perfuse.training.engine import Report

STOP = "stop"
"""The file in the job's folder by which the driver orders an end; it stays for ranks that start anew."""

DEATHS = 4
"""So many times in a row ranks may fail without a checkpoint between, before the training does."""

PATIENCE_S = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "10",
}
"""Between two looks of Ray Train after its workers, and after their nodes; and for room, before it counts anew what there is."""


def train_on_ray(job: TrainingJob, report: "Report", *, workers: Workers) -> None:
    """Run a job to its end on as many ranks as find room; `report` is called in this process, with what rank 0 reports.

    Ranks that end before the job is finished (SIGTERM, a node that goes, death) are started again at the latest checkpoint,
    where there is room then. SIGTERM to this process ends the training as Ctrl-C would, by KeyboardInterrupt, but after a
    whole step and with a checkpoint of it. Raises RecipeError when there are more workers than crops in a batch, what a
    worker raised for the user, and what else it raised when starting again did not help.
    """
    next(sampling.rows(job, 0, workers.most, 0))
    connect(workers.most)
    reports, order = _queue_here(), storage.join(job.folder, STOP)
    storage.remove_file(order)
    failures = 0
    try:
        with on_sigterm() as stop:
            while not is_finished(job):
                if stop.is_set():
                    raise KeyboardInterrupt
                begin = latest_step(job.folder)
                fitted = _fit_in_thread(_trainer(job, reports, order, workers))
                for told in _told(fitted, reports):
                    if stop.is_set() and not storage.exists(order):
                        storage.write_bytes(order, b"")
                    if told is not None:
                        report(*told)
                at = latest_step(job.folder)
                failures = _failures(fitted, failures if at == begin else 0)
                if not (is_finished(job) or stop.is_set()):
                    say(f"The workers have ended at step {at}. They start again where there is room.")
    finally:
        reports.shutdown(force=True)
        storage.remove_file(order)


def _queue_here() -> Any:
    """A queue that no other node takes with it."""
    import ray
    from ray.util.queue import Queue
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})


def _told(fitted: "Future[None]", reports: Any) -> Iterator[Any]:
    """What rank 0 says, in order, and None while it says nothing; at the end, what is meant for the user is raised."""
    from ray.util.queue import Empty

    refusal: PerfuseError | None = None
    while not (fitted.done() and reports.empty()):
        try:
            told = reports.get(timeout=0.5)
        except Empty:
            told = None
        if isinstance(told, PerfuseError):
            refusal = told
        else:
            yield told
    if refusal is not None:
        raise refusal


def _failures(fitted: "Future[None]", before: int) -> int:
    """How often the ranks have failed in a row; raises what they failed by when that is too often, or is not theirs."""
    from ray.train import TrainingFailedError

    error = fitted.exception()
    if error is None:
        return 0
    if before + 1 == DEATHS or not isinstance(error, TrainingFailedError):
        raise error
    return before + 1


def _trainer(job: TrainingJob, reports: Any, order: str, workers: Workers) -> "TorchTrainer":
    from ray.train.torch import TorchTrainer

    from perfuse_jobs.ranks import EndingTorch, run_rank

    for name, seconds in PATIENCE_S.items():
        os.environ.setdefault(name, seconds)
    return TorchTrainer(
        run_rank,
        train_loop_config={"job": job.model_dump_json(), "reports": reports, "order": order},
        torch_config=EndingTorch(),
        scaling_config=_scaling(workers),
        run_config=_run_config(job),
    )


def _scaling(workers: Workers) -> "ScalingConfig":
    import ray
    from ray.train import ScalingConfig

    gpus = int(ray.cluster_resources().get("GPU", 0))
    if 0 < gpus < workers.fewest:
        raise PerfuseError(f"{workers.fewest} workers need a GPU each, and there are {gpus}. Use --workers {gpus}.")
    return ScalingConfig(
        num_workers=(workers.fewest, workers.most) if workers.fewest < workers.most else workers.most,
        use_gpu=gpus > 0,
        resources_per_worker={"CPU": TASK_CPUS, "GPU": 1} if gpus > 0 else {"CPU": TASK_CPUS},
    )


def _run_config(job: TrainingJob) -> "RunConfig":
    """Ray's own records lie beside our checkpoints; pyarrow reaches any URL through fsspec, as everything here does."""
    from pyarrow.fs import FSSpecHandler, PyFileSystem
    from ray.train import RunConfig

    files = storage.filesystem(job.folder)
    return RunConfig(
        name="ray",
        storage_path=files._strip_protocol(job.folder),
        storage_filesystem=PyFileSystem(FSSpecHandler(files)),
    )


def _fit_in_thread(trainer: "TorchTrainer") -> "Future[None]":
    """Fit beside the main thread, where Ray Train would replace the handler of Ctrl-C for good."""
    fitted: Future[None] = Future()

    def fit() -> None:
        try:
            trainer.fit()
            fitted.set_result(None)
        except BaseException as error:  # noqa: BLE001 - raised again in the main thread; SystemExit when Ray goes first
            fitted.set_exception(error)

    threading.Thread(target=fit, daemon=True).start()
    return fitted
