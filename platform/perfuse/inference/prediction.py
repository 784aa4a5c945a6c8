"""A prediction as tasks: slabs along each axis into int16 scratch, then shards of the soft label.

Everything that decides a voxel is in the key: the scan's digest, and each member's forward contract with its weights and
backend. Every member has a scratch of its own. Scratch and label carry done-marks; what is marked and intact is never
computed again.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np

from perfuse import storage, volumes
from perfuse.bundle import Model
from perfuse.catalog import LabelInfo, ModelRef, Scan
from perfuse.contract import Forward, Frozen, of_class, read_by
from perfuse.errors import ContractError, PlanError
from perfuse.geometry import move_axis, runs, tile_starts
from perfuse.inference.choosing import Choice, choose
from perfuse.inference.logits import fuse
from perfuse.inference.pipeline import WRITERS, Slab, finished
from perfuse.inference.scratch import BAND, SLAB, Scratch
from perfuse.inference.slab import PLANES, Engine
from perfuse.labels import LabelWriter, check_output, writer_for
from perfuse.models import best_device
from perfuse.upkeep import refresh


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


def plan(scan: Scan, *members: Forward) -> PredictionPlan:
    """Count the work, from shapes alone; that of several members as one prediction."""
    parts = [_plan(scan, forward) for forward in members]
    return parts[0].model_copy(
        update={
            **{n: sum(getattr(p, n) for p in parts) for n in ("slabs", "tiles", "input_bytes", "scratch_bytes")},
            "peak_bytes": max(p.peak_bytes for p in parts),
        }
    )


def _plan(scan: Scan, forward: Forward) -> PredictionPlan:
    voxels = int(np.prod(scan.shape_zyx))
    classes = len(forward.network.class_names)
    axes = ["zyx".index(a) for a in forward.axes]
    seen = [move_axis(scan.shape_zyx, axis) for axis in axes]
    tiles = sum(d * _tiles(h, forward) * _tiles(w, forward) for d, h, w in seen)
    shard = volumes.shard_shape(scan.shape_zyx)
    return PredictionPlan(
        slabs=sum(len(runs(d, SLAB)) for d, _, _ in seen),
        tiles=tiles,
        shards=classes * int(np.prod([-(-n // s) for n, s in zip(scan.shape_zyx, shard, strict=True)])),
        input_bytes=voxels * np.dtype(scan.info.dtype).itemsize * len(axes),
        scratch_bytes=2 * voxels * len(axes) * classes,
        output_bytes=voxels * classes,
        peak_bytes=max(_slab_bytes(w, h, forward) for _, h, w in seen),
    )


def _tiles(length: int, forward: Forward) -> int:
    return len(tile_starts(length, forward.tile, forward.stride))


def _slab_bytes(width: int, height: int, forward: Forward) -> int:
    columns = max(width, forward.tile) + forward.tile
    network = forward.network
    reach = network.shown[-1] - network.shown[0] + network.targets[-1] - network.targets[0]
    band = (SLAB + 2 * PLANES + reach) * forward.tile * columns
    reading = band * ((2 + 4 + 4) + 4 + (4 + 4))  # what is being read, what waits, what is in use
    adding = 2 * SLAB * forward.tile * columns * 4
    gathering = SLAB * ((2 + WRITERS) * min(BAND, height) + forward.tile) * width * 2
    return reading + len(network.class_names) * (adding + gathering)


class Member(Frozen):
    """One of the networks whose logits are averaged, on one scan."""

    key: str
    forward: Forward
    choice: Choice

    @property
    def scratch(self) -> str:
        """The scratch group, relative to the scan."""
        return f"perfuse/scratch/{self.key[:16]}"

    @property
    def axes(self) -> list[int]:
        """Along which it sees planes."""
        return ["zyx".index(name) for name in self.forward.axes]


class Prediction(Frozen):
    """One scan, the members of one model, an output label for each class: all that a worker needs besides the weights. JSON-able."""

    scan_url: str
    output: str
    key: str
    members: tuple[Member, ...]
    device: str

    @property
    def class_names(self) -> tuple[str, ...]:
        """Of all members."""
        return self.members[0].forward.network.class_names

    @property
    def outputs(self) -> tuple[str, ...]:
        """The labels that it writes: OUTPUT, or OUTPUT-CLASS for each of several classes."""
        return tuple(of_class(self.output, name) for name in self.class_names)

    def slabs(self) -> list[dict[str, int]]:
        """Rows: every slab of every axis of every member; `task` counts along the axis."""
        shape = Scan.open(self.scan_url).shape_zyx
        return [
            {"member": number, "axis": axis, "task": task, "start": a, "stop": b}
            for number, member in enumerate(self.members)
            for axis in member.axes
            for task, (a, b) in enumerate(runs(shape[axis], SLAB))
        ]

    def slabs_to_do(self) -> list[dict[str, int]]:
        """Those whose logits are missing or torn."""
        seen = [(number, axis) for number, member in enumerate(self.members) for axis in member.axes]
        intact = {(number, axis): self._scratch(number, axis).intact() for number, axis in seen}
        return [row for row in self.slabs() if row["task"] not in intact[row["member"], row["axis"]]]

    def _scratch(self, member: int, axis: int) -> Scratch:
        return Scratch(self.scan_url, self.members[member].scratch, axis, self.members[member].key, self.class_names)

    def run_slabs(self, rows: list[dict[str, int]], engine: Engine) -> Iterator[dict[str, int]]:
        """Compute slabs of one member by its engine; each row when its logits are written and marked."""
        slabs = (
            Slab(row, self._scratch(row["member"], row["axis"]), row["task"], (row["start"], row["stop"]))
            for row in rows
        )
        yield from finished(Scan.open(self.scan_url), list(slabs), engine)

    def writer(self, class_number: int = 0) -> LabelWriter:
        """The writer of the soft label of a class."""
        return writer_for(Scan.open(self.scan_url), self.outputs[class_number], self.key)

    def shards_to_do(self) -> list[dict[str, int]]:
        """Rows: shards of the labels that are missing, torn or not yet written, class by class."""
        return [{"class": k, "task": task} for k in range(len(self.outputs)) for task in self.writer(k).todo()]

    def run_fuse(self, row: dict[str, int]) -> None:
        """Fuse members and axes inside one shard of a label, and write it."""
        writer = self.writer(row["class"])
        box = writer.tasks[row["task"]]
        logits = (
            [self._scratch(number, axis).read(box, row["class"]) for axis in member.axes]
            for number, member in enumerate(self.members)
        )
        writer.write(row["task"], fuse(logits))

    def finish(self, model: Model) -> tuple[LabelInfo, ...]:
        """Coarser levels and summary of each class's label; then the scratch goes."""
        infos = tuple(self._finish(model, number) for number in range(len(self.outputs)))
        for member in self.members:
            storage.remove_tree(storage.join(self.scan_url, member.scratch))
        refresh(self.scan_url)
        return infos

    def _finish(self, model: Model, class_number: int) -> LabelInfo:
        made_by = self.made_by(model, class_number)
        lineage: dict[str, Any] = {
            "scan_digest": Scan.open(self.scan_url).info.digest,
            "members": [member.uri for member in model.members],
            "backends": [member.choice.model_dump(mode="json") for member in self.members],
            "donors": model.donors,
        }

        def summary(foreground: float, digest: str) -> LabelInfo:
            return LabelInfo(
                name=self.outputs[class_number],
                kind="soft",
                foreground=foreground,
                digest=digest,
                key=self.key,
                model=made_by,
                lineage=lineage,
            )

        return self.writer(class_number).finish(summary)

    def made_by(self, model: Model, class_number: int) -> ModelRef:
        """What the label of a class says of the model that made it."""
        name = self.class_names[class_number]
        return ModelRef(
            uri=model.uri,
            forward_digest=model.forward_digest(),
            bundle_digest=model.digest(),
            class_name=name,
            threshold=read_by(model.threshold, name),
            backend=", ".join(sorted({member.choice.backend for member in self.members})),
        )


def prepare(scan_url: str, model: Model, output: str, *, memory_bytes: int | None = None) -> Prediction:
    """Check scan against contract, choose device and backend, and give the work its key.

    memory_bytes: what an actor may use, for PlanError.
    Raises ContractError for a voxel size that the contract forbids or a member named twice, ScanError for a missing scan or
    an output that cannot be written, PlanError when a slab does not fit in memory.
    """
    scan = Scan.open(scan_url)
    for name in model.class_names:
        check_output(scan, of_class(output, name))
    forwards = [member.contract.forward for member in model.members]
    for forward in forwards:
        forward.check_voxel_size(scan.info.voxel_size_um, scan.info.id)
    _check_fits(plan(scan, *forwards), memory_bytes)
    device = best_device()
    voxels = [scan.info.digest, *scan.organ_identity]
    if len({member.forward_digest() for member in model.members}) < len(model.members):
        raise ContractError(f"{model.uri}: a member is named twice. Name each model once.")
    members = []
    for member, forward in zip(model.members, forwards, strict=True):
        batches = plan(scan, forward).tiles // PLANES
        choice = choose(scan, member, model.threshold, device, batches)
        key = storage.digest_json([*voxels, member.forward_digest(), choice.backend, device])
        members.append(Member(key=key, forward=forward, choice=choice))
    return Prediction(
        scan_url=scan.url,
        output=output,
        key=storage.digest_json(sorted(member.key for member in members)),
        members=tuple(members),
        device=device,
    )


def _check_fits(wanted: PredictionPlan, memory_bytes: int | None) -> None:
    if memory_bytes is not None and wanted.peak_bytes > memory_bytes:
        raise PlanError(
            f"A slab needs {wanted.peak_bytes / 2**30:.1f} GiB of memory; an actor may use {memory_bytes / 2**30:.1f} GiB. "
            "Use fewer actors or a machine with more memory."
        )


def already_done(prediction: Prediction, model: Model) -> tuple[LabelInfo, ...] | None:
    """The finished labels, if they have this very key; their thresholds are brought up to date, which reruns no network."""
    scan = Scan.open(prediction.scan_url)
    there = scan.labels()
    infos = [there[name] for name in prediction.outputs if name in there and there[name].key == prediction.key]
    if len(infos) < len(prediction.outputs):
        return None
    for number, info in enumerate(infos):
        made_by = prediction.made_by(model, number)
        if info.model != made_by:
            infos[number] = info.model_copy(update={"model": made_by})
            label = volumes.open_group(storage.join(scan.url, "labels", info.name), "r+")
            label.attrs["perfuse"] = infos[number].model_dump(mode="json")
    return tuple(infos)


@dataclass
class Worker:
    """What one process keeps between tasks: the members' weights, and the network of the one that it works for."""

    prediction: Prediction
    model: Model
    threads: int
    """Fixed by the driver."""
    _engines: dict[int, Engine] = field(default_factory=dict)

    def run(self, rows: Iterable[dict[str, int]]) -> Iterator[dict[str, int]]:
        """Do slabs, each row given back when it is done; they come member by member, so that a network is seldom exchanged."""
        for member, of_member in groupby(rows, key=itemgetter("member")):
            yield from self.prediction.run_slabs(list(of_member), self._engine(member))

    def _engine(self, number: int) -> Engine:
        if number not in self._engines:
            import torch

            from perfuse.models import build

            torch.set_num_threads(self.threads)
            member = self.prediction.members[number]
            network = build(member.forward.network)
            network.load_state_dict(self.model.members[number].weights)
            self._engines.clear()
            self._engines[number] = Engine.of(network, member.forward, self.prediction.device, member.choice.backend)
        return self._engines[number]
