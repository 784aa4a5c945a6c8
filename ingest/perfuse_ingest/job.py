"""An ingest before it begins: what is known of its source, checked and planned; nothing is written."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from perfuse import intensity, storage, volumes
from perfuse.catalog import SUFFIX
from perfuse.console import say
from perfuse.errors import PlanError, ScanError, SourceError
from perfuse.geometry import Spacing, index3
from perfuse.volumes import LAYOUT, Layout, Level
from perfuse_ingest import hoa
from perfuse_ingest.plan import IngestPlan, plan
from perfuse_ingest.shaping import Shaping
from perfuse_ingest.sources import check_dtype, open_source
from perfuse_ingest.sources.source import Source

Request = dict[str, Any]
"""What determines a scan; kept with it, so that the same call is known again."""
BEGUN, PREPARED, CUT = "perfuse_ingest", "perfuse_prepared", "perfuse_layout"
"""Attributes of the group: the request, from the first moment; its digest, once all arrays are there; how they are cut."""


@dataclass(frozen=True)
class About:
    """What a scan shows; None: as the source states it."""

    specimen: str | None = None
    organ: str | None = None
    donor: str | None = None
    """The specimen when nobody states it."""
    voxel_size_um: Spacing | None = None
    """z, y, x."""
    lineage: Mapping[str, str | int] = field(default_factory=dict)
    """Where the source comes from."""


@dataclass(frozen=True)
class Job:
    """An ingest that was checked and planned, and has written nothing yet."""

    url: str
    source: Source
    about: Request
    lineage: Mapping[str, str | int]
    levels: list[Level]
    plan: IngestPlan
    request: Request


def prepare(
    source_url: str,
    scan_url: str,
    about: About,
    shaping: Shaping,
    layout: Layout = LAYOUT,
    *,
    level: int = 0,
    memory_bytes: int | None = None,
    allow_gaps: bool = False,
) -> Job:
    """Open and check a source, and plan its ingest; writes nothing. The job's source is to be closed."""
    url = _scan_url(scan_url)
    source_url, about = _known(source_url, level, about)
    _check_names(about)
    source = open_source(source_url, level=level, allow_gaps=allow_gaps)
    for name in source.passed_over:
        say(f"passed over {name}: no image")
    if source.missing:
        first = ", ".join(source.names[k] for k in source.missing[:5])
        say(f"{len(source.missing)} slices are missing and become zeros: {first}")
    voxel_size_um = _voxel_size(source, about.voxel_size_um)
    shaped = shaping.of(source, voxel_size_um)
    check_dtype(shaped, intensity.DTYPES)
    z_um, y_um, x_um = [shaping.target_um] * 3 if shaping.target_um else voxel_size_um
    shown = {
        "specimen": about.specimen,
        "donor": about.donor or about.specimen,
        "organ": about.organ,
        "voxel_size_um": [z_um, y_um, x_um],
        "origin_um": list(shaping.origin_um(voxel_size_um)),
        "window": None if shaping.window is None else list(shaping.window),
        "gaps": list(shaped.missing),
    }
    levels = volumes.pyramid_levels(shaped.shape_zyx, (z_um, y_um, x_um), shaping.origin_um(voxel_size_um))
    slices = {"slices": shaped.identity, "shape_zyx": list(shaped.shape_zyx), "dtype": str(shaped.dtype)}
    made = {"source_voxel_um": voxel_size_um, "level": level, "shaping": shaping.as_json(), "layout": asdict(layout)}
    request = json.loads(json.dumps({**shown, **slices, **made}))
    cut = _cut_already(url, request) or layout
    fits = plan(shaped, levels, cut, memory_bytes=memory_bytes)
    if cut is not layout and fits.layout != cut:
        raise PlanError(
            f"The ingest of {url} was begun with shards of {cut.shard_chunks[1]} chunks of rows, which do not fit in the memory "
            "that may be used now. Give as much as before, or remove the scan and begin anew."
        )
    return Job(url, shaped, shown, about.lineage, levels, fits, request)


def _known(source_url: str, level: int, about: About) -> tuple[str, About]:
    """What a catalogue knows of a source; what was given goes before."""
    if not hoa.is_hoa(source_url):
        return source_url, about
    found = hoa.resolve(source_url, level=level)
    return found.url, About(
        about.specimen or found.specimen,
        about.organ or found.organ,
        about.donor or found.donor,
        about.voxel_size_um or found.voxel_size_um,
        found.lineage,
    )


def _check_names(about: About) -> None:
    for what in ("specimen", "organ"):
        if getattr(about, what) is None:
            raise SourceError(f"Say which {what} the slices show: --{what} NAME.")
    for what, word in {"specimen": about.specimen, "organ": about.organ, "donor": about.donor}.items():
        if word is not None and (not word.strip() or "," in word):
            raise SourceError(f"The {what} is a name without commas; got {word!r}.")


def _voxel_size(source: Source, given: Spacing | None) -> Spacing:
    if given is None and source.voxel_size_um is None:
        raise SourceError(f"{source.url} does not state its voxel size. Give --voxel-size-um.")
    if (
        given is not None
        and source.voxel_size_um is not None
        and not np.allclose(given, source.voxel_size_um, rtol=0.01)
    ):
        say(f"Note: {source.url} states voxels of {source.voxel_size_um} µm (z, y, x); taken are {given}, as given")
    z, y, x = map(float, given or source.voxel_size_um)  # type: ignore[arg-type]
    return z, y, x


def _scan_url(scan_url: str) -> str:
    url = storage.normal(scan_url)
    if not url.endswith(SUFFIX) or storage.name_of(url) == SUFFIX:
        raise ScanError(f"The name of a scan ends in {SUFFIX}: give {scan_url.rstrip('/')}{SUFFIX}, for example.")
    return url


def _cut_already(url: str, request: Request) -> Layout | None:
    """How an interrupted ingest of the same cut its arrays."""
    try:
        there = dict(volumes.open_group(url).attrs)
    except ScanError:
        return None
    cut = there.get(CUT)
    if there.get(PREPARED) != storage.digest_json(request) or not isinstance(cut, dict):
        return None
    return Layout(**{**cut, "shard_chunks": index3(cut["shard_chunks"])})
