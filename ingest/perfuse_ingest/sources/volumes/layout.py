"""What the metadata of a Zarr or N5 folder say: its levels, in which order its axes lie, and how large a voxel is."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from perfuse.errors import SourceError
from perfuse.geometry import AXES, Spacing
from perfuse_ingest.sources.volumes.stores import read_files

Json = dict[str, Any]
Axes = tuple[str, ...]

_ZARR3, _ZARR2_ARRAY, _ZARR2_GROUP, _ZARR2_ATTRIBUTES, _N5 = (
    "zarr.json",
    ".zarray",
    ".zgroup",
    ".zattrs",
    "attributes.json",
)
_FILES = [_ZARR3, _ZARR2_ARRAY, _ZARR2_GROUP, _ZARR2_ATTRIBUTES, _N5]
_N5_AXES = ("x", "y", "z", "c", "t")
"""The order that N5 means where it names none: the fastest axis first."""
_MOST_LEVELS = 16
_UM_PER_UNIT = {
    **dict.fromkeys(("angstrom", "Å"), 1e-4),
    **dict.fromkeys(("nanometer", "nm"), 1e-3),
    **dict.fromkeys(("micrometer", "micron", "um", "µm", "μm"), 1.0),
    **dict.fromkeys(("millimeter", "mm"), 1e3),
    **dict.fromkeys(("centimeter", "cm"), 1e4),
    **dict.fromkeys(("meter", "m"), 1e6),
}


@dataclass(frozen=True)
class Level:
    """One array of a volume."""

    path: str
    """Below the volume's URL; empty where that is the array itself."""
    voxel_size_um: Spacing | None
    """z, y, x; None where the metadata do not say, or name no unit."""


@dataclass(frozen=True)
class Layout:
    """Where the arrays of a volume lie and how they are to be read."""

    driver: str
    """Of tensorstore: zarr, zarr3 or n5."""
    levels: tuple[Level, ...]
    """Finest first."""
    axes: Axes | None
    """Their names, in the order of the array's indices; None: z, y, x come last."""


def find_layout(url: str) -> Layout | None:
    """The layout of a folder; None where it holds neither Zarr nor N5. Raises SourceError, ServerError."""
    files = {name: _parsed(url, name, data) for name, data in read_files(url, _FILES).items()}
    if _ZARR3 in files:
        node = files[_ZARR3]
        attributes = node.get("attributes", {})
        return _zarr(
            url, "zarr3", node if node.get("node_type") == "array" else None, attributes.get("ome", attributes)
        )
    if _ZARR2_ARRAY in files or _ZARR2_GROUP in files:
        return _zarr(url, "zarr", files.get(_ZARR2_ARRAY), files.get(_ZARR2_ATTRIBUTES, {}))
    group = files.get(_N5, {})
    if "dimensions" in group:
        return Layout("n5", (Level("", _n5_voxel_size(group, {}, 0)),), _n5_axes(group, {}))
    return _n5_group(url, group)


def _parsed(url: str, name: str, data: bytes) -> Json:
    try:
        return dict(json.loads(data))
    except ValueError as error:
        raise SourceError(f"{url} is damaged: {name} is no JSON object ({error}). Copy the volume again.") from error


def _zarr(url: str, driver: str, array: Json | None, attributes: Json) -> Layout:
    if array is not None:
        return Layout(driver, (Level("", None),), _named(array.get("dimension_names") or ()))
    multiscales = attributes.get("multiscales")
    if not multiscales:
        raise SourceError(f"{url} is a Zarr group without OME-Zarr metadata: give the URL of one of its arrays.")
    try:
        return _ome(driver, multiscales[0])
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise SourceError(
            f"{url} has OME-Zarr metadata that cannot be read ({error!r}). Mend its multiscales."
        ) from error


def _ome(driver: str, multiscale: Json) -> Layout:
    """OME-Zarr 0.4 and 0.5; translations have no say in the size of a voxel, wherever they stand."""
    axes = [a if isinstance(a, dict) else {"name": a} for a in multiscale.get("axes", [])]
    names = _named([a["name"] for a in axes])
    units = {str(a["name"]).lower(): a.get("unit") for a in axes}
    common = _scale(multiscale, len(axes))
    levels = []
    for dataset in multiscale["datasets"]:
        scale = [a * b for a, b in zip(_scale(dataset, len(axes)) or [], common or [1.0] * len(axes), strict=False)]
        size = _um(dict(zip(names or (), scale, strict=False)), units)
        levels.append(Level(str(dataset["path"]).strip("/"), size))
    return Layout(driver, tuple(levels), names)


def _scale(holder: Json, rank: int) -> list[float] | None:
    for step in holder.get("coordinateTransformations", []):
        if step.get("type") == "scale" and len(step.get("scale", ())) == rank:
            return [float(v) for v in step["scale"]]
    return None


def _n5_group(url: str, group: Json) -> Layout | None:
    """Levels s0, s1, … as far as they are there, or those that `multiscales` list."""
    listed = [d for m in group.get("multiscales", [])[:1] for d in m.get("datasets", [])]
    paths = [str(d["path"]) for d in listed] or [f"s{k}" for k in range(_MOST_LEVELS)]
    files = read_files(url, [f"{path}/{_N5}" for path in paths])
    there = list(takewhile(lambda path: f"{path}/{_N5}" in files, paths))
    arrays = [_parsed(url, f"{path}/{_N5}", files[f"{path}/{_N5}"]) for path in there]
    if not arrays or "dimensions" not in arrays[0]:
        return None
    if listed:
        sizes = [
            _n5_transformed(d.get("transform", {})) or _n5_voxel_size(arrays[k], group, k) for k, d in enumerate(listed)
        ]
    else:
        sizes = [_n5_voxel_size(array, group, k) for k, array in enumerate(arrays)]
    return Layout("n5", tuple(map(Level, there, sizes)), _n5_axes(arrays[0], group))


def _n5_axes(array: Json, group: Json) -> Axes:
    return _named(array.get("axes") or group.get("axes") or ()) or _N5_AXES


def _n5_transformed(transform: Json) -> Spacing | None:
    """`transform` of a listed level, whose axes are named beside the numbers, often in the opposite order."""
    axes = [str(a).lower() for a in transform.get("axes", [])]
    return _um(
        dict(zip(axes, transform.get("scale", []), strict=False)),
        dict(zip(axes, transform.get("units", []), strict=False)),
    )


def _n5_voxel_size(array: Json, group: Json, level: int) -> Spacing | None:
    """`pixelResolution` or `resolution` of the finest level, times the level's `downsamplingFactors`."""
    axes = _n5_axes(array, group)
    factors = array.get("downsamplingFactors") or [1, 1, 1]
    if level and "downsamplingFactors" not in array:
        listed = group.get("downsamplingFactors", [])
        if level >= len(listed):
            return None
        factors = listed[level]
    for holder in (array, group):
        stated: Any = holder.get("pixelResolution", holder.get("resolution"))
        unit: Any = holder.get("units", holder.get("unit"))
        if isinstance(stated, dict):
            stated, unit = stated.get("dimensions"), stated.get("unit")
        if stated:
            units = unit if isinstance(unit, list) else [unit] * len(stated)
            scale = [float(s) * f for s, f in zip(stated, factors, strict=False)]
            return _um(dict(zip(axes, scale, strict=False)), dict(zip(axes, units, strict=False)))
    return None


def _named(names: Iterable[Any]) -> Axes | None:
    """Names of axes, where they name z, y and x."""
    lower = tuple(str(name).lower() for name in names)
    return lower if set(AXES) <= set(lower) else None


def _um(scale: Mapping[str, float], units: Mapping[str, Any]) -> Spacing | None:
    """Scales by axis as z, y, x in µm; None unless all three are there with a unit of length."""
    factors = [_UM_PER_UNIT.get(str(units.get(axis))) for axis in AXES]
    if None in factors or not set(AXES) <= set(scale):
        return None
    z, y, x = (float(scale[axis]) * factor for axis, factor in zip(AXES, factors, strict=True) if factor)
    return z, y, x
