"""The Euler number of a mask as integers that add over blocks of cubes."""

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from perfuse.metrics.overlap import mask_bytes


def _eighths(code: int) -> int:
    """What a lattice point adds to eight times V − E + F − C of the union of the closed voxels about it; bit 4z + 2y + x."""
    voxel = [bool(code >> n & 1) for n in range(8)]
    corners = [(n >> 2, n >> 1 & 1, n & 1) for n in range(8)]
    edges = sum(
        any(v for v, c in zip(voxel, corners, strict=True) if c[axis] == side) for axis in range(3) for side in (0, 1)
    )
    faces = sum(
        any(v for v, c in zip(voxel, corners, strict=True) if c[a] == i and c[b] == j)
        for a, b in ((0, 1), (0, 2), (1, 2))
        for i in (0, 1)
        for j in (0, 1)
    )
    return 8 * any(voxel) - 4 * edges + 2 * faces - sum(voxel)


EIGHTHS = np.array([_eighths(code) for code in range(256)], np.int64)


def euler_eighths(mask: npt.NDArray[np.bool_]) -> int:
    """Eight times the part of the Euler number that the cubes inside a block of voxels hold.

    mask: bool[z, y, x] as `read_cubes` cuts it. The sum over blocks that tile a volume, by 8, is the Euler number of the
    foreground with 26-neighbours and the background with 6: components − tunnels + cavities.
    After Toriwaki and Yonekura 2002, "Euler number and connectivity indexes of a three dimensional digital picture".
    """
    return int(_count(mask_bytes(mask), EIGHTHS))


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _count(mask: Any, eighths: Any) -> int:
    depth, rows, width = mask.shape
    total = 0
    for z in range(depth - 1):
        for y in range(rows - 1):
            code = 0
            for j in range(4):
                code |= mask[z + j // 2, y + j % 2, 0] << (2 * j + 1)
            for x in range(1, width):
                code = (code >> 1) & 0x55
                for j in range(4):
                    code |= mask[z + j // 2, y + j % 2, x] << (2 * j + 1)
                total += eighths[code]
    return total
