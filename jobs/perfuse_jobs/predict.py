"""A prediction on Ray Data: rows are slabs, actors hold the network and read and write Zarr themselves."""

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from perfuse import storage
from perfuse.bundle import FILES, Bundle, Ensemble, Model
from perfuse.catalog import Scan
from perfuse.console import progress
from perfuse.geometry import Box
from perfuse.inference import Runner, attempts, predict
from perfuse.inference.engine import MOST_STREAMS
from perfuse.inference.estimate import Estimate, estimate
from perfuse.inference.members import Member
from perfuse.inference.prediction import Prediction, Worker
from perfuse.inference.preparing import at_hand, prepare
from perfuse.models import best_device
from perfuse.pseudolabels import Predict
from perfuse_jobs.session import TASK_CPUS, connect, needs_ray, nodes, on_cluster, quieten, refusals
from perfuse_jobs.workers import Workers

if TYPE_CHECKING:
    import ray.data

FUSE_AT_ONCE = 2


def predictor(workers: Workers, *, local: bool) -> Predict:
    """`predict`, by this process or by processes of Ray."""
    return partial(predict, runner=runner(workers, local=local))


def runner(workers: Workers, *, local: bool) -> Runner:
    """Nobody but this process where one is enough, else processes of Ray."""
    return Runner() if local or not needs_ray(workers) else on_ray(workers)


def on_ray(workers: Workers) -> Runner:
    """Processes of Ray; killed work goes on where it stopped."""
    return Runner(
        prepare=partial(_prepare, workers=workers),
        fill=partial(_fill, workers=workers),
        fuse=partial(_fuse, workers=workers),
    )


def _prepare(scan_url: str, model: Model, output: str, *, roi: Box | None = None, workers: Workers) -> Prediction:
    """By a task on a GPU where the cluster has any, though this process has none: there the actors will compute."""
    connect(workers.most)
    import ray

    memory = Share.of(workers, nodes()).memory_bytes
    if best_device() == "cuda" or not ray.cluster_resources().get("GPU"):
        return prepare(scan_url, model, output, roi=roi, memory_bytes=memory)
    with refusals():
        task = ray.remote(num_gpus=1, num_cpus=0)(prepare)
        made: Prediction = ray.get(task.remote(scan_url, model, output, roi=roi, memory_bytes=memory))
    return made


@dataclass(frozen=True)
class Share:
    """What each process has of its machine."""

    neighbours: int
    """As many as share the machine, itself among them."""
    memory_bytes: int
    """That it may use besides the network."""

    @classmethod
    def of(cls, workers: Workers, nodes: list[dict[str, Any]]) -> "Share":
        """Of the node of Ray that has least memory; of this machine where there are none."""
        neighbours = -(-workers.most // max(1, len(nodes)))
        rooms = [int(node["Resources"]["memory"]) for node in nodes if "memory" in node["Resources"]]
        return cls(neighbours, min(rooms) // 2 // neighbours if rooms else at_hand(neighbours))

    @property
    def threads(self) -> int:
        """Of the machine's CPUs."""
        return max(1, (os.cpu_count() or 1) // self.neighbours)


def planned(scan: Scan, model: Model, output: str, roi: Box | None, workers: Workers) -> Estimate:
    """What so many workers would take: those of the cluster, if this process stands in one, else of this machine."""
    if on_cluster():
        connect(workers.most)
    share = Share.of(workers, nodes() if on_cluster() else [])
    streams, alone = min(share.threads, MOST_STREAMS), min(os.cpu_count() or 1, MOST_STREAMS)
    pace = 1.0 if best_device() == "cuda" else streams / alone
    return estimate(scan, model, output, roi, memory_bytes=share.memory_bytes, workers=workers.most, pace=pace)


def time_left(plan: Estimate, workers: Workers) -> str:
    """How long the networks will take, of what, and by whom."""
    left = timedelta(seconds=max(1, round(plan.network_seconds)) if plan.slabs_left else 0)
    by = "one process" if min(workers.most, plan.slabs_left) < 2 else f"{workers} processes"
    return f"{left} for the {plan.slabs_left:,} slabs that are left, by {by} on a {plan.device}"


def _fill(prediction: Prediction, model: Model, workers: Workers) -> None:
    connect(workers.most)
    rows = attempts.patiently(prediction.scan_url, prediction.slabs_to_do)
    attempts.forget(prediction)
    done = _run(f"predict {prediction.output}, slabs", rows, lambda ready: _slabs(ready, prediction, model, workers))
    attempts.refuse([row["failed"] for row in done if row["failed"]])


def _fuse(prediction: Prediction, workers: Workers) -> None:
    connect(workers.most)
    _run(
        f"fuse {prediction.output}, shards",
        attempts.patiently(prediction.scan_url, prediction.shards_to_do),
        lambda rows: _fused(rows, prediction),
    )


def _run(what: str, rows: list[dict[str, int]], pipeline: Callable[[Any], "ray.data.Dataset"]) -> list[dict[str, Any]]:
    """The rows that come back, in any order."""
    if not rows:
        return []
    import ray.data

    quieten()
    ray.data.DataContext.get_current().enable_progress_bars = False
    ready = ray.data.from_items(rows, override_num_blocks=len(rows))
    with refusals(), progress(what, len(rows)) as advance:
        done = []
        for row in pipeline(ready).iter_rows():
            done.append(row)
            advance()
        return done


def _slabs(rows: "ray.data.Dataset", prediction: Prediction, model: Model, workers: Workers) -> "ray.data.Dataset":
    from ray.data import ActorPoolStrategy

    for member, bundle in zip(prediction.members, model.members, strict=True):
        _lay_out(bundle, _bundle_url(prediction, member))
    settings = {"prediction": prediction.model_dump_json(), "threads": Share.of(workers, nodes()).threads}
    gpu = {"num_gpus": 1} if prediction.device == "cuda" else {"num_cpus": TASK_CPUS}
    pool = ActorPoolStrategy(min_size=workers.fewest, max_size=workers.most)
    return rows.map_batches(SlabActor, fn_constructor_kwargs=settings, batch_size=1, compute=pool, **gpu)


def _bundle_url(prediction: Prediction, member: Member) -> str:
    """Beside the scratch, where every node reaches it, and with which it goes."""
    return storage.join(prediction.scan_url, member.scratch, "bundle")


def _lay_out(bundle: Bundle, url: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        bundle.save(Path(folder))
        for path in Path(folder).iterdir():
            storage.write_bytes(storage.join(url, path.name), path.read_bytes())


def _laid_out(url: str) -> Bundle:
    with tempfile.TemporaryDirectory() as folder:
        for name in FILES:
            (Path(folder) / name).write_bytes(storage.read_bytes(storage.join(url, name)))
        return Bundle.load(Path(folder))


class SlabActor:
    """Holds a network; writes the logits of the slabs it is given."""

    def __init__(self, prediction: str, threads: int) -> None:
        """threads: of the CPUs of this node, which it may use."""
        parsed = Prediction.model_validate_json(prediction)
        urls = [_bundle_url(parsed, member) for member in parsed.members]
        bundles = tuple(attempts.patiently(url, partial(_laid_out, url)) for url in urls)
        self._prediction, self._worker = parsed, Worker(parsed, Ensemble(bundles, bundles[0].threshold), threads)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Do the slab of a row; `failed` says which it is and why, if it cannot be done."""
        slab = {name: int(value[0]) for name, value in row.items()}
        reason = attempts.counted(self._prediction, self._worker, slab)
        return row | {"failed": np.array(["" if reason is None else f"{attempts.name_of(slab)} ({reason})"])}


def _fused(rows: "ray.data.Dataset", prediction: Prediction) -> "ray.data.Dataset":
    from ray.data import TaskPoolStrategy

    return rows.map_batches(
        _fuse_shard,
        fn_kwargs={"prediction": prediction.model_dump_json()},
        batch_size=1,
        num_cpus=TASK_CPUS,
        compute=TaskPoolStrategy(size=FUSE_AT_ONCE),
    )


def _fuse_shard(row: dict[str, Any], prediction: str) -> dict[str, Any]:
    attempts.fuse(Prediction.model_validate_json(prediction), {name: int(value[0]) for name, value in row.items()})
    return row
