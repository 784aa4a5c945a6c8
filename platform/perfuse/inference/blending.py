"""Kernels of tiles that are added up in whole numbers, and of the rows that they become."""

import numba
import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int32]


@numba.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def add(
    total: Counts,
    answer: npt.NDArray[np.int16],
    weights: Counts,
    target: int,
    pictures: tuple[int, int],
    plane: int,
    left: int,
) -> None:
    """Add what some pictures say of one of their targets to the planes of a band from `plane` on, and columns from `left` on.

    total [classes, planes, rows, columns]; answer [pictures, classes, targets, rows, columns of a tile]; weights [rows, columns
    of a tile], of its pixels.
    """
    for number in range(pictures[0], pictures[1]):
        for k in range(answer.shape[1]):
            for y in range(answer.shape[3]):
                row, part, by = total[k, plane + number - pictures[0], y], answer[number, k, target, y], weights[y]
                for x in range(part.size):
                    row[left + x] += part[x] * by[x]


@numba.njit(nogil=True, cache=True, error_model="numpy")  # type: ignore[untyped-decorator]
def divide(total: Counts, weight: Counts, run: int, background: int, out: npt.NDArray[np.int16]) -> None:
    """Means of a band's first rows, rounded half up, as `logits.divide`; `background` where nothing was added.

    total [classes, planes, rows, columns]; weight [runs, rows, columns], each of `run` planes, the last of fewer;
    out [classes, planes, as many rows or fewer, columns]. In float64: an int32 is exact, and with a half added no quotient lies
    so near to a whole number that rounding could lose it.
    """
    for k in range(out.shape[0]):
        for z in range(out.shape[1]):
            for y in range(out.shape[2]):
                row, by, mean = total[k, z, y], weight[z // run, y], out[k, z, y]
                for x in range(mean.size):
                    w = max(by[x], 1)
                    whole = np.int16(np.floor((row[x] + (w >> 1) + 0.5) / w))
                    mean[x] = whole if by[x] else background
