"""A source becomes a scan: OME-Zarr 0.5, in one pass, resumable, visible only when it is whole."""

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from perfuse import __version__, intensity, locks, storage, volumes
from perfuse.catalog import SUFFIX, Scan, ScanInfo
from perfuse.console import progress, say
from perfuse.errors import PlanError, ScanError, SourceError
from perfuse.geometry import Spacing, index3
from perfuse.labels import given_by_person
from perfuse.upkeep import refresh
from perfuse.volumes import LAYOUT, Layout, Level
from perfuse_ingest import hoa
from perfuse_ingest.labels import add_labels, check_request
from perfuse_ingest.mask_sources import open_masks
from perfuse_ingest.measures import Measures
from perfuse_ingest.organ import mask_organ
from perfuse_ingest.plan import IngestPlan, plan, slab_tree
from perfuse_ingest.schedulers import Rates, check_scheduler, default_scheduler, run
from perfuse_ingest.shaping import Shaping
from perfuse_ingest.slabs import Pass
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


def ingest(
    source: str,
    scan_url: str,
    *,
    voxel_size_um: Spacing | None = None,
    specimen: str | None = None,
    organ: str | None = None,
    donor: str | None = None,
    level: int = 0,
    labels: str | None = None,
    labels_name: str = "human",
    coverage: float = 1.0,
    shaping: Shaping | None = None,
    layout: Layout = LAYOUT,
    memory_bytes: int | None = None,
    allow_gaps: bool = False,
    scheduler: str | None = None,
    repair: bool = False,
    mask: bool = True,
) -> ScanInfo:
    """Ingest a source, and labels if given. The same call resumes a killed one, and does nothing when all is done.

    source: a stack of slices or a volume, see `open_source`, or hoa:NAME of the Human Organ Atlas; uint8, uint16 or
    float32. level: of a volume with several. voxel_size_um: z, y, x of the source's voxels.
    labels, labels_name, coverage: as in `add_labels`. scheduler: see `schedulers.run`. repair: check a complete scan, too, and
    write again what differs from what was written. mask: find the organ, for whatever follows to mean the organ.
    Raises SourceError or SliceError for bad slices, ShapeMismatchError for labels of another shape, ScanError when the
    URL holds something else, BusyError when somebody else writes it, PlanError when a slab does not fit in memory.
    """
    scheduler = scheduler or default_scheduler()
    check_scheduler(scheduler)
    about = About(specimen, organ, donor, voxel_size_um)
    shaping = shaping or Shaping()
    job = prepare(
        source, scan_url, about, shaping, layout, level=level, memory_bytes=memory_bytes, allow_gaps=allow_gaps
    )
    with job.source:
        if labels is not None:
            check_request(labels_name, coverage)
            with open_masks(labels) as masks:
                masks.box_in(job.source.shape_zyx, None)
        with storage.reaching(job.url), locks.writing(job.url):
            info = _ingest_image(job, scheduler, repair=repair)
    if mask:
        _mask(job.url)
    if labels is None:
        refresh(job.url)
    else:
        try:
            add_labels(job.url, labels, name=labels_name, coverage=coverage)
        except SourceError as error:
            raise SourceError(
                f"{error} The image of {job.url} is complete: mend the mask and run the same again."
            ) from error
    return info


def _mask(url: str) -> None:
    organ = Scan.open(url).organ
    if organ is None or not given_by_person(organ):
        mask_organ(url)


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


def _ingest_image(job: Job, scheduler: str, *, repair: bool) -> ScanInfo:
    finished = _finished(job.url, job.request)
    if finished and not repair:
        say(f"{job.url} is complete already: nothing to do")
        return Scan.open(job.url).info
    _prepare_group(job)
    work = Pass(job.url, job.source, job.levels, job.plan, storage.digest_json(job.request))
    with ThreadPoolExecutor(job.plan.threads) as pool:
        job.source.learn(pool)
    depth, *plane = job.source.shape_zyx
    with progress(f"ingest {storage.name_of(job.url)}, slices", depth) as advance:
        run(work, scheduler, Rates(advance, int(np.prod(plane)) * job.source.dtype.itemsize))
    info = _summary(job, work)
    work.group.attrs["perfuse"] = info.model_dump(mode="json")
    return info


def _finished(url: str, request: Request) -> bool:
    """True when this very scan is complete; ScanError when something else stands at the URL."""
    try:
        there = dict(volumes.open_group(url).attrs)
    except ScanError:
        if _occupied(url):
            raise ScanError(f"{url} is not empty and holds no scan. Choose another URL, or empty it first.") from None
        return False
    begun = there.get(BEGUN)
    if not isinstance(begun, dict):
        raise ScanError(f"{url} was not made by `perfuse ingest` and is not overwritten. Choose another URL.")
    if "perfuse" not in there:
        return False
    _insist_same(url, dict(begun), request)
    return True


def _occupied(url: str) -> bool:
    files = storage.filesystem(url)
    return bool(files.exists(url) and (not files.isdir(url) or files.ls(url, detail=False)))


def _insist_same(url: str, there: Request, asked: Request) -> None:
    different = [key for key in asked if there.get(key) != asked[key]]
    if different:
        words = "; ".join(
            "its slices have other names, sizes or bytes"
            if k == "slices"
            else f"its {k} is {there.get(k)}, asked {asked[k]}"
            for k in different
        )
        raise ScanError(f"{url} holds another scan ({words}). It is not overwritten: choose another URL, or remove it.")


def _prepare_group(job: Job) -> None:
    """The group with all its arrays: as an interrupted ingest of the same left it, else new and empty."""
    key = storage.digest_json(job.request)
    there = volumes.open_group(job.url).attrs.get(PREPARED) if _occupied(job.url) else None
    if there == key:
        storage.remove_leftovers(job.url)
        return
    if there is not None:
        say(f"{job.url} held an unfinished ingest of other slices, or with other settings: beginning anew")
    layout = job.plan.layout
    group = volumes.open_group(job.url, "w", attributes={BEGUN: job.request, CUT: asdict(layout)})
    volumes.create_pyramid(group, "", job.levels, job.source.dtype, layout=layout)
    slabs = slab_tree(job.levels, layout)[0]
    Measures.create(group.require_group("perfuse"), job.source, slabs, layout)
    group.attrs[PREPARED] = key


def _summary(job: Job, work: Pass) -> ScanInfo:
    source = job.source
    counts = work.measures.finish(source, work.tree[0])
    lineage = {
        "source": storage.public(source.url),
        "slices": len(source.names),
        "first": source.names[0],
        "last": source.names[-1],
        "slices_digest": work.measures.slices_root(),
        "perfuse": __version__,
        **job.lineage,
    }
    return ScanInfo(
        id=storage.name_of(job.url).removesuffix(SUFFIX),
        shape_zyx=source.shape_zyx,
        dtype=str(source.dtype),
        digest=work.marks[0].root(),
        intensity=intensity.summary(counts, source.dtype),
        lineage=lineage,
        **job.about,
    )
