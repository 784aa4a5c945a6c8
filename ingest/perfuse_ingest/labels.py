"""Labels given by people: masks and probabilities become a uint8 label group of a scan, whole or box by box."""

from collections import defaultdict
from contextlib import AbstractContextManager
from typing import Any

from perfuse import __version__, locks, storage
from perfuse.catalog import ORGAN, LabelInfo, Scan
from perfuse.console import progress, say
from perfuse.errors import ScanError, SourceError
from perfuse.geometry import Box, Index3
from perfuse.label_updates import LabelUpdate, discard_stage, roll_forward
from perfuse.labels import LabelWriter, check_name, given_by_person, writer_for
from perfuse.upkeep import refresh
from perfuse.validity import LabelBox, summary
from perfuse_ingest.mask_sources import Mask, MaskSource, open_masks
from perfuse_ingest.placing import place
from perfuse_ingest.rle import is_table, open_table


def check_request(name: str, coverage: float) -> None:
    """ScanError or SourceError unless name and coverage are such that a label can have."""
    check_name(name)
    if not 0 < coverage <= 1:
        raise SourceError(
            f"Coverage is the share of the vessels that is marked, above 0 and at most 1; got {coverage}."
        )


def add_labels(
    scan_url: str,
    source: str,
    *,
    name: str,
    at_zyx: Index3 | None = None,
    coverage: float = 1.0,
    author: str | None = None,
) -> LabelInfo:
    """Add a mask to a scan, as a label or as a new version of a box of one.

    The same call resumes a killed one, and does nothing when all is done.

    source: whatever `open_masks` opens, or a table of run lengths (FILE.csv, FILE.csv:DATASET).
    at_zyx: where the first voxel of a part lies. Without it, a mask of fewer slices than the scan lies where the names of
        its slices say. Outside all parts that were given, the label is unknown.
    coverage: share of the vessels that is marked; below 1 the box is sparse: what is not marked in it is unknown.
    author: who made it; kept with the box.
    A mask of the whole organ takes the place of one that the program found. Raises ShapeMismatchError; SourceError for
    other values, no vessel at all, or a place that is not known; ScanError when the name cannot be one, or is taken and the
    mask is for the whole scan.
    """
    info = _add(scan_url, source, name, at_zyx, coverage, author)
    refresh(scan_url)
    return info


def _add(
    scan_url: str, source: str, name: str, at_zyx: Index3 | None, coverage: float, author: str | None
) -> LabelInfo:
    check_request(name, coverage)
    scan = Scan.open(scan_url)
    with _opened(source, scan) as masks, locks.writing(scan.url, f"label-{name}"), storage.reaching(scan.url):
        for passed in masks.passed_over:
            say(f"passed over {passed}: no image")
        roll_forward(scan, name)
        box = place(masks, scan, at_zyx)
        about = _about(masks, coverage, author)
        key = storage.digest_json(
            [scan.info.digest, masks.identity, box.start, box.stop, coverage] + [author] * bool(author)
        )
        there = scan.labels().get(name)
        if there is None or (name == ORGAN and box == Box.whole(scan.shape_zyx) and not given_by_person(there)):
            return _first(writer_for(scan, name, key), masks, box, about)
        if any(given.key == key for given in scan.label_boxes(name)):
            discard_stage(scan.url, name)
            say(f"label {name} of {scan.url} holds these already: nothing to do")
            return there
        if at_zyx is None and box == Box.whole(scan.shape_zyx):
            raise ScanError(
                f"Scan {scan.url} has a label {name!r} already, which differs from {masks.url}; it is not overwritten. Choose "
                "another name; a part of it is corrected by `perfuse labels add … --at Z,Y,X`."
            )
        return _next(LabelUpdate(scan, name, box, key), masks, about)


def _opened(source: str, scan: Scan) -> AbstractContextManager[MaskSource]:
    return open_table(source, scan) if is_table(source) else open_masks(source)


def _about(masks: MaskSource, coverage: float, author: str | None) -> dict[str, Any]:
    lineage = {"source": storage.public(masks.url), "mask": masks.identity, "perfuse": __version__}
    if masks.probability and coverage != 1:
        raise SourceError(
            f"{masks.url} holds probabilities, which say themselves how sure a vessel is: leave --coverage out. It is for masks."
        )
    return {
        "kind": "soft" if masks.probability else "dense" if coverage == 1 else "sparse",
        "coverage": coverage,
        "author": author or None,
        "lineage": lineage,
    }


def _first(writer: LabelWriter, masks: MaskSource, box: Box, about: dict[str, Any]) -> LabelInfo:
    _write(writer, masks, box)
    shape = writer.levels[0].shape_zyx

    def info(foreground: float, voxels: str) -> LabelInfo:
        marked = round(foreground * Box.whole(shape).size)
        _insist(marked, masks, writer)
        only = LabelBox(
            version=1, start=box.start, stop=box.stop, marked=marked, added=marked, removed=0, key=writer.key, **about
        )
        made = LabelInfo(
            name=writer.name, **summary([only], shape), digest="", key=writer.key, boxes=(only,), lineage=only.lineage
        )
        return made.model_copy(update={"digest": made.digest_over(voxels)})

    return writer.finish(info)


def _next(update: LabelUpdate, masks: MaskSource, about: dict[str, Any]) -> LabelInfo:
    _write(update, masks, update.box)
    new = update.counted(about)
    _insist(new.marked, masks, update)
    say(f"version {new.version} of label {update.name}: {new.added} voxels added, {new.removed} removed")
    return update.apply(new)


def _insist(marked: int, masks: MaskSource, writer: LabelWriter | LabelUpdate) -> None:
    if not marked:
        writer.discard()
        raise SourceError(
            f"The mask {masks.url} is empty: no voxel is marked, and a label needs some. No label was added."
        )


def _write(writer: LabelWriter | LabelUpdate, masks: MaskSource, box: Box) -> None:
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
                writer.write(task, _shard(writer, task, inside, planes))
            advance()


def _shard(writer: LabelWriter | LabelUpdate, task: int, inside: Box, planes: Mask | None) -> Mask:
    """What a task writes: what stood there, and the planes of the box `inside`."""
    shard, cut = writer.before(task), writer.tasks[task]
    shared = cut.intersect(inside)
    if planes is not None and not shared.empty:
        shard[shared.relative_to(cut.start).slices] = planes[shared.relative_to(inside.start).slices]
    return shard
