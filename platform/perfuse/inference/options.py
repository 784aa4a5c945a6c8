"""What may be asked of a model beyond its contract: other views, another region, other weights; all of it goes into the key."""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

from pydantic import ValidationError

from perfuse.bundle import Bundle, Ensemble, Model
from perfuse.catalog import Scan
from perfuse.contract import Blend, Forward, Fusion
from perfuse.errors import ContractError, PlanError
from perfuse.geometry import Box, index3
from perfuse.written import parsed

FREE = (
    "axes",
    "tile",
    "overlap",
    "window",
    "blend",
    "turns",
    "scales",
    "axis_weights",
    "axis_fusion",
    "resample_um",
    "skip_background",
    "precision",
)
"""Keys of `forward` that a prediction may change: the weights stay what they were trained to be."""


def seen_otherwise(model: Model, settings: Sequence[str]) -> Model:
    """The model with key=value over the `forward` of each member, N:key=value over that of the N-th alone.

    ContractError for an unknown key, an impossible value, or a member that there is not.
    """
    if not settings:
        return model
    changes = [dict(map(_setting, settings_of(settings, n, len(model.members)))) for n in range(len(model.members))]
    return _each(model, lambda forward, n: forward.changed(**changes[n]))


def settings_of(settings: Sequence[str], number: int, members: int) -> list[str]:
    """Those, as key=value, that are meant for one of so many members, counted from 0; ContractError for N of none."""
    meant = []
    for text in settings:
        found = re.match(r"(\d+):", text)
        if found and not 1 <= int(found[1]) <= members:
            raise ContractError(f"--set {text}: there is no model {found[1]}; they are numbered 1 to {members}.")
        if found is None or int(found[1]) == number + 1:
            meant.append(text[found.end() :] if found else text)
    return meant


def previewed(model: Model, scan: Scan, level: int) -> Model:
    """The model on the voxels of a level of the scan's pyramid, whatever sizes its contract allows."""
    if not 0 < level < scan.levels:
        raise PlanError(f"--preview {level}: {scan.url} has the coarser levels 1 to {scan.levels - 1}.")
    return _each(
        model,
        lambda forward, _: forward.changed(
            resample_um=None,
            level=level,
            voxel_size_um=(0.0, max(*scan.info.voxel_size_um, forward.voxel_size_um[1])),
        ),
    )


def fused_otherwise(
    model: Model,
    average: Blend | None = None,
    weights: Sequence[float] | None = None,
    temperatures: Sequence[float] | None = None,
) -> Model:
    """An ensemble whose members count as said; weights become thousandths of their sum. ContractError when they do not fit."""
    if average is None and not weights and not temperatures:
        return model
    if isinstance(model, Bundle):
        raise ContractError("One model has nothing to be averaged with: name several, or leave out how they count.")
    for what, values in (("weights", weights), ("temperatures", temperatures)):
        if values and len(values) != len(model.members):
            raise ContractError(f"{len(values)} {what} for {len(model.members)} models: give one for each.")
    if weights and not (min(weights) >= 0 and 0 < sum(weights) < math.inf):
        raise ContractError(
            f"Weights {', '.join(f'{w:g}' for w in weights)}: none may lie below 0 or be without end, nor all be 0."
        )
    parts = tuple(round(1000 * w / sum(weights)) for w in weights) if weights else ()
    try:
        fusion = Fusion(average=average, weights=parts, temperatures=tuple(temperatures or ()))
    except ValidationError as error:
        raise ContractError(f"How the models count: {_said(error)}.") from error
    return Ensemble(model.members, model.threshold, fusion)


def box_of(text: str, scan: Scan) -> Box:
    """A region `z0:z1,y0:y1,x0:x1` of a scan in voxels, or in µm where it ends with `um`; what is left out reaches the scan's face.

    µm are a viewer's: those of a crop begin at its origin, the centre of its first voxel. The voxels of the region are those whose
    centres lie in it, from the first bound on, before the second. Raises PlanError for a region in µm beyond the scan, or of none.
    """
    spans = [re.fullmatch(r"(-?[\d.]*):(-?[\d.]*)", part.strip()) for part in text.removesuffix("um").split(",")]
    try:
        bounds = [[float(word) if word else None for word in s.groups()] for s in spans if s]
    except ValueError:
        bounds = []
    if len(bounds) != 3 or len(spans) != 3:
        raise PlanError(f"--roi {text}: write z0:z1,y0:y1,x0:x1 in voxels, or in µm with um at the end.")
    um, ends = text.endswith("um"), list(zip(*bounds, strict=True))
    edges, origin = (scan.info.voxel_size_um, scan.info.origin_um) if um else ((1.0,) * 3, (0.0,) * 3)
    start, stop = (
        index3([n if at is None else math.ceil((at - o) / e - 1e-6) for at, o, e, n in zip(*of_axes, strict=True)])
        for of_axes in ((ends[0], origin, edges, (0, 0, 0)), (ends[1], origin, edges, scan.shape_zyx))
    )
    box = Box(start, stop)
    if um and (box.empty or box.intersect(Box.whole(scan.shape_zyx)) != box):
        reach = ",".join(f"{o:.9g}:{o + n * e:.9g}" for o, n, e in zip(origin, scan.shape_zyx, edges, strict=True))
        raise PlanError(
            f"--roi {text}: the scan reaches over {reach}um, and of that the region must hold a voxel's centre."
        )
    return box


def _each(model: Model, change: Callable[[Forward, int], Forward]) -> Model:
    """change: takes the `forward` of a member and its number."""
    try:
        members = tuple(
            bundle.with_forward(change(bundle.contract.forward, n)) for n, bundle in enumerate(model.members)
        )
    except ValidationError as error:
        raise ContractError(f"{model.uri} cannot be asked so: {_said(error)}.") from error
    return members[0] if isinstance(model, Bundle) else Ensemble(members, model.threshold, model.fusion)


def _setting(text: str) -> tuple[str, Any]:
    key, separator, value = text.partition("=")
    if not separator or key not in FREE:
        raise ContractError(
            f"--set {text}: write key=value, or N:key=value for the N-th model; a prediction may change {', '.join(FREE)}."
        )
    several = "," in value or key in ("axes", "scales", "axis_weights")
    try:
        given = parsed(f"[{value}]" if several else value)
    except ValueError as error:
        raise ContractError(f"--set {text}: the value is a word, a number, or several with commas between.") from error
    return key, tuple(given) if several else given


def _said(error: ValidationError) -> str:
    faults: list[dict[str, Any]] = [dict(fault) for fault in error.errors()]
    return "; ".join(f"{'.'.join(map(str, f['loc']))} {f['msg'].removeprefix('Value error, ')}".strip() for f in faults)
