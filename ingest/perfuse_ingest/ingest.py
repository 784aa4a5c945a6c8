"""A stack of slices becomes a scan: OME-Zarr 0.5, in one pass, resumable, visible only when it is whole."""

from typing import Any

import zarr

from perfuse import __version__, locks, storage, volumes
from perfuse.catalog import SUFFIX, Scan, ScanInfo
from perfuse.console import progress, say
from perfuse.errors import ScanError, SourceError
from perfuse.geometry import Spacing, index3
from perfuse_ingest.labels import add_labels, check_request
from perfuse_ingest.mask_sources import open_masks
from perfuse_ingest.measures import Measures, intensity
from perfuse_ingest.plan import IngestPlan, plan
from perfuse_ingest.slabs import Pass
from perfuse_ingest.sources import Source, check_dtype, open_source

Request = dict[str, Any]
"""What determines a scan; kept with it, so that the same call is known again."""
BEGUN, PREPARED = "perfuse_ingest", "perfuse_prepared"
"""Attributes of the group: the request, from the first moment; its digest, once all arrays are there."""


def ingest(
    source: str,
    scan_url: str,
    *,
    voxel_size_um: Spacing,
    specimen: str,
    organ: str,
    donor: str | None = None,
    labels: str | None = None,
    labels_name: str = "human",
    coverage: float = 1.0,
) -> ScanInfo:
    """Ingest TIFF slices, and labels if given. The same call resumes a killed one, and does nothing when all is done.

    source: a folder with one TIFF a slice, or one multi-page TIFF; uint8 or uint16. voxel_size_um: z, y, x.
    labels, labels_name, coverage: as in `add_labels`.
    Raises SourceError or SliceError for bad slices, ShapeMismatchError for labels of another shape, ScanError when the
    URL holds something else, BusyError when somebody else writes it, PlanError when a slab does not fit in memory.
    """
    url = _scan_url(scan_url)
    for what, word in {"specimen": specimen, "organ": organ, "donor": donor or specimen}.items():
        if not word.strip() or "," in word:
            raise SourceError(f"The {what} is a name without commas; got {word!r}.")
    stack = open_source(source)
    check_dtype(stack, ("uint8", "uint16"))
    for name in stack.passed_over:
        say(f"passed over {name}: no image")
    z_um, y_um, x_um = map(float, voxel_size_um)
    levels = volumes.pyramid_levels(stack.shape_zyx, (z_um, y_um, x_um))
    fits = plan(levels, stack.dtype, stack.largest_bytes)
    if labels is not None:
        check_request(labels_name, coverage)
        with open_masks(labels) as masks:
            masks.box_in(stack.shape_zyx, None)
    about = {"specimen": specimen, "donor": donor or specimen, "organ": organ, "voxel_size_um": [z_um, y_um, x_um]}
    with storage.reaching(url), locks.writing(url):
        info = _ingest_image(url, stack, levels, about, fits)
    if labels is not None:
        try:
            add_labels(url, labels, name=labels_name, coverage=coverage)
        except SourceError as error:
            raise SourceError(
                f"{error} The image of {url} is complete: mend the mask and run the same again."
            ) from error
    return info


def _scan_url(scan_url: str) -> str:
    url = storage.normal(scan_url)
    if not url.endswith(SUFFIX) or storage.name_of(url) == SUFFIX:
        raise ScanError(f"The name of a scan ends in {SUFFIX}: give {scan_url.rstrip('/')}{SUFFIX}, for example.")
    return url


def _ingest_image(url: str, stack: Source, levels: list[volumes.Level], about: Request, fits: IngestPlan) -> ScanInfo:
    slices = {"slices": stack.identity, "shape_zyx": list(stack.shape_zyx), "dtype": str(stack.dtype)}
    request = {**about, **slices}
    if _finished(url, request):
        say(f"{url} is complete already: nothing to do")
        return Scan.open(url).info
    group = _prepared(url, stack, levels, request)
    work = _pass(url, group, stack, levels, storage.digest_json(request))
    with progress(f"ingest {storage.name_of(url)}, slices", stack.shape_zyx[0]) as advance:
        work.run(fits, advance)
    info = _summary(url, stack, about, work)
    group.attrs["perfuse"] = info.model_dump(mode="json")
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


def _prepared(url: str, stack: Source, levels: list[volumes.Level], request: Request) -> zarr.Group:
    """The group with all its arrays: as an interrupted ingest of the same left it, else new and empty."""
    key = storage.digest_json(request)
    there = volumes.open_group(url).attrs.get(PREPARED) if _occupied(url) else None
    if there != key:
        if there is not None:
            say(f"{url} held an unfinished ingest of other slices, or with other settings: beginning anew")
        group = volumes.open_group(url, "w", attributes={BEGUN: request})
        volumes.create_pyramid(group, "", levels, stack.dtype)
        Measures.create(group.require_group("perfuse"), stack)
        group.attrs[PREPARED] = key
    return volumes.open_group(url, "r+")


def _pass(url: str, group: zarr.Group, stack: Source, levels: list[volumes.Level], key: str) -> Pass:
    inner = group.require_group("perfuse")
    done = inner.require_group("done")
    arrays = [_array(group, str(k)) for k in range(len(levels))]
    marks = []
    for level, array in enumerate(arrays):
        slabs, rows, columns = (
            -(-n // s) for n, s in zip(array.shape, index3(array.shards or array.chunks), strict=True)
        )
        marks.append(volumes.DoneMarks(done, str(level), slabs, key, shards=rows * columns))
    return Pass(url, stack, levels, arrays, marks, Measures(inner))


def _array(group: zarr.Group, name: str) -> zarr.Array[Any]:
    array = group.get(name)
    if not isinstance(array, zarr.Array):
        raise ScanError(f"{group.store_path} is damaged: level {name} is missing. Remove the scan and ingest again.")
    return array


def _summary(url: str, stack: Source, about: Request, work: Pass) -> ScanInfo:
    lineage = {
        "source": storage.public(stack.url),
        "slices": stack.shape_zyx[0],
        "first": stack.names[0],
        "last": stack.names[-1],
        "slices_digest": work.measures.slices_root(),
        "perfuse": __version__,
    }
    return ScanInfo(
        id=storage.name_of(url).removesuffix(SUFFIX),
        shape_zyx=stack.shape_zyx,
        dtype=str(stack.dtype),
        digest=work.marks[0].root(),
        intensity=intensity(work.measures.finish()),
        lineage=lineage,
        **about,
    )
