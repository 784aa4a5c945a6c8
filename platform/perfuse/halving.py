"""The next coarser level of a block, as compiled loops: one pass over the voxels, no copy of them."""

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

Voxels = npt.NDArray[Any]


@numba.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def mean_of_integers(block: Voxels, factor_zyx: tuple[int, int, int], out: Voxels) -> None:
    """Means of unsigned integers [z, y, x], rounded half up; a face that is left over is replicated."""
    depth, rows, columns = block.shape
    fz, fy, fx = factor_zyx
    line = np.empty(columns, np.uint32)
    shift = np.uint32(fz // 2 + fy // 2 + fx // 2)
    half = np.uint32((fz * fy * fx) // 2)
    for z in range(out.shape[0]):
        for y in range(out.shape[1]):
            line[:] = block[z * fz, y * fy]
            for k in range(1, fz * fy):
                part = block[min(z * fz + k // fy, depth - 1), min(y * fy + k % fy, rows - 1)]
                for x in range(columns):
                    line[x] += np.uint32(part[x])
            target = out[z, y]
            if fx == 1:
                for x in range(columns):
                    target[x] = (line[x] + half) >> shift
            else:
                for x in range(columns // 2):
                    target[x] = (line[2 * x] + line[2 * x + 1] + half) >> shift
                if columns % 2:
                    target[columns // 2] = (2 * line[columns - 1] + half) >> shift


@numba.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def mean_of_floats(block: Voxels, factor_zyx: tuple[int, int, int], out: Voxels) -> None:
    """Means of floats [z, y, x], summed in float64 in one order; a face that is left over is replicated."""
    depth, rows, columns = block.shape
    fz, fy, fx = factor_zyx
    for z in range(out.shape[0]):
        for y in range(out.shape[1]):
            for x in range(out.shape[2]):
                total = 0.0
                for k in range(fz * fy * fx):
                    total += block[
                        min(z * fz + k // (fy * fx), depth - 1),
                        min(y * fy + k // fx % fy, rows - 1),
                        min(x * fx + k % fx, columns - 1),
                    ]
                out[z, y, x] = total / (fz * fy * fx)


@numba.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def maximum(block: Voxels, factor_zyx: tuple[int, int, int], out: Voxels) -> None:
    """Largest values [z, y, x]."""
    depth, rows, columns = block.shape
    fz, fy, fx = factor_zyx
    line = np.empty(columns, block.dtype)
    for z in range(out.shape[0]):
        for y in range(out.shape[1]):
            line[:] = block[z * fz, y * fy]
            for k in range(1, fz * fy):
                part = block[min(z * fz + k // fy, depth - 1), min(y * fy + k % fy, rows - 1)]
                for x in range(columns):
                    line[x] = max(line[x], part[x])
            for x in range(out.shape[2]):
                out[z, y, x] = max(line[x * fx], line[min(x * fx + fx - 1, columns - 1)])
