"""Labels given by people: masks of two values become a uint8 label group of a scan."""

from collections import defaultdict

import numpy as np

from perfuse import __version__, locks, storage
from perfuse.catalog import LabelInfo, Scan
from perfuse.console import progress, say
from perfuse.errors import SourceError
from perfuse.geometry import Box, Index3
from perfuse.labels import LabelWriter, check_name, writer_for
from perfuse.upkeep import refresh
from perfuse_ingest.mask_sources import Mask, MaskSource, open_masks


def check_request(name: str, coverage: float) -> None:
    """ScanError or SourceError unless name and coverage are such that a label can have."""
    check_name(name)
    if not 0 < coverage <= 1:
        raise SourceError(
            f"Coverage is the share of the vessels that is marked, above 0 and at most 1; got {coverage}."
        )


def add_labels(
    scan_url: str, source: str, *, name: str, at_zyx: Index3 | None = None, coverage: float = 1.0
) -> LabelInfo:
    """Add a mask to a scan as a label. The same call resumes a killed one, and does nothing when all is done.

    source: TIFF masks of {0, 1}, {0, 254} or {0, 255} (one a slice, or multi-page), or a NIfTI, HDF5 or Zarr mask.
    at_zyx: where the first voxel of a part lies; outside the part the label is unknown.
    coverage: share of the vessels that is marked; below 1 the label is sparse: what is not marked is unknown.
    A label `organ` takes the place of one that the program made.
    Raises ShapeMismatchError; SourceError for other values, or no vessel at all; ScanError when the name is taken or cannot be one.
    """
    info = _add(scan_url, source, name, at_zyx, coverage)
    refresh(scan_url)
    return info


def _add(scan_url: str, source: str, name: str, at_zyx: Index3 | None, coverage: float) -> LabelInfo:
    check_request(name, coverage)
    scan = Scan.open(scan_url)
    with open_masks(source) as masks, locks.writing(scan.url, f"label-{name}"), storage.reaching(scan.url):
        for passed in masks.passed_over:
            say(f"passed over {passed}: no image")
        box = masks.box_in(scan.shape_zyx, at_zyx)
        key = storage.digest_json([scan.info.digest, masks.identity, box.start, box.stop, coverage])
        writer = writer_for(scan, name, key)
        if writer.complete is not None:
            say(f"label {name} of {scan.url} is complete already: nothing to do")
            return writer.complete
        _write(writer, masks, box)
        about = LabelInfo(
            name=name,
            kind="dense" if coverage == 1 else "sparse",
            coverage=coverage,
            foreground=0,
            digest="",
            key=key,
            box=None if at_zyx is None else (box.start, box.stop),
            lineage={"source": storage.public(masks.url), "mask": masks.identity, "perfuse": __version__},
        )
        return writer.finish(lambda share, digest: _summary(about, masks, share, digest))


def _summary(about: LabelInfo, masks: MaskSource, foreground: float, digest: str) -> LabelInfo:
    if not foreground:
        raise SourceError(
            f"The mask {masks.url} is empty: no voxel is marked, and a label needs some. No label was added."
        )
    return about.model_copy(update={"foreground": foreground, "digest": digest})


def _write(writer: LabelWriter, masks: MaskSource, box: Box) -> None:
    slabs: dict[tuple[int, int], list[int]] = defaultdict(list)
    for task in writer.todo():
        slabs[writer.tasks[task].start[0], writer.tasks[task].stop[0]].append(task)
    with progress(f"label {writer.name}, slabs", len(slabs)) as advance:
        for (start, stop), tasks in slabs.items():
            inside = Box((start, *box.start[1:]), (stop, *box.stop[1:])).intersect(box)
            planes = (
                None if inside.empty else masks.planes(inside.start[0] - box.start[0], inside.stop[0] - box.start[0])
            )
            for task in tasks:
                writer.write(task, _shard(writer.tasks[task], inside, planes))
            advance()


def _shard(task: Box, inside: Box, planes: Mask | None) -> Mask:
    """The voxels of a task; `planes` are those of the box `inside`, all else is 0."""
    shard = np.zeros(task.shape, np.uint8)
    shared = task.intersect(inside)
    if planes is not None and not shared.empty:
        shard[shared.relative_to(task.start).slices] = planes[shared.relative_to(inside.start).slices]
    return shard
