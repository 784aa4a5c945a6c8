"""Masks made cleaner, exactly as the whole volume in memory would be: shard by shard, in flat memory.

In this order: a threshold, or two of them (hysteresis); components that are too small or not among the largest go; holes are
filled. What one step leaves is never stored: it is made again, shard by shard, from the label and the table of components.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field, ValidationError, model_validator

from perfuse import storage
from perfuse.catalog import LabelInfo, Scan
from perfuse.components import Block, Components, Connectivity, Rule, find_components, label_block
from perfuse.contract import Frozen, threshold_of
from perfuse.errors import ScanError
from perfuse.geometry import Box
from perfuse.labels import check_output, made_by_program, own_threshold, writer_for
from perfuse.locks import writing
from perfuse.passes import over_blocks
from perfuse.upkeep import refresh

Mask = npt.NDArray[np.bool_]
Voxels = Callable[[Box], tuple[Mask, Mask | None]]
"""The voxels of a mask in a box, and those of them that are marks, if any are."""

BACKGROUND: dict[Connectivity, Connectivity] = {6: 26, 18: 6, 26: 6}
"""How the background hangs together when the foreground does so: else a curve would not part a plane."""


class Cleaning(Frozen):
    """What is done to a label, in this order; nothing by default, besides the threshold."""

    threshold: float | None = Field(None, gt=0, le=1)
    """None: that of the model that made the label, else ½."""
    hysteresis: tuple[float, float] | None = None
    """Voxels from the lower threshold on, in components that hold one from the upper on; in place of `threshold`."""
    connectivity: Connectivity = 26
    min_voxels: int = Field(1, ge=1)
    keep_largest: int | None = Field(None, ge=1)
    fill_holes: bool = False
    """Background that does not reach the faces of the volume becomes vessel."""

    @model_validator(mode="after")
    def _ordered(self) -> "Cleaning":
        if self.hysteresis is not None:
            low, high = self.hysteresis
            if self.threshold is not None:
                raise ValueError("hysteresis has two thresholds of its own: leave out the threshold")
            if not 0 < low < high <= 1:
                raise ValueError(f"hysteresis takes LOW,HIGH with 0 < LOW < HIGH ≤ 1; got {low:g},{high:g}")
        return self


def cleaning_of(*, hysteresis: str | None = None, **values: Any) -> Cleaning:
    """What is wished for in words, LOW,HIGH for hysteresis; ScanError that says what is allowed."""
    try:
        pair = None if hysteresis is None else tuple(float(word) for word in hysteresis.split(","))
        return Cleaning.model_validate({**values, "hysteresis": pair})
    except ValidationError as error:
        first = error.errors()[0]
        said = first["msg"].removeprefix("Value error, ")
        raise ScanError(": ".join([*map(str, first["loc"][:1]), f"{said}."])) from error
    except ValueError as error:
        raise ScanError(f"--hysteresis takes two probabilities, LOW,HIGH; got {hysteresis!r}.") from error


@dataclass(frozen=True)
class _Chosen:
    """What stays of the components of a mask."""

    voxels: Voxels
    shape_zyx: tuple[int, int, int]
    connectivity: Connectivity
    found: Components = field(repr=False)

    def __call__(self, box: Box) -> Mask:
        block = _labelled(self.voxels, box, self.shape_zyx, self.connectivity)
        return block.paint(self.found.chosen(block))


def postprocess(scan_url: str, label: str, output: str, cleaning: Cleaning) -> LabelInfo:
    """Write the label `output`, 0 and 255, of what `cleaning` leaves of another.

    Interrupted, the same call goes on; done, it does nothing. Raises ScanError when there is no such label, or when
    `output` was given by people.
    """
    scan = Scan.open(scan_url)
    info = scan.label_info(label)
    if output == label:
        raise ScanError(f"The label {label!r} would replace itself: name another --output.")
    check_output(scan, output)
    low, high = thresholds(info, cleaning)
    key = storage.digest_json([info.digest, low, high, cleaning.model_dump(exclude={"threshold", "hysteresis"})])
    with writing(scan.url, f"label-{output}"):
        done = scan.labels().get(output)
        if done is not None and done.key == key:
            return done
        writer = writer_for(scan, output, key)
        clean = _cleaned(scan, label, (low, high), cleaning, writer.tasks)
        todo = writer.todo()

        def write(task: int) -> None:
            writer.write(task, clean(writer.tasks[task]).astype(np.uint8) * np.uint8(255))

        for _ in over_blocks(todo, f"clean {output}, shards", write):
            pass
        about = {"cleaned": {"label": label, "digest": info.digest}, "cleaning": cleaning.model_dump(mode="json")}
        lineage = {**info.lineage, **about} if info.model else {**made_by_program("postprocess"), **about}
        written = writer.finish(
            lambda foreground, digest: info.model_copy(
                update={
                    "name": output,
                    "foreground": foreground,
                    "digest": info.digest_over(digest),
                    "key": key,
                    "lineage": lineage,
                }
            )
        )
    refresh(scan.url)
    return written


def thresholds(info: LabelInfo, cleaning: Cleaning) -> tuple[int, int]:
    """The lower and upper threshold, of 255; equal where there is one."""
    if cleaning.hysteresis is not None:
        low, high = (threshold_of(p) for p in cleaning.hysteresis)
        return low, high
    at = own_threshold(info) if cleaning.threshold is None else threshold_of(cleaning.threshold)
    return at, at


HOLE = Rule(marked=False)
"""Of background whose marks are the faces of the volume."""


def _cleaned(
    scan: Scan, label: str, at: tuple[int, int], cleaning: Cleaning, boxes: list[Box]
) -> Callable[[Box], Mask]:
    """The function that makes the voxels of any of the boxes."""
    (low, high), shape, connectivity = at, scan.shape_zyx, cleaning.connectivity

    def source(box: Box) -> tuple[Mask, Mask | None]:
        values = scan.read_label(label, box)
        return values >= low, values >= high

    rule = Rule(cleaning.min_voxels, cleaning.keep_largest, True if low < high else None)
    clean: Callable[[Box], Mask] = lambda box: source(box)[0]  # noqa: E731
    if rule != Rule():
        found = _found(source, boxes, shape, connectivity, rule, f"components of {label}")
        clean = _Chosen(source, shape, connectivity, found)
    return _filled(clean, boxes, shape, BACKGROUND[connectivity]) if cleaning.fill_holes else clean


def _filled(
    clean: Callable[[Box], Mask], boxes: list[Box], shape: tuple[int, int, int], connectivity: Connectivity
) -> Callable[[Box], Mask]:
    holes = _found(lambda box: (~clean(box), faces(box, shape)), boxes, shape, connectivity, HOLE, "holes")

    def fill(box: Box) -> Mask:
        mask = clean(box)
        block = label_block(~mask, box, shape, connectivity, faces(box, shape))
        return mask | block.paint(holes.chosen(block))

    return fill


def _labelled(voxels: Voxels, box: Box, shape: tuple[int, int, int], connectivity: Connectivity) -> Block:
    mask, marks = voxels(box)
    return label_block(mask, box, shape, connectivity, marks)


def _found(
    voxels: Voxels, boxes: list[Box], shape: tuple[int, int, int], connectivity: Connectivity, rule: Rule, what: str
) -> Components:
    labelled = over_blocks(boxes, f"{what}, shards", lambda box: _labelled(voxels, box, shape, connectivity))
    return find_components(labelled, connectivity, rule)


def faces(box: Box, shape: tuple[int, int, int]) -> Mask:
    """The voxels of a box that lie on the faces of the volume."""
    faces = np.zeros(box.shape, np.bool_)
    for axis, (start, stop, size) in enumerate(zip(box.start, box.stop, shape, strict=True)):
        along = np.moveaxis(faces, axis, 0)
        if start == 0:
            along[0] = True
        if stop == size:
            along[-1] = True
    return faces
