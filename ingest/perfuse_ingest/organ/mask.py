"""The organ mask as a label of the scan: found on a coarse level, written shard by shard at full resolution."""

from typing import Any

import numpy as np
import numpy.typing as npt

from perfuse import __version__, locks, organ_statistics, storage
from perfuse.catalog import ORGAN, LabelInfo, Scan
from perfuse.console import progress, say
from perfuse.errors import ScanError
from perfuse.geometry import Box, Index3, index3
from perfuse.labels import LabelWriter, given_by_person, made_by_program, writer_for
from perfuse_ingest.organ.coarse import Mask
from perfuse_ingest.organ.find import Found, find_organ

METHOD = 1
"""To be counted up when the same voxels would give another mask."""
MOST_VOXELS = 3_000_000
"""Of the level on which the organ is found: less than 1 GiB of memory and some seconds, whatever the size of the scan."""


def mask_organ(scan_url: str) -> LabelInfo:
    """Find the organ and write it as the label `organ`, with the statistics inside it; does nothing when all is done.

    The same scan gives the same bytes; a killed call is resumed by the next.
    Raises ScanError when a person gave this label, BusyError when somebody else writes it.
    """
    scan = Scan.open(scan_url)
    with storage.reaching(scan.url), locks.writing(scan.url, f"label-{ORGAN}"):
        there = scan.labels().get(ORGAN)
        if there is not None and given_by_person(there):
            raise ScanError(
                f"The organ of {scan.url} was marked by a person, and is not overwritten. It is used as it is; correct it by "
                f"`perfuse labels add {scan.url} MASK --name {ORGAN}`."
            )
        info = _label(scan)
        organ_statistics.refresh(Scan.open(scan.url))
    return info


def _label(scan: Scan) -> LabelInfo:
    writer = writer_for(scan, ORGAN, storage.digest_json([scan.info.digest, scan.info.voxel_size_um, METHOD]))
    if writer.complete is not None:
        say(f"the organ of {scan.url} is marked already: nothing to do")
        return writer.complete
    level = _level(scan)
    say(f"looking for the organ on level {level}, {' × '.join(map(str, scan.level(level).shape))} voxels")
    found = find_organ(np.asarray(scan.level(level)[:]), writer.levels[level].scale_um)
    _write(writer, found, _factor(writer, level))
    lineage: dict[str, Any] = {
        **made_by_program("perfuse mask"),
        "level": level,
        "how": found.how,
        "perfuse": __version__,
    }

    def info(foreground: float, digest: str) -> LabelInfo:
        return LabelInfo(
            name=ORGAN, kind="dense", foreground=foreground, digest=digest, key=writer.key, lineage=lineage
        )

    return writer.finish(info)


def _level(scan: Scan) -> int:
    """The finest level that is small enough."""
    sizes = [scan.level(k).size for k in range(scan.levels)]
    return next((k for k, size in enumerate(sizes) if size <= MOST_VOXELS), scan.levels - 1)


def _factor(writer: LabelWriter, level: int) -> Index3:
    """How many voxels of level 0 one of the coarse level covers along each axis."""
    return index3(np.prod([here.factor_zyx for here in writer.levels[: level + 1]], axis=0).tolist())


def _write(writer: LabelWriter, found: Found, factor: Index3) -> None:
    todo = writer.todo()
    with progress("organ mask, shards", len(todo)) as advance:
        for task in todo:
            writer.write(task, enlarged(found.mask, factor, writer.tasks[task]) * np.uint8(255))
            advance()


def enlarged(mask: Mask, factor: Index3, box: Box) -> Mask:
    """What a coarse mask says of the voxels of level 0 inside a box: where its linear interpolation reaches one half."""
    places = [
        _places(start, stop, f, n) for start, stop, f, n in zip(box.start, box.stop, factor, mask.shape, strict=True)
    ]
    part = mask[tuple(slice(first[0], second[-1] + 1) for first, second, _ in places)]
    if part.all() or not part.any():
        return np.full(box.shape, part.flat[0])
    values = part.astype(np.float32)
    for axis, (first, second, share) in enumerate(places):
        weight = np.expand_dims(share, [a for a in range(3) if a != axis])
        below, above = (np.take(values, index - first[0], axis) for index in (first, second))
        values = below + weight * (above - below)
    return np.asarray(values >= 0.5)


def _places(
    start: int, stop: int, factor: int, length: int
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], npt.NDArray[np.float32]]:
    """For each voxel of level 0: the coarse voxels whose centres lie before and behind its own, and how near the second is."""
    centre = np.clip((np.arange(start, stop) + 0.5) / factor - 0.5, 0, length - 1)
    first = centre.astype(np.intp)
    second = np.minimum(first + 1, length - 1)
    return first, second, (centre - first).astype(np.float32)
