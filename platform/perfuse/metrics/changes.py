"""How 2×2×2 cubes change as the threshold rises over a soft prediction: what a curve is counted from.

From the threshold after a voxel's value on, the voxel is background. So a cube changes eight times, voxel by voxel in the order of
their values, however many of these changes fall on one threshold; where a change and the next do, what they say cancels.
"""

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from perfuse.metrics.areas import CLASSES, CODE_CLASS
from perfuse.metrics.surface import cube_codes

LEVELS = 256
Counts = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]

_ONE = int(CODE_CLASS[1])
"""The class of a cube of which one voxel is set, or all but one."""


def count_changes(truth: Bytes, predicted: Bytes, known: Bytes) -> tuple[Counts, Counts]:
    """The truth's surface cubes by class, int64[14], and the `changes` of `CurveCounts`, int64[3, 14, 257].

    truth, known: uint8[z, y, x] of 0 and 1, C-contiguous as predicted is.
    """
    changes = np.zeros((3, CLASSES, LEVELS + 1), np.int64)
    transitions, ends = _count(truth, predicted, known, CODE_CLASS)
    changes[:2, :, 1:] = (transitions.sum(1) - transitions.sum(2))[:, :CLASSES]
    changes[:2, 0] = 0
    changes[2, :, 1:] = ends[0] - ends[1]
    return ends[0].sum(1), changes


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _count(truth: Any, predicted: Any, known: Any, code_class: Any) -> Any:
    """Changes, and the lowest and highest values in cubes that are surface in the truth.

    Changes: int64[2, 16, 16, 256], by whether the truth has a surface there, class before, class after and value. Values:
    int64[2, 14, 256], by the truth's class. A row of cubes at a time, as in `surface`. The first voxel that goes and the last two
    need no look at the class of what is left.
    """
    depth, rows, width = truth.shape
    transitions = np.zeros((2, 16 * 16 * LEVELS), np.int64)
    ends = np.zeros((2, CLASSES, LEVELS), np.int64)
    column, mask, valid = np.empty(width, np.uint8), np.empty(width, np.uint8), np.empty(width, np.uint8)
    keys = np.empty((8, width), np.uint16)
    counted = np.zeros((width + 7) // 8 * 8, np.uint8)
    eights = counted.view(np.uint64)
    low, high = keys[0], keys[7]
    one = np.uint64(_ONE)
    for z in range(depth - 1):
        for y in range(rows - 1):
            cube_codes(truth, z, y, column, mask)
            cube_codes(known, z, y, column, valid)
            _sort_cubes(predicted, z, y, keys)
            for x in range(width - 1):
                surface = (mask[x] != 0) & (mask[x] != 255)
                counted[x] = (surface | (low[x] >> 8 != high[x] >> 8)) & (valid[x] == 255)
            for n in range(len(eights)):
                if not eights[n]:
                    continue
                for x in range(8 * n, min(8 * n + 8, width - 1)):
                    if not counted[x]:
                        continue
                    truth_class = code_class[mask[x]]
                    if truth_class:
                        ends[0, truth_class, low[x] >> 8] += 1
                        ends[1, truth_class, high[x] >> 8] += 1
                    changed = transitions[np.int64(truth_class > 0)]
                    changed[_place(np.uint64(0), one, low[x])] += 1
                    code, before = np.uint8(255) ^ np.uint8(low[x]), one
                    for m in range(1, 6):
                        code = np.uint8(code ^ np.uint8(keys[m, x]))
                        after = np.uint64(code_class[code])
                        changed[_place(before, after, keys[m, x])] += 1
                        before = after
                    changed[_place(before, one, keys[6, x])] += 1
                    changed[_place(one, np.uint64(0), high[x])] += 1
    return transitions.reshape((2, 16, 16, LEVELS)), ends


@numba.njit(inline="always")  # type: ignore[untyped-decorator]
def _place(before: Any, after: Any, key: Any) -> Any:
    """Where a change from class to class is counted; without signs, so that no index is looked at twice."""
    return before << np.uint64(12) | after << np.uint64(8) | np.uint64(key >> np.uint16(8))


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _sort_cubes(values: Any, z: int, y: int, keys: Any) -> None:
    """The corners of each cube of a row by rising value, uint16[8, x]: value · 256 + the corner's bit in the code.

    By a network without branches, many cubes at once. All is kept to 16 bits, or the compiler would take four times as many steps.
    """
    near, right, far, across = values[z, y], values[z, y + 1], values[z + 1, y], values[z + 1, y + 1]
    k0, k1, k2, k3, k4, k5, k6, k7 = keys[0], keys[1], keys[2], keys[3], keys[4], keys[5], keys[6], keys[7]
    for x in range(len(near) - 1):
        a, b = _key(near[x], 1), _key(near[x + 1], 16)
        c, d = _key(right[x], 2), _key(right[x + 1], 32)
        e, f = _key(far[x], 4), _key(far[x + 1], 64)
        g, h = _key(across[x], 8), _key(across[x + 1], 128)
        a, c, b, d, e, g, f, h = min(a, c), max(a, c), min(b, d), max(b, d), min(e, g), max(e, g), min(f, h), max(f, h)
        a, e, b, f, c, g, d, h = min(a, e), max(a, e), min(b, f), max(b, f), min(c, g), max(c, g), min(d, h), max(d, h)
        a, b, c, d, e, f, g, h = min(a, b), max(a, b), min(c, d), max(c, d), min(e, f), max(e, f), min(g, h), max(g, h)
        c, e, d, f = min(c, e), max(c, e), min(d, f), max(d, f)
        b, e, d, g = min(b, e), max(b, e), min(d, g), max(d, g)
        b, c, d, e, f, g = min(b, c), max(b, c), min(d, e), max(d, e), min(f, g), max(f, g)
        k0[x], k1[x], k2[x], k3[x], k4[x], k5[x], k6[x], k7[x] = a, b, c, d, e, f, g, h


@numba.njit(inline="always")  # type: ignore[untyped-decorator]
def _key(value: Any, bit: int) -> Any:
    return np.uint16(np.uint16(value) << np.uint16(8) | np.uint16(bit))
