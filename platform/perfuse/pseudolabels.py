"""Pseudo-labels: what a model sees where people have not said, beside what they have.

Where a label of people is known, it stays: marked voxels, and background that they stated (in dense boxes, outside the organ).
Elsewhere the probability p = value / 255 is kept, never binarised. With a threshold, what lies below it becomes 0, and is
taught as background. The threshold can be matched to the coverage that a sparse label declares: then people's marks are that
share of all that is marked afterwards (3rd place of SenNet + HOA 2023); without one, all of p is taught (5th place).

Where people marked a vessel they said where it ends, too, yet a model's edge never is quite theirs, and would be taught as a
shell around each of their marks. With `keep_edges` a voxel that touches a mark is taught only as far as a vessel goes on there.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from perfuse import storage
from perfuse.bundle import Model
from perfuse.catalog import ORGAN, LabelInfo, Scan
from perfuse.console import progress
from perfuse.contract import of_class, threshold_of
from perfuse.errors import ScanError
from perfuse.geometry import Box, blocks, index3
from perfuse.labels import check_output, writer_for
from perfuse.locks import writing
from perfuse.upkeep import refresh

Predict = Callable[..., tuple[LabelInfo, ...]]
"""`perfuse.inference.predict` with its runner: (scan_url, model, output, *, roi, keep_scratch) → a LabelInfo for each class."""

Cut = float | Literal["coverage"] | None
"""Below which probability p becomes 0: as stated, as matches the declared coverage, or None: nowhere."""


_MARKED = 128
"""From here on a voxel of people's label is vessel."""
_REACH = 2
"""Voxels around a box on which its part of `within_edges` depends."""


@dataclass(frozen=True)
class Tally:
    """What a label of people and a prediction have in common, where the label was given."""

    marked: int
    """Voxels that people marked."""
    unsaid: npt.NDArray[np.int64]
    """int64[256]: voxels of which they said nothing, by predicted value."""

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(self.marked + other.marked, self.unsaid + other.unsaid)

    @property
    def coverage(self) -> npt.NDArray[np.float64]:
        """float64[256]: |marked| / |marked ∪ {v ≥ t}| at each threshold t; it never falls as t rises."""
        added = np.cumsum(self.unsaid[::-1])[::-1]
        return np.asarray(self.marked / np.maximum(self.marked + added, 1))

    def match(self, coverage: float) -> int:
        """The threshold, 1 to 255, whose coverage is nearest to this one; the lowest of those that are equally near."""
        return 1 + int(np.argmin(np.abs(self.coverage[1:] - coverage)))


def human_label(scan: Scan, names: Sequence[str] = ()) -> str | None:
    """The label of a scan that people gave: `human`, else the first one that no model made and that is no organ mask; None without.

    names: the only ones to look for, in order of preference; empty: any.
    """
    given = [info.name for info in scan.labels().values() if info.model is None and info.name != ORGAN]
    return next((name for name in names or ("human", *given) if name in given), None)


def pseudolabel(
    scan_url: str, model: Model, output: str, predict: Predict, *, cut: Cut = None, keep_edges: bool = False
) -> tuple[LabelInfo, ...]:
    """Predict a scan into the label `<output>-prediction`, and make of it a soft label `output` to train on.

    cut: below which probability nothing is taught. keep_edges: people's marks end where they end, see `within_edges`.
    Of several classes each gets its own, `<output>-CLASS`, beside what people said of that class: under the names of labels that
    the model's recipe has for it. The lineage says which people's label was kept, the threshold, and for a sparse one the
    declared coverage, the achieved one and the difference. Interrupted, the same call goes on; done, it does nothing.
    Raises ScanError when `output` was given by people, or when coverage is to be matched to a label that declares none.
    """
    scan = Scan.open(scan_url)
    outputs = [of_class(output, name) for name in model.class_names]
    humans = [_given(scan, model, name, cut) for name in model.class_names]
    for name in outputs:
        check_output(scan, name)
    seen = predict(scan.url, model, f"{output}-prediction")
    sources = [Source(scan, *parts, keep_edges=keep_edges) for parts in zip(seen, humans, strict=True)]
    return tuple(_pseudolabel(source, name, cut) for source, name in zip(sources, outputs, strict=True))


def _given(scan: Scan, model: Model, class_name: str, cut: Cut) -> LabelInfo | None:
    """The label of a class that people gave; ScanError when coverage is to be matched to one that declares none."""
    names = model.members[0].lineage["recipe"]["labels"][class_name] if class_name else ()
    human = human_label(scan, names)
    declared = scan.label_info(human) if human is not None else None
    if cut == "coverage" and (declared is None or declared.kind != "sparse"):
        raise ScanError(
            f"{scan.url} has no sparse label{f' of class {class_name}' if class_name else ''} whose coverage could be matched. "
            "Give it one (`perfuse labels add … --coverage 0.65`), or leave the matching out."
        )
    return declared


def _pseudolabel(source: "Source", output: str, cut: Cut) -> LabelInfo:
    scan, seen, declared = source.scan, source.seen, source.human
    key = storage.digest_json(
        [seen.key, declared.digest if declared else "", cut, *(["edges"] if source.keep_edges else [])]
    )
    with writing(scan.url, f"label-{output}"):
        done = scan.labels().get(output)
        if done is not None and done.key == key:
            return done
        return _write(source, output, key, cut)


def within_edges(values: npt.NDArray[np.uint8], marks: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    """Predicted values, of which one that touches a mark is no more than the largest beside it that touches none.

    values uint8[z, y, x], marks bool[z, y, x]. Two voxels touch by face, edge or corner; within two voxels of the array's
    faces the answer is that of a volume that ends there. It holds at every threshold: what touches a mark is above it
    only beside something that lies above it and touches none.
    """
    touches = ndimage.binary_dilation(marks, np.ones((3, 3, 3), np.bool_))
    beyond = ndimage.maximum_filter(np.where(touches, np.uint8(0), values), 3, mode="constant")
    return np.where(touches & ~marks, np.minimum(values, beyond), values)


@dataclass(frozen=True)
class Source:
    """What a soft label is made of."""

    scan: Scan
    seen: LabelInfo
    human: LabelInfo | None
    keep_edges: bool

    def predicted(self, box: Box) -> npt.NDArray[np.uint8]:
        """Values of the prediction inside a box, with people's edges if these are kept."""
        if self.human is None or not self.keep_edges:
            return self.scan.read_label(self.seen.name, box)
        wide = box.grown((_REACH,) * 3).intersect(Box.whole(self.scan.shape_zyx))
        marks = self.scan.read_label(self.human.name, wide) >= _MARKED
        return within_edges(self.scan.read_label(self.seen.name, wide), marks)[box.relative_to(wide.start).slices]

    def taught(self, box: Box, threshold: int) -> npt.NDArray[np.uint8]:
        """People's labels where they are known, elsewhere what was predicted from a threshold of 255 on."""
        soft = self.predicted(box)
        kept = np.where(soft >= threshold, soft, np.uint8(0))
        if self.human is None:
            return kept
        marks = self.scan.read_label(self.human.name, box)
        return np.where(self.scan.read_known(self.human.name, box, marks), marks, kept)

    def tally(self) -> Tally:
        """Count people's label against the prediction, in one pass over the scan, shard by shard."""
        if self.human is None:
            raise ScanError(f"{self.scan.url} has no label of people's to count against.")
        total, name = Tally(0, np.zeros(256, np.int64)), self.human.name
        stored = self.scan.label(self.seen.name)
        cuts = list(blocks(self.scan.shape_zyx, index3(stored.shards or stored.chunks)))
        with progress(f"coverage of {name}, shards", len(cuts)) as advance:
            for box in cuts:
                given, marks = self.scan.read_given(name, box), self.scan.read_label(name, box)
                unsaid = given & ~self.scan.read_known(name, box, marks)
                values = self.predicted(box)[unsaid]
                counted = np.bincount(values, minlength=256)
                total += Tally(int(np.count_nonzero(given & (marks >= _MARKED))), counted)
                advance()
        return total


def _write(source: Source, output: str, key: str, cut: Cut) -> LabelInfo:
    scan, seen, human = source.scan, source.seen, source.human
    threshold, about = _threshold(source, cut)
    writer = writer_for(scan, output, key)
    todo = writer.todo()
    with progress(f"pseudo-label {output}, shards", len(todo)) as advance:
        for task in todo:
            writer.write(task, source.taught(writer.tasks[task], threshold))
            advance()
    lineage = {
        **seen.lineage,
        "prediction": {"label": seen.name, "digest": seen.digest},
        "donors": (human.donors if human else {}) | seen.donors,
        "kept": {"label": human.name, "digest": human.digest} if human else None,
        "keep_edges": source.keep_edges,
        **about,
    }
    info = writer.finish(
        lambda foreground, digest: LabelInfo(
            name=output, kind="soft", foreground=foreground, digest=digest, key=key, model=seen.model, lineage=lineage
        )
    )
    refresh(scan.url)
    return info


def _threshold(source: Source, cut: Cut) -> tuple[int, dict[str, Any]]:
    """The threshold of 255, 0 for none, and what the lineage says of it."""
    human = source.human
    if cut is None:
        return 0, {"threshold": None}
    if human is None or human.kind != "sparse":
        threshold = threshold_of(float(cut))
        return threshold, {"threshold": threshold / 255}
    counted = source.tally()
    if not counted.marked:
        raise ScanError(
            f"Label {human.name!r} of {source.scan.url} marks nothing, so no coverage can be matched to it."
        )
    threshold = counted.match(human.coverage) if cut == "coverage" else threshold_of(cut)
    achieved = float(counted.coverage[threshold])
    return threshold, {
        "threshold": threshold / 255,
        "declared_coverage": human.coverage,
        "achieved_coverage": achieved,
        "residual": achieved - human.coverage,
    }
