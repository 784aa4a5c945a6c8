"""Pseudo-labels: what a model sees where people have not said, beside what they have.

Where a label of people is known, it stays: marked voxels, and background that they stated (in dense boxes, outside the organ).
Elsewhere the probability p = value / 255 is kept, never binarised. With a threshold, what lies below it becomes 0, and is
taught as background. The threshold can be matched to the coverage that a sparse label declares: then people's marks are that
share of all that is marked afterwards (3rd place of SenNet + HOA 2023); without one, all of p is taught (5th place).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

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

Predict = Callable[[str, Model, str], tuple[LabelInfo, ...]]
"""`predict_local` or the Ray runner: (scan_url, model, output) → a LabelInfo for each class."""

Cut = float | Literal["coverage"] | None
"""Below which probability p becomes 0: as stated, as matches the declared coverage, or None: nowhere."""


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
    scan_url: str, model: Model, output: str, predict: Predict, *, cut: Cut = None
) -> tuple[LabelInfo, ...]:
    """Predict a scan into the label `<output>-prediction`, and make of it a soft label `output` to train on.

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
    return tuple(_pseudolabel(scan, *parts, cut) for parts in zip(seen, humans, outputs, strict=True))


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


def _pseudolabel(scan: Scan, seen: LabelInfo, declared: LabelInfo | None, output: str, cut: Cut) -> LabelInfo:
    key = storage.digest_json([seen.key, declared.digest if declared else "", cut])
    with writing(scan.url, f"label-{output}"):
        done = scan.labels().get(output)
        if done is not None and done.key == key:
            return done
        return _write(scan, seen, declared, output, key, cut)


def _write(scan: Scan, seen: LabelInfo, human: LabelInfo | None, output: str, key: str, cut: Cut) -> LabelInfo:
    threshold, about = _threshold(scan, seen.name, human, cut)
    writer = writer_for(scan, output, key)
    todo = writer.todo()
    with progress(f"pseudo-label {output}, shards", len(todo)) as advance:
        for task in todo:
            writer.write(task, _taught(scan, seen.name, human, writer.tasks[task], threshold))
            advance()
    lineage = {
        **seen.lineage,
        "prediction": {"label": seen.name, "digest": seen.digest},
        "kept": {"label": human.name, "digest": human.digest} if human else None,
        **about,
    }
    info = writer.finish(
        lambda foreground, digest: LabelInfo(
            name=output, kind="soft", foreground=foreground, digest=digest, key=key, model=seen.model, lineage=lineage
        )
    )
    refresh(scan.url)
    return info


def _taught(scan: Scan, seen: str, human: LabelInfo | None, box: Box, threshold: int) -> npt.NDArray[np.uint8]:
    soft = scan.read_label(seen, box)
    kept = np.where(soft >= threshold, soft, np.uint8(0))
    if human is None:
        return kept
    marks = scan.read_label(human.name, box)
    return np.where(scan.read_known(human.name, box, marks), marks, kept)


def _threshold(scan: Scan, seen: str, human: LabelInfo | None, cut: Cut) -> tuple[int, dict[str, Any]]:
    """The threshold of 255, 0 for none, and what the lineage says of it."""
    if cut is None:
        return 0, {"threshold": None}
    if human is None or human.kind != "sparse":
        threshold = threshold_of(float(cut))
        return threshold, {"threshold": threshold / 255}
    counted = tally(scan, seen, human.name)
    if not counted.marked:
        raise ScanError(f"Label {human.name!r} of {scan.url} marks nothing, so no coverage can be matched to it.")
    threshold = counted.match(human.coverage) if cut == "coverage" else threshold_of(cut)
    achieved = float(counted.coverage[threshold])
    return threshold, {
        "threshold": threshold / 255,
        "declared_coverage": human.coverage,
        "achieved_coverage": achieved,
        "residual": achieved - human.coverage,
    }


def tally(scan: Scan, prediction: str, human: str) -> Tally:
    """Count a label of people against a prediction, in one pass over the scan, shard by shard."""
    total = Tally(0, np.zeros(256, np.int64))
    stored = scan.label(prediction)
    cuts = list(blocks(scan.shape_zyx, index3(stored.shards or stored.chunks)))
    with progress(f"coverage of {human}, shards", len(cuts)) as advance:
        for box in cuts:
            given, marks = scan.read_given(human, box), scan.read_label(human, box)
            unsaid = given & ~scan.read_known(human, box, marks)
            values = scan.read_label(prediction, box)[unsaid]
            total += Tally(int(np.count_nonzero(given & (marks >= 128))), np.bincount(values, minlength=256))
            advance()
    return total
