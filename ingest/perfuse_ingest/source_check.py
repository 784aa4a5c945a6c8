"""Hold a source against the scan that was made from it: replaced, exchanged or lost slices. `scan verify` calls it."""

from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor

import numpy as np

from perfuse.catalog import Scan
from perfuse.console import progress
from perfuse.errors import ScanError
from perfuse.geometry import Box, runs
from perfuse_ingest.job import BEGUN
from perfuse_ingest.measures import Measures
from perfuse_ingest.shaping import Shaping
from perfuse_ingest.sources import open_source
from perfuse_ingest.sources.source import Source

AT_ONCE = 64
"""Slices that are read before the bar moves."""


def source_faults(scan: Scan, source_url: str | None) -> list[str]:
    """What differs between the source that a scan was made from and the one at a URL now, in words.

    source_url: where it was by default. Slices are told by the digests of their bytes; the voxels of a volume are
    compared with those of the scan. Raises SourceError when there is no source.
    """
    begun = scan.group.attrs.get(BEGUN)
    if not isinstance(begun, dict):
        raise ScanError(f"{scan.url} does not say how it was made: another program wrote it.")
    url = source_url or str(scan.info.lineage["source"])
    z_um, y_um, x_um = begun["source_voxel_um"]
    opened = open_source(url, level=begun["level"], allow_gaps=True)
    with Shaping.from_json(begun["shaping"]).of(opened, (z_um, y_um, x_um)) as source, ThreadPoolExecutor() as pool:
        source.learn(pool)
        check = _planes if source.digests(0, 1, pool) is None else _slices
        return check(scan, source, pool)


def _slices(scan: Scan, source: Source, pool: Executor) -> list[str]:
    measures = Measures(scan.group["perfuse"])  # type: ignore[arg-type]
    recorded = dict(zip(scan.slice_names(), measures.slice_digests(), strict=True))
    now: dict[str, bytes] = {}
    for start, stop in _runs(f"verify {source.url}, slices", len(source.names)):
        now |= zip(source.names[start:stop], source.digests(start, stop, pool) or [], strict=True)
    for index in source.missing:
        del now[source.names[index]]
    return list(_differences(recorded, now))


def _differences(recorded: dict[str, bytes], now: dict[str, bytes]) -> Iterator[str]:
    name_of = {digest: name for name, digest in recorded.items()}
    for index, (name, digest) in enumerate(recorded.items()):
        if name not in now:
            yield f"slice {index} ({name}) is no longer there"
        elif now[name] != digest:
            other = name_of.get(now[name])
            yield f"slice {index} ({name}) " + (f"holds what was {other}" if other else "was replaced")
    for name in now.keys() - recorded.keys():
        yield f"slice {name} was not there"


def _planes(scan: Scan, source: Source, pool: Executor) -> list[str]:
    if source.shape_zyx != scan.shape_zyx:
        return [f"{source.url} has shape {source.shape_zyx}, the scan {scan.shape_zyx}"]
    wrong: list[int] = []
    for start, stop in _runs(f"verify {source.url}, planes", source.shape_zyx[0]):
        box = Box((start, 0, 0), (stop, *source.shape_zyx[1:]))
        differs = source.read(box, pool)[0] != scan.read_image(box)
        wrong += [start + int(k) for k in np.flatnonzero(differs.any(axis=(1, 2)))]
    return [f"plane {k} of {source.url} has other voxels than the scan" for k in wrong]


def _runs(what: str, length: int) -> Iterator[tuple[int, int]]:
    with progress(what, length) as advance:
        for start, stop in runs(length, AT_ONCE):
            yield start, stop
            advance(stop - start)
