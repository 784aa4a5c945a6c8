"""A training job on Ray: Ray Train runs the ranks and starts them again, Ray Data cuts each rank's crops.

Checkpoints are the engine's own (docs/decisions/0003), so a rank that is started again goes on from the job's folder.
Rank 0 reports through a queue to the driver, which alone speaks to MLflow and to the person at the terminal.
"""

import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from perfuse import sampling, storage
from perfuse.errors import PerfuseError
from perfuse.training import TrainingJob, is_finished
from perfuse.training.termination import on_sigterm
from perfuse_jobs.session import WORKER_CPUS, connect, quieten, refusal_in

if TYPE_CHECKING:
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from perfuse.training.engine import Report

RESTARTS = 3
"""How often the workers are started again after one has died, before the training fails."""

STOP, STOPPED = "stop", "stopped"
"""The file in the job's folder by which the driver orders an end, and what rank 0 answers when the checkpoint is written."""
STOP_SECONDS = 1.0
"""Between two looks for that file."""

CUTTERS, CUTTER_CPUS = 2, 0.5
MOST_BLOCKS = 1024


def train_on_ray(job: TrainingJob, report: "Report", *, workers: int) -> None:
    """Run a job to its end on `workers` ranks; `report` is called in this process, with what rank 0 reports.

    SIGTERM to this process ends it as Ctrl-C would, by KeyboardInterrupt, but after a whole step and with a checkpoint of it.
    Raises RecipeError when there are more workers than crops in a batch, and what a worker raised when restarting
    did not help.
    """
    next(sampling.rows(job, 0, workers, 0))
    connect(workers)
    from ray.util.queue import Empty, Queue

    reports, order = Queue(actor_options={"num_cpus": 0}), storage.join(job.folder, STOP)
    storage.remove_file(order)
    try:
        with on_sigterm() as stop:
            fitted = _fit_in_thread(_trainer(job, reports, workers))
            for told in _told(fitted, reports, Empty):
                if stop.is_set() and not storage.exists(order):
                    storage.write_bytes(order, b"")
                if told == STOPPED:
                    raise KeyboardInterrupt
                if told is not None:
                    report(*told)
    finally:
        reports.shutdown(force=True)
        storage.remove_file(order)


def _told(fitted: "Future[None]", reports: Any, empty: type[Exception]) -> Iterator[Any]:
    """What rank 0 says, in order, and None while it says nothing; at the end, what the workers raised is raised."""
    refusal: PerfuseError | None = None
    while not (fitted.done() and reports.empty()):
        try:
            told = reports.get(timeout=0.5)
        except empty:
            told = None
        if isinstance(told, PerfuseError):
            refusal = told
        else:
            yield told
    if error := fitted.exception():
        raise refusal or error


def _trainer(job: TrainingJob, reports: Any, workers: int) -> "TorchTrainer":
    from ray.train.torch import TorchTrainer

    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    return TorchTrainer(
        run_rank,
        train_loop_config={"job": job.model_dump_json(), "reports": reports},
        scaling_config=_scaling(workers),
        run_config=_run_config(job),
    )


def _scaling(workers: int) -> "ScalingConfig":
    import ray
    from ray.train import ScalingConfig

    gpus = int(ray.cluster_resources().get("GPU", 0))
    if 0 < gpus < workers:
        raise PerfuseError(f"{workers} workers need a GPU each, and there are {gpus}. Use --workers {gpus}.")
    return ScalingConfig(num_workers=workers, use_gpu=gpus > 0, resources_per_worker=_resources(gpus > 0))


def _resources(gpu: bool) -> dict[str, float]:
    return {"CPU": WORKER_CPUS, "GPU": 1} if gpu else {"CPU": WORKER_CPUS}


def _run_config(job: TrainingJob) -> "RunConfig":
    """Ray's own records lie beside our checkpoints; pyarrow reaches any URL through fsspec, as everything here does."""
    from pyarrow.fs import FSSpecHandler, PyFileSystem
    from ray.train import FailureConfig, RunConfig

    files = storage.filesystem(job.folder)
    return RunConfig(
        name="ray",
        storage_path=files._strip_protocol(job.folder),
        storage_filesystem=PyFileSystem(FSSpecHandler(files)),
        failure_config=FailureConfig(max_failures=RESTARTS),
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


def run_rank(config: dict[str, Any]) -> None:
    """What each worker of Ray Train runs. An error that is meant for the user travels through the queue, unwrapped."""
    import ray.train
    import torch
    from ray.train.torch import prepare_model

    from perfuse.training.engine import train

    job = TrainingJob.model_validate_json(config["job"])
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // context.get_local_world_size()))

    def report(step: int, metrics: dict[str, float], pictures: dict[str, bytes]) -> None:
        if rank == 0:
            config["reports"].put((step, metrics, pictures))

    wish = threading.Event()
    if rank == 0:
        threading.Thread(target=_await, args=(storage.join(job.folder, STOP), wish), daemon=True).start()
    try:
        train(
            job,
            lambda first: batches(job, rank, world, first),
            rank=rank,
            world=world,
            report=report,
            stop=wish.is_set,
            wrap=prepare_model,
        )
        if wish.is_set() and not is_finished(job):
            config["reports"].put(STOPPED)
    except Exception as error:
        if refusal := refusal_in(error):
            config["reports"].put(refusal)
        raise


def _await(order: str, wish: threading.Event) -> None:
    """Set the wish when the driver has given its order, which stays for those who start anew. A store may be away for a while."""
    while not wish.is_set():
        time.sleep(STOP_SECONDS)
        with suppress(PerfuseError):
            if storage.exists(order):
                wish.set()


def batches(job: TrainingJob, rank: int, world: int, first_step: int) -> Iterator[dict[str, Any]]:
    """A rank's batches, in order, from its own Ray Data pipeline: descriptors of groups of steps in, steps out."""
    import ray.data
    from ray.data import TaskPoolStrategy

    quieten()
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    context.target_max_block_size = 1  # a block a step, so that a step is on its way as soon as it is cut
    rows = list(sampling.rows(job, rank, world, first_step))
    if not rows:
        return
    steps = ray.data.from_items(rows, override_num_blocks=min(len(rows), MOST_BLOCKS)).map_batches(
        _cut,
        fn_kwargs={"job": job.model_dump_json()},
        batch_size=1,
        num_cpus=CUTTER_CPUS,
        compute=TaskPoolStrategy(size=CUTTERS),
    )
    for batch in steps.iter_batches(batch_size=1, batch_format="numpy", prefetch_batches=2):
        yield {name: values[0] for name, values in batch.items()}


def _cut(row: dict[str, Any], job: str) -> Iterator[dict[str, Any]]:
    import numpy as np

    parsed = TrainingJob.model_validate_json(job)
    for crops in sampling.cut(parsed, {name: int(values[0]) for name, values in row.items()}):
        yield {name: np.asarray(values)[None] for name, values in crops.items()}
