"""Re-hash what a scan stores, and name what is not as it was written."""

from typing import Any

import numpy as np
import zarr

from perfuse import storage, volumes
from perfuse.catalog import Scan
from perfuse.console import progress
from perfuse.errors import ScanError
from perfuse.geometry import Box, blocks, index3


def damaged(scan_url: str) -> tuple[int, list[str]]:
    """How many parts were checked, and those whose stored bytes, or whose root digest, differ from the done-marks."""
    scan = Scan.open(scan_url)
    wrong: list[str] = []
    checked = _check(scan, "0", "perfuse/done", scan.info.digest, wrong, whole_planes=True)
    for name, info in scan.labels().items():
        checked += _check(scan, f"labels/{name}/0", f"perfuse/labels/{name}", info.digest, wrong, whole_planes=False)
    return checked, wrong


def _check(scan: Scan, path: str, marks_path: str, root: str, wrong: list[str], *, whole_planes: bool) -> int:
    array, marks = _array(scan, path), _array(scan, marks_path)
    unit = index3(array.shards or array.chunks)
    if whole_planes:
        unit = (unit[0], scan.shape_zyx[1], scan.shape_zyx[2])
    digests = [row.tobytes() for row in np.asarray(marks[:])]
    if volumes.merkle(digests) != root:
        wrong.append(f"{marks_path}: the done-marks do not give the digest of the summary")
    tasks: list[Box] = list(blocks(scan.shape_zyx, unit))
    with progress(f"verify {path}", len(tasks)) as advance:
        for task, (box, mark) in enumerate(zip(tasks, digests, strict=True)):
            if volumes.stored_digest(storage.join(scan.url, path), array, box) != mark:
                wrong.append(f"{path}, part {task}: voxels {box.start} to {box.stop}")
            advance()
    return len(tasks)


def _array(scan: Scan, path: str) -> zarr.Array[Any]:
    array = scan.group.get(path)
    if not isinstance(array, zarr.Array):
        raise ScanError(f"{scan.url} is damaged: {path} is missing.")
    return array
