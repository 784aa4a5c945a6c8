"""A prediction as tasks: slabs along each axis into int16 scratch, then shards of the soft label.

Everything that decides a voxel is in the key: the scan's digest, the region, each member's forward contract with its weights
and backend, and how they are fused. Every member has a scratch of its own, whose key knows nothing of fusion: what is fused
otherwise asks no network. Scratch and label carry done-marks; what is marked and intact is never computed again.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np

from perfuse.bundle import Model
from perfuse.catalog import LabelInfo, ModelRef, Scan
from perfuse.console import say
from perfuse.contract import Frozen, Fusion, of_class, read_by
from perfuse.geometry import Box, Index3, blocks, index3
from perfuse.inference.engine import Engine
from perfuse.inference.grid import Grid
from perfuse.inference.logits import ONE, fuse
from perfuse.inference.members import Member, Sight
from perfuse.inference.pipeline import Slab, finished
from perfuse.inference.planning import plan, slabs
from perfuse.inference.region import Region
from perfuse.inference.scratch import marked, thickness
from perfuse.labels import LabelWriter, writer_for
from perfuse.upkeep import refresh

AT_ONCE = (64, 64, 512)
"""Voxels of a shard that are fused at a time: whole chunks, far fewer than the shard has."""
UNLIKE = 3
"""Logits of members that are so many times as large as others' are told of."""


class Prediction(Frozen):
    """One scan, the members of one model, an output label for each class: all that a worker needs besides the weights. JSON-able."""

    scan_url: str
    output: str
    key: str
    members: tuple[Member, ...]
    device: str
    fusion: Fusion = Fusion()
    roi: tuple[Index3, Index3] | None = None
    """Start and stop of the voxels of the scan that are predicted; None: all."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Of all members."""
        return self.members[0].forward.network.class_names

    @property
    def outputs(self) -> tuple[str, ...]:
        """The labels that it writes: OUTPUT, or OUTPUT-CLASS for each of several classes."""
        return tuple(of_class(self.output, name) for name in self.class_names)

    def slabs(self) -> list[dict[str, int]]:
        """Rows: every slab of all `seeing` that the region reaches into; `task` counts along the axis."""
        scan = Scan.open(self.scan_url)
        return [
            {"member": number, "axis": axis, "task": task, "start": a, "stop": b}
            for number, (member, axes) in enumerate(zip(self.members, self.seeing, strict=True))
            for axis in axes
            for task, (a, b) in slabs(self.region(scan, member), axis, member.slab)
        ]

    @property
    def seeing(self) -> list[list[int]]:
        """The axes along which each member sees: those of which no member before it has the same logits."""
        known: set[tuple[str, int]] = set()
        found = []
        for member in self.members:
            found.append([axis for axis in member.axes if (member.scratch, axis) not in known])
            known.update((member.scratch, axis) for axis in member.axes)
        return found

    def slabs_left(self) -> list[dict[str, int]]:
        """Those that are not marked as done, whatever has become of their logits since; quick, and nothing is written."""
        scan = Scan.open(self.scan_url)
        if all(name in scan.labels() and scan.label_info(name).key == self.key for name in self.outputs):
            return []
        return self.slabs_unmarked()

    def slabs_unmarked(self) -> list[dict[str, int]]:
        """Those whose logits do not lie beside the scan, though the labels may be done."""
        scan = Scan.open(self.scan_url)
        done = {
            (n, axis, task)
            for n, member in enumerate(self.members)
            if thickness(scan.group, member.scratch) == member.slab
            for axis in member.axes
            for task in marked(scan.group, member.scratch, axis, member.seen_key)
        }
        return [row for row in self.slabs() if (row["member"], row["axis"], row["task"]) not in done]

    def slabs_to_do(self) -> list[dict[str, int]]:
        """Those whose logits are missing or torn."""
        intact = [{axis: scratch.intact() for axis, scratch in along.items()} for along in self.sight().scratches]
        return [row for row in self.slabs() if row["task"] not in intact[row["member"]][row["axis"]]]

    def region(self, scan: Scan, member: Member) -> Region:
        """What of a scan a member has to see."""
        return Region.of(Grid.of(scan, member.forward), member.forward, self._box)

    @property
    def _box(self) -> Box | None:
        return None if self.roi is None else Box(*self.roi)

    def sight(self) -> Sight:
        """What its members saw of the scan, as far as it is there."""
        return Sight(Scan.open(self.scan_url), self.members, self.class_names)

    @contextmanager
    def held(self) -> Iterator[None]:
        """The only right to its members' scratch, which some may share; BusyError when somebody else holds one of them."""
        with ExitStack() as held:
            for member in {member.scratch: member for member in self.members}.values():
                held.enter_context(member.held(self.scan_url))
            yield

    def run_slabs(self, rows: list[dict[str, int]], engine: Engine) -> Iterator[dict[str, int]]:
        """Compute slabs of one member by its engine; each row when its logits are written and marked."""
        number = rows[0]["member"]
        along = self.sight().scratches[number]
        todo = [Slab(row, along[row["axis"]], row["task"], (row["start"], row["stop"])) for row in rows]
        yield from finished(self.region(Scan.open(self.scan_url), self.members[number]), todo, engine)

    def writer(self, class_number: int = 0) -> LabelWriter:
        """The writer of the soft label of a class."""
        return writer_for(Scan.open(self.scan_url), self.outputs[class_number], self.key)

    def shards_to_do(self) -> list[dict[str, int]]:
        """Rows: shards of the labels that are missing, torn or not yet written, class by class."""
        return [{"class": k, "task": task} for k in range(len(self.outputs)) for task in self.writer(k).todo()]

    def run_fuse(self, row: dict[str, int]) -> None:
        """Fuse members and axes inside one shard of a label, and write it; outside the region it is 0."""
        writer = self.writer(row["class"])
        box = writer.tasks[row["task"]]
        inside = box if self._box is None else box.intersect(self._box)
        sight, fusion = self.sight(), self.answers(self.fusion)
        block = np.zeros(box.shape, np.uint8)
        for part in blocks(inside.shape, AT_ONCE) if not inside.empty else ():
            band = part.shifted(inside.start)
            block[band.relative_to(box.start).slices] = fuse(sight.of(band, row["class"]), fusion)
        writer.write(row["task"], block)

    def answers(self, fusion: Fusion) -> Fusion:
        """A fusion that says what is averaged: what all members blend in, if it is one, else logits."""
        blends = {member.forward.blend for member in self.members}
        return fusion.changed(average=fusion.average or (blends.pop() if len(blends) == 1 else "logit"))

    def finish(self, model: Model, *, keep_scratch: bool = False) -> tuple[LabelInfo, ...]:
        """Coarser levels and summary of each class's label; then the scratch goes, unless it is kept, now or by a call before.

        Logits of unlike scales stay: what the user is told to do about them then asks no network.
        """
        kept = self.tell_scales(model) or keep_scratch
        infos = tuple(self._finish(model, number) for number in range(len(self.outputs)))
        for member in self.members:
            (member.keep if kept else member.drop)(self.scan_url)
        refresh(self.scan_url)
        return infos

    def tell_scales(self, model: Model) -> bool:
        """Say so when the members' logits, in the middle of what is predicted, are of so different a scale that some hardly count."""
        if len(self.members) == 1 or self.answers(self.fusion).average == "probability":
            return False
        whole = self._box or Box.whole(Scan.open(self.scan_url).shape_zyx)
        middle = index3([(a + b) // 2 for a, b in zip(whole.start, whole.stop, strict=True)])
        box = Box(middle, middle).grown((32, 32, 32)).intersect(whole)
        temperatures = self.fusion.temperatures or (1.0,) * len(self.members)
        seen = [s.as_("logit", t) for s, t in zip(self.sight().of(box), temperatures, strict=True)]
        scales = [float(np.sqrt(np.mean(np.square(s.total / (s.weight * ONE))))) for s in seen]
        unlike = max(scales) > UNLIKE * min(scales)
        if unlike:
            told = ", ".join(f"{bundle.uri} {scale:.2g}" for bundle, scale in zip(model.members, scales, strict=True))
            say(
                f"The models' logits differ in scale (root mean square: {told}), so the surest outweighs the others. Give a "
                "--temperature for each, or say --average probability: that asks no network, for the logits are kept beside the "
                f"scan. `perfuse scan clean {self.scan_url}` removes them."
            )
        return unlike

    def _finish(self, model: Model, class_number: int) -> LabelInfo:
        made_by = self.made_by(model, class_number)
        lineage: dict[str, Any] = {
            "scan_digest": Scan.open(self.scan_url).info.digest,
            "members": [member.uri for member in model.members],
            "backends": [member.choice.model_dump(mode="json") for member in self.members],
            "donors": model.donors,
            **self._about(),
        }

        def summary(foreground: float, digest: str) -> LabelInfo:
            return LabelInfo(
                name=self.outputs[class_number],
                kind="soft",
                foreground=foreground,
                digest=digest,
                key=self.key,
                box=self.roi,
                model=made_by,
                lineage=lineage,
            )

        return self.writer(class_number).finish(summary)

    def _about(self) -> dict[str, Any]:
        """How members were fused, on what voxels they saw the scan, what share of the pictures was left out; only what is not usual."""
        scan = Scan.open(self.scan_url)
        counted = plan(scan, *(member.forward for member in self.members), roi=self._box)
        skipped = counted.skipped / max(counted.tiles + counted.skipped, 1)
        fusion = self.fusion.model_dump(mode="json", exclude_defaults=True)
        about = {"fusion": fusion, "skipped": round(skipped, 4)}
        for name in ("resample_um", "level"):
            values = [getattr(member.forward, name) for member in self.members]
            about |= {name: values if any(values) else None}
        return {name: value for name, value in about.items() if value}

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


@dataclass
class Worker:
    """What one process keeps between tasks: the members' weights, and the network of the one that it works for."""

    prediction: Prediction
    model: Model
    threads: int
    """Of the CPUs, which it may use."""
    _engines: dict[int, Engine] = field(default_factory=dict)

    def run(self, rows: Iterable[dict[str, int]]) -> Iterator[dict[str, int]]:
        """Do slabs, each row given back when it is done; they come member by member, so that a network is seldom exchanged."""
        for member, of_member in groupby(rows, key=itemgetter("member")):
            yield from self.prediction.run_slabs(list(of_member), self._engine(member))

    def _engine(self, number: int) -> Engine:
        if number not in self._engines:
            from perfuse.models import build

            member = self.prediction.members[number]
            network = build(member.forward.network)
            network.load_state_dict(self.model.members[number].weights)
            self._engines.clear()
            self._engines[number] = Engine.of(
                network, member.forward, self.prediction.device, member.choice.backend, self.threads
            )
        return self._engines[number]
