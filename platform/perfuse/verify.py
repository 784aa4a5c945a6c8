"""Re-hash what a scan stores, hold its metadata against its arrays, and name what is not as it was written."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any

import numpy as np
import zarr

from perfuse import intensity, shards, volumes
from perfuse.catalog import Scan
from perfuse.console import progress
from perfuse.errors import ScanError
from perfuse.geometry import Box, blocks, index3
from perfuse.shards import ShardFormat

HASHED_AT_ONCE = 8
SOURCE_CHECKS = "perfuse.source_checks"
"""Entry points of functions (scan, source URL or None) → faults, by which a room that reads sources adds its check."""


@dataclass(frozen=True)
class Shard:
    """A stored shard, and the digest that was noted when it was written."""

    form: ShardFormat
    path: str
    """Of its array, below the scan."""
    box: Box
    digest: bytes

    def fault(self) -> str | None:
        """What is wrong with it, in words. An empty shard is not stored, which the digest tells from a lost one."""
        stored = self.form.stored_digest(self.box)
        if stored == self.digest:
            return None
        what = "is missing" if stored == shards.digest() else "differs from what was written"
        return f"{self.path}/{self.form.key(self.box)} {what}"


@dataclass(frozen=True)
class Report:
    """What was checked, and what is wrong."""

    checked: int
    """Shards."""
    faults: list[str]


def verify(scan_url: str, *, source: str | None = None, with_source: bool = False) -> Report:
    """Check all levels of the image, level 0 of each label, the metadata, and with_source the slices it was made from.

    source: where the slices are now; where they were by default.
    """
    scan = Scan.open(scan_url)
    faults = metadata_faults(scan)
    faults += _root_faults(scan, "perfuse/done/0", scan.info.digest)
    stored = {str(level): f"perfuse/done/{level}" for level in range(scan.levels)}
    for name, info in scan.labels().items():
        faults += _root_faults(scan, f"perfuse/labels/{name}", info.digest, info.digest_over)
        stored[f"labels/{name}/0"] = f"perfuse/labels/{name}"
    parts = [shard for path, marks in stored.items() for shard in _shards(scan, path, marks)]
    with progress(f"verify {scan.info.id}, shards", len(parts)) as advance, ThreadPoolExecutor(HASHED_AT_ONCE) as pool:
        for fault in pool.map(Shard.fault, parts):
            faults += [fault] if fault else []
            advance()
    if with_source or source:
        for entry in entry_points(group=SOURCE_CHECKS):
            check: Callable[[Scan, str | None], list[str]] = entry.load()
            faults += check(scan, source)
    return Report(len(parts), faults)


def _root_faults(scan: Scan, marks_path: str, digest: str, over: Callable[[str], str] = str) -> list[str]:
    """over: what makes the digest in the summary of the root over the marks."""
    rows = (row.tobytes() for row in np.asarray(_array(scan, marks_path)[:]))
    return [] if over(volumes.merkle(rows)) == digest else [f"{marks_path}: its root is not the digest in the summary"]


def _shards(scan: Scan, path: str, marks_path: str) -> Iterator[Shard]:
    array = _array(scan, path)
    form = ShardFormat.of(array)
    digests = np.asarray(_array(scan, marks_path)[:], np.uint8).reshape(-1, shards.DIGEST_BYTES)
    boxes = blocks(index3(array.shape), form.shard_zyx)
    for box, digest in zip(
        boxes, digests, strict=False
    ):  # of another number when the metadata were changed, a fault by itself
        yield Shard(form, path, box, digest.tobytes())


def metadata_faults(scan: Scan) -> list[str]:
    """Where summary, OME-Zarr metadata, arrays and statistics of a scan disagree."""
    info, image = scan.info, scan.image
    levels = volumes.pyramid_levels(info.shape_zyx, info.voxel_size_um, info.origin_um)
    faults = _disagree("summary shape_zyx", list(info.shape_zyx), "array 0", list(image.shape))
    faults += _disagree("summary dtype", info.dtype, "array 0", str(image.dtype))
    faults += _disagree("levels of OME metadata", scan.levels, "those of the shape", len(levels))
    for prefix in ("", *(f"labels/{name}/" for name in scan.labels())):
        group = scan.group[prefix.rstrip("/")] if prefix else scan.group
        assert isinstance(group, zarr.Group)
        stated = group.attrs["ome"]["multiscales"][0]["datasets"]  # type: ignore[index,call-overload]
        wanted = volumes.datasets(levels)
        if stated != wanted:
            faults.append(
                f"{prefix}zarr.json: scales or translations are not those of voxels of {info.voxel_size_um} µm"
            )
        for path, level in zip((str(d["path"]) for d in wanted), levels, strict=True):
            array = group.get(path)
            shape = list(array.shape) if isinstance(array, zarr.Array) else None
            faults += _disagree(f"{prefix}{path}", shape, "the level's shape", list(level.shape_zyx))
    counts = np.asarray(_array(scan, "perfuse/histogram")[:], np.int64)
    faults += _disagree("perfuse/histogram", int(counts.sum()), "voxels", int(np.prod(info.shape_zyx)))
    if counts.any() and intensity.summary(counts, image.dtype) != info.intensity:
        faults.append("perfuse/histogram: the percentiles in the summary are not its own")
    return faults


def _disagree(what: str, found: Any, against: str, wanted: Any) -> list[str]:
    return [] if found == wanted else [f"{what} is {found}, {against}: {wanted}"]


def _array(scan: Scan, path: str) -> zarr.Array[Any]:
    array = scan.group.get(path)
    if not isinstance(array, zarr.Array):
        raise ScanError(f"{scan.url} is damaged: {path} is missing. Ingest it again at another URL.")
    return array
