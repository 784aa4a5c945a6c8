"""What was counted of a scan: histograms of all its voxels and of those inside the organ. Arrays of its group `perfuse/`.

perfuse/histogram         int64[bin]                     all voxels; bins as in `intensity`
perfuse/occupancy         [layers, rows, columns, 2]     lowest and highest value of each chunk of level 0
perfuse/organ_histogram   int64[bin]                     the voxels inside the organ
perfuse/organ_share       uint32[layers, rows, columns]  organ voxels in each chunk of level 0

The last two carry what they were made from (the digests of image and mask), and count only as long as it is the same.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from perfuse.errors import ScanError

ORGAN_HISTOGRAM, ORGAN_SHARE = "organ_histogram", "organ_share"
MADE_FROM = "made_from"

Counts = npt.NDArray[np.int64]


def array_of(group: zarr.Group, path: str) -> zarr.Array[Any]:
    """An array of a scan; ScanError when it is missing."""
    found = group.get(path)
    if not isinstance(found, zarr.Array):
        raise ScanError(f"{group.store_path} lacks the array {path}: the scan is damaged. Ingest it again.")
    return found


def everywhere(group: zarr.Group) -> Counts:
    """Exact counts of all voxels: 256 bins for uint8, 65,536 for uint16 and float32."""
    return np.asarray(array_of(group, "perfuse/histogram")[:], np.int64)


def occupancy(group: zarr.Group) -> npt.NDArray[Any] | None:
    """The lowest and the highest value of each chunk of level 0, [layers, rows, columns, 2]; None where they were not kept."""
    found = group.get("perfuse/occupancy")
    return np.asarray(found[...]) if isinstance(found, zarr.Array) else None


def is_current(group: zarr.Group, made_from: Sequence[str]) -> bool:
    """True when the statistics inside the organ are those of this image and this mask."""
    found = group.get(f"perfuse/{ORGAN_HISTOGRAM}")
    return isinstance(found, zarr.Array) and found.attrs.get(MADE_FROM) == list(made_from)


def inside_organ(group: zarr.Group, made_from: Sequence[str], name: str, url: str) -> Counts:
    """One of the two statistics inside the organ; ScanError when they are those of another mask."""
    if not is_current(group, made_from):
        raise ScanError(
            f"The organ mask of {url} was changed after the statistics inside it were made, or these were never "
            f"finished. Say: perfuse scan refresh {url}"
        )
    return np.asarray(array_of(group, f"perfuse/{name}")[...], np.int64)
