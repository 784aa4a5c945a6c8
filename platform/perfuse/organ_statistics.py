"""Counts inside the organ mask, in one pass over level 0, block by block on threads; `measured` says where they lie."""

from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import zarr

from perfuse import intensity, measured, volumes
from perfuse.catalog import ORGAN, Scan
from perfuse.console import progress
from perfuse.geometry import Box, Index3, blocks, index3
from perfuse.parallel import in_order

BLOCK_CHUNKS = 4
"""Chunks along rows and columns that a thread reads at once."""

Shares = npt.NDArray[np.uint32]


def refresh(scan: Scan) -> None:
    """Make the statistics inside the organ anew, unless they are those of the mask as it is. Nothing without a mask."""
    if scan.organ is None or measured.is_current(scan.group, scan.organ_identity):
        return
    chunk = index3(scan.image.chunks)
    total = np.zeros(intensity.bins(np.dtype(scan.info.dtype)), np.int64)
    shares = np.zeros([-(-n // c) for n, c in zip(scan.shape_zyx, chunk, strict=True)], np.uint32)
    cuts = list(
        blocks(scan.shape_zyx, index3([c * m for c, m in zip(chunk, (1, BLOCK_CHUNKS, BLOCK_CHUNKS), strict=True)]))
    )
    with progress(f"organ of {scan.info.id}, blocks", len(cuts)) as advance:
        found = in_order(lambda box: measure(scan, box, chunk), cuts)
        for box, (counts, voxels) in zip(cuts, found, strict=True):
            total += counts
            at = [a // c for a, c in zip(box.start, chunk, strict=True)]
            shares[tuple(slice(a, a + n) for a, n in zip(at, voxels.shape, strict=True))] = voxels
            advance()
    _store(scan, total, shares)


def measure(scan: Scan, box: Box, chunk: Index3) -> tuple[measured.Counts, Shares]:
    """Counts of the intensities inside the organ, and organ voxels of each chunk, in a box of whole chunks."""
    inside = scan.read_label(ORGAN, box) >= np.uint8(128)
    shares = _chunk_sums(inside, chunk)
    counts = np.zeros(intensity.bins(np.dtype(scan.info.dtype)), np.int64)
    if shares.any():
        count_inside(intensity.bin_of(scan.read_image(box)), inside, counts)
    return counts, shares


def _chunk_sums(inside: npt.NDArray[np.bool_], chunk: Index3) -> Shares:
    sums: npt.NDArray[Any] = inside
    for axis, edge in enumerate(chunk):
        sums = np.add.reduceat(sums, np.arange(0, inside.shape[axis], edge), axis=axis, dtype=np.uint32)
    return np.asarray(sums, np.uint32)


@numba.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def count_inside(numbers: npt.NDArray[Any], inside: npt.NDArray[np.bool_], counts: measured.Counts) -> None:
    """Add up how often each number stands where `inside` is true: [z, y, x] both."""
    for z in range(numbers.shape[0]):
        for y in range(numbers.shape[1]):
            for x in range(numbers.shape[2]):
                if inside[z, y, x]:
                    counts[numbers[z, y, x]] += 1


def _store(scan: Scan, counts: measured.Counts, shares: Shares) -> None:
    """The histogram's mark comes last: it makes both valid."""
    group = volumes.open_group(scan.url, "r+").require_group("perfuse")
    for name, values in ((measured.ORGAN_SHARE, shares), (measured.ORGAN_HISTOGRAM, counts)):
        _create(group, name, values).attrs[measured.MADE_FROM] = scan.organ_identity


def _create(group: zarr.Group, name: str, values: npt.NDArray[Any]) -> zarr.Array[Any]:
    array = group.create_array(
        name, shape=values.shape, chunks=values.shape, dtype=values.dtype, fill_value=0, overwrite=True
    )
    array[...] = values
    return array
