"""Re-hash what a scan stores, and name what is not as it was written."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr

from perfuse import storage, volumes
from perfuse.catalog import Scan
from perfuse.console import progress
from perfuse.errors import ScanError
from perfuse.geometry import Box, blocks, index3

HASHED_AT_ONCE = 8


@dataclass(frozen=True)
class Shard:
    """A stored shard, and the digest that was noted when it was written."""

    array: zarr.Array[Any]
    path: str
    """Of its array, below the scan."""
    box: Box
    digest: bytes

    @property
    def key(self) -> str:
        """Its stored object, below the scan."""
        return f"{self.path}/{volumes.shard_keys(self.array, self.box)[0]}"


def damaged(scan_url: str) -> tuple[int, list[str]]:
    """How many shards were checked, and the keys of those whose stored bytes differ from the done-marks.

    Checked are all levels of the image, and level 0 of each label; and that the marks give the digests of the summaries.
    """
    scan = Scan.open(scan_url)
    shards = [s for level in range(scan.levels) for s in _shards(scan, str(level), f"perfuse/done/{level}")]
    wrong = _roots(scan, "perfuse/done/0", scan.info.digest)
    for name, info in scan.labels().items():
        wrong += _roots(scan, f"perfuse/labels/{name}", info.digest, info.digest_over)
        shards += _shards(scan, f"labels/{name}/0", f"perfuse/labels/{name}")
    with progress(f"verify {scan.info.id}, shards", len(shards)) as advance, ThreadPoolExecutor(HASHED_AT_ONCE) as pool:
        for shard, intact in zip(shards, pool.map(lambda s: _intact(scan, s), shards), strict=True):
            if not intact:
                wrong.append(shard.key)
            advance()
    return len(shards), wrong


def _roots(scan: Scan, marks_path: str, root: str, identity: Callable[[str], str] = str) -> list[str]:
    rows = (row.tobytes() for row in np.asarray(_array(scan, marks_path)[:]))
    return (
        [] if identity(volumes.merkle(rows)) == root else [f"{marks_path} (its root is not the digest in the summary)"]
    )


def _shards(scan: Scan, path: str, marks_path: str) -> Iterator[Shard]:
    array = _array(scan, path)
    digests = np.asarray(_array(scan, marks_path)[:], np.uint8).reshape(-1, 32)
    boxes = blocks(index3(array.shape), index3(array.shards or array.chunks))
    for box, digest in zip(boxes, digests, strict=True):
        yield Shard(array, path, box, digest.tobytes())


def _intact(scan: Scan, shard: Shard) -> bool:
    return volumes.stored_digest(storage.join(scan.url, shard.path), shard.array, shard.box) == shard.digest


def _array(scan: Scan, path: str) -> zarr.Array[Any]:
    array = scan.group.get(path)
    if not isinstance(array, zarr.Array):
        raise ScanError(f"{scan.url} is damaged: {path} is missing. Ingest it again at another URL.")
    return array
