"""A prediction as tasks: slabs along each axis into int16 scratch, then shards of the soft label.

Everything that decides a voxel is in the key: the scan's digest, the forward contract with its weights, the precision, and
the human label that is kept, if any. Scratch and label carry done-marks; what is marked and intact is never computed
again.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from perfuse import shards, storage, volumes
from perfuse.bundle import Bundle
from perfuse.catalog import LabelInfo, ModelRef, Scan
from perfuse.contract import Forward, Frozen
from perfuse.errors import PlanError, ScanError
from perfuse.geometry import Box, along_axis, index3, move_axis, runs, tile_starts
from perfuse.inference.logits import Logits, fuse
from perfuse.inference.slab import PLANES, Engine, rows_of_logits
from perfuse.labels import LabelWriter, check_output, writer_for
from perfuse.models import Precision, best_device, resolve_precision
from perfuse.normalisation import bounds, normalise
from perfuse.upkeep import refresh

SLAB = 64
"""Planes of a slab: one chunk thick, a multiple of `PLANES`."""
BAND = 512
"""Rows of logits that are gathered before they are written: whole shards."""


class PredictionPlan(Frozen):
    """What a prediction will take, before it begins."""

    slabs: int
    tiles: int
    shards: int
    input_bytes: int
    scratch_bytes: int
    output_bytes: int
    peak_bytes: int
    """Memory of one actor at its largest slab, besides the network."""


def plan(scan: Scan, forward: Forward) -> PredictionPlan:
    """Count the work, from shapes alone."""
    voxels = int(np.prod(scan.shape_zyx))
    axes = ["zyx".index(a) for a in forward.axes]
    seen = [move_axis(scan.shape_zyx, axis) for axis in axes]
    tiles = sum(d * _tiles(h, forward) * _tiles(w, forward) for d, h, w in seen)
    shard = volumes.shard_shape(scan.shape_zyx)
    return PredictionPlan(
        slabs=sum(len(runs(d, SLAB)) for d, _, _ in seen),
        tiles=tiles,
        shards=int(np.prod([-(-n // s) for n, s in zip(scan.shape_zyx, shard, strict=True)])),
        input_bytes=voxels * np.dtype(scan.info.dtype).itemsize * len(axes),
        scratch_bytes=2 * voxels * len(axes),
        output_bytes=voxels,
        peak_bytes=max(_slab_bytes(w, h, forward) for _, h, w in seen),
    )


def _tiles(length: int, forward: Forward) -> int:
    return len(tile_starts(length, forward.tile, forward.stride))


def _slab_bytes(width: int, height: int, forward: Forward) -> int:
    columns = max(width, forward.tile) + forward.tile
    network = forward.network
    reach = network.shown[-1] - network.shown[0] + network.targets[-1] - network.targets[0]
    reading = (SLAB + 2 * PLANES + reach) * forward.tile * columns * (2 + 4 + 4)
    adding = 2 * SLAB * forward.tile * columns * 4
    return reading + adding + SLAB * (min(BAND, height) + forward.tile) * width * 2


class Prediction(Frozen):
    """One scan, one bundle, one output label: all that a worker needs besides the weights. JSON-able."""

    scan_url: str
    output: str
    key: str
    forward: Forward
    precision: Precision
    device: str
    keep: str | None
    """A human label whose marked voxels stay vessel."""

    @property
    def scratch(self) -> str:
        """The scratch group, relative to the scan."""
        return f"perfuse/scratch/{self.key[:16]}"

    def slabs(self) -> list[dict[str, int]]:
        """Rows: every slab of every axis; `task` counts along the axis."""
        shape = Scan.open(self.scan_url).shape_zyx
        return [
            {"axis": axis, "task": task, "start": a, "stop": b}
            for axis in ("zyx".index(name) for name in self.forward.axes)
            for task, (a, b) in enumerate(runs(shape[axis], SLAB))
        ]

    def slabs_to_do(self) -> list[dict[str, int]]:
        """Those whose logits are missing or torn."""
        done = {axis: self._scratch(axis) for axis in {row["axis"] for row in self.slabs()}}
        intact = {axis: scratch.intact() for axis, scratch in done.items()}
        return [row for row in self.slabs() if row["task"] not in intact[row["axis"]]]

    def _scratch(self, axis: int) -> "Scratch":
        return Scratch(self.scan_url, self.scratch, axis, self.key)

    def run_slab(self, row: dict[str, int], engine: Engine) -> None:
        """Compute one slab's logits, write its shards whole, then its done-mark."""
        scan = Scan.open(self.scan_url)
        window = bounds(scan, self.forward.normalisation)

        def read(box: Box) -> npt.NDArray[np.float32]:
            return normalise(scan.read_image(box), window, self.forward.normalisation)

        scratch = self._scratch(row["axis"])
        rows = rows_of_logits(engine, read, scan.shape_zyx, row["axis"], (row["start"], row["stop"]))
        scratch.write(row["task"], (row["start"], row["stop"]), rows)

    def writer(self) -> LabelWriter:
        """The writer of the soft label."""
        return writer_for(Scan.open(self.scan_url), self.output, self.key)

    def run_fuse(self, task: int) -> None:
        """Fuse the axes inside one shard of the label, and write it."""
        writer = self.writer()
        box = writer.tasks[task]
        axes = ["zyx".index(name) for name in self.forward.axes]
        soft = fuse([self._scratch(axis).read(box) for axis in axes])
        if self.keep is not None:
            human = Scan.open(self.scan_url).read_label(self.keep, box)
            soft = np.maximum(soft, human)
        writer.write(task, soft)

    def finish(self, bundle: Bundle) -> LabelInfo:
        """Coarser levels and summary of the label; then the scratch goes."""
        writer = self.writer()
        model = _model_ref(bundle, self.precision)
        lineage: dict[str, Any] = {"scan_digest": Scan.open(self.scan_url).info.digest}
        if self.keep is not None:
            lineage["kept_label"] = self.keep

        def summary(foreground: float, digest: str) -> LabelInfo:
            return LabelInfo(
                name=self.output,
                kind="soft",
                foreground=foreground,
                digest=digest,
                key=self.key,
                model=model,
                lineage=lineage,
            )

        info = writer.finish(summary)
        storage.remove_tree(storage.join(self.scan_url, self.scratch))
        refresh(self.scan_url)
        return info


class Scratch:
    """Int16 logits of one axis; shards are as thick as a slab along it, so that a slab alone writes its own."""

    def __init__(self, scan_url: str, path: str, axis: int, key: str) -> None:
        shape = Scan.open(scan_url).shape_zyx
        group = volumes.open_group(scan_url, "r+").require_group(path)
        name = "zyx"[axis]
        if name not in group:
            chunk = volumes.chunk_shape(shape)
            rows = [c * min(BAND // SLAB, -(-n // c)) for c, n in zip(chunk, shape, strict=True)]
            rows[axis] = chunk[axis]
            volumes.create_array(group, name, shape, "int16", shards=index3(rows))
        array = group[name]
        if not isinstance(array, zarr.Array):
            raise ScanError(f"{scan_url}/{path}/{name} is no array; remove it and run the same command again.")
        self.axis, self.array, self.shape = axis, array, shape
        self._marks = volumes.DoneMarks(group, f"done-{name}", len(runs(shape[axis], SLAB)), key)

    def _box(self, planes: tuple[int, int], rows: tuple[int, int]) -> Box:
        _, _, width = move_axis(self.shape, self.axis)
        return along_axis(self.axis, planes, rows, (0, width))

    def _digest(self, task: int) -> bytes:
        _, height, _ = move_axis(self.shape, self.axis)
        planes = runs(self.shape[self.axis], SLAB)[task]
        return shards.digest(volumes.stored_digests(self.array, self._box(planes, (0, height))))

    def intact(self) -> set[int]:
        """Slabs that are done and whose stored bytes are still those that were written."""
        return self._marks.intact(self._digest)

    def write(self, task: int, planes: tuple[int, int], rows: Any) -> None:
        """Gather rows into whole shards, write them, and mark the slab done."""
        _, height, _ = move_axis(self.shape, self.axis)
        unit = next(s for a, s in enumerate(index3(self.array.shards or self.array.chunks)) if a != self.axis)
        band: list[Logits] = []
        digests = b""
        first = held = 0
        for _, part in rows:
            band.append(part)
            held += part.shape[1]
            while held >= unit or (held and first + held == height):
                whole = np.concatenate(band, axis=1)
                take = min(unit, held)
                box = self._box(planes, (first, first + take))
                digests += volumes.write_shards(self.array, box, np.moveaxis(whole[:, :take], 0, self.axis))
                band, first, held = [whole[:, take:]], first + take, held - take
        self._marks.mark(task, shards.digest(digests))

    def read(self, box: Box) -> Logits:
        """The logits inside a box, in z, y, x."""
        return np.asarray(self.array[box.slices], np.int16)


def prepare(
    scan_url: str, bundle: Bundle, output: str, *, keep: str | None = None, memory_bytes: int | None = None
) -> Prediction:
    """Check scan against contract, choose device and precision, and give the work its key.

    keep: a label of the scan whose marked voxels stay vessel. memory_bytes: what an actor may use, for PlanError.
    Raises ContractError for a voxel size that the contract forbids, ScanError for a missing scan or label, or an output
    that cannot be written, PlanError when a slab does not fit in memory.
    """
    scan = Scan.open(scan_url)
    check_output(scan, output)
    forward = bundle.contract.forward
    forward.check_voxel_size(scan.info.voxel_size_um, scan.info.id)
    _check_fits(plan(scan, forward), memory_bytes)
    device = best_device()
    precision = resolve_precision(forward.precision, device)
    kept = scan.label_info(keep).digest if keep is not None else ""
    voxels = [scan.info.digest, *scan.organ_identity]
    key = storage.digest_json([*voxels, bundle.forward_digest(), precision, device, kept])
    return Prediction(
        scan_url=scan.url, output=output, key=key, forward=forward, precision=precision, device=device, keep=keep
    )


def _check_fits(wanted: PredictionPlan, memory_bytes: int | None) -> None:
    if memory_bytes is not None and wanted.peak_bytes > memory_bytes:
        raise PlanError(
            f"A slab needs {wanted.peak_bytes / 2**30:.1f} GiB of memory; an actor may use {memory_bytes / 2**30:.1f} GiB. "
            "Use fewer actors or a machine with more memory."
        )


def already_done(prediction: Prediction, bundle: Bundle) -> LabelInfo | None:
    """The finished label, if it has this very key; its threshold is brought up to date, which reruns no network."""
    scan = Scan.open(prediction.scan_url)
    info = scan.labels().get(prediction.output)
    if info is None or info.key != prediction.key:
        return None
    model = _model_ref(bundle, prediction.precision)
    if info.model != model:
        info = info.model_copy(update={"model": model})
        label = volumes.open_group(storage.join(scan.url, "labels", prediction.output), "r+")
        label.attrs["perfuse"] = info.model_dump(mode="json")
    return info


def _model_ref(bundle: Bundle, precision: Precision) -> ModelRef:
    return ModelRef(
        uri=bundle.uri,
        forward_digest=bundle.forward_digest(),
        bundle_digest=bundle.digest(),
        threshold=bundle.contract.decision.threshold,
        precision=precision,
    )


@dataclass
class Worker:
    """What one process keeps between tasks: the network, loaded once."""

    prediction: Prediction
    engine: Engine

    @classmethod
    def of(cls, prediction: Prediction, bundle: Bundle, threads: int) -> "Worker":
        """Load the network; `threads` is fixed by the driver."""
        import torch

        from perfuse.models import build

        torch.set_num_threads(threads)
        network = build(prediction.forward.network)
        network.load_state_dict(bundle.weights)
        return cls(prediction, Engine.of(network, prediction.forward, prediction.device, prediction.precision))
