"""A source becomes a scan: OME-Zarr 0.5, in one pass, resumable, visible only when it is whole."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

import numpy as np

from perfuse import __version__, intensity, locks, storage, volumes
from perfuse.catalog import SUFFIX, Scan, ScanInfo
from perfuse.console import progress, say
from perfuse.errors import ScanError, SourceError
from perfuse.geometry import Spacing
from perfuse.labels import given_by_person
from perfuse.upkeep import refresh
from perfuse.volumes import LAYOUT, Layout
from perfuse_ingest.job import BEGUN, CUT, PREPARED, About, Job, Request, prepare
from perfuse_ingest.labels import add_labels, check_request
from perfuse_ingest.mask_sources import open_masks
from perfuse_ingest.measures import Measures
from perfuse_ingest.organ import mask_organ
from perfuse_ingest.plan import slab_tree
from perfuse_ingest.schedulers import Rates, check_scheduler, default_scheduler, run
from perfuse_ingest.shaping import Shaping
from perfuse_ingest.slabs import Pass


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
