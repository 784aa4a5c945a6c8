"""Runs: the stretches of foreground along x that a mask is made of, and which of them hang together.

Components are found over runs instead of voxels: a vessel mask has far fewer of them, and they need no volume of labels.
After Rosenfeld and Pfaltz 1966 (two passes, equivalences) and He, Chao and Suzuki 2008, "A run-based two-scan labeling
algorithm"; equivalences by union-find with path halving, the run that comes first standing for its component.
"""

from typing import Any, Literal

import numba
import numpy as np
import numpy.typing as npt

Connectivity = Literal[6, 18, 26]
"""Voxels hang together by faces; by faces and edges; by faces, edges and corners."""

REACH: dict[Connectivity, npt.NDArray[np.int64]] = {
    6: np.array([[0, -1, 0], [-1, 0, 0]]),
    18: np.array([[0, -1, 1], [-1, 0, 1], [-1, -1, 0], [-1, 1, 0]]),
    26: np.array([[0, -1, 1], [-1, 0, 1], [-1, -1, 1], [-1, 1, 1]]),
}
"""The rows before a row with which its runs may hang together: z and y from here, and how far beyond its ends a run reaches in x."""


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def find_runs(mask: Any) -> Any:
    """Runs of a mask uint8[z, y, x] of 0 and 1: where each row's begin (int64[z · y + 1]), and start and stop of each in x."""
    depth, rows, width = mask.shape
    first = np.zeros(depth * rows + 1, np.int64)
    for z in range(depth):
        for y in range(rows):
            count = np.int64(mask[z, y, 0] if width else 0)
            for x in range(1, width):
                count += mask[z, y, x] > mask[z, y, x - 1]
            first[z * rows + y + 1] = first[z * rows + y] + count
    start, stop = np.empty(first[-1], np.int32), np.empty(first[-1], np.int32)
    for z in range(depth):
        for y in range(rows):
            at, end = first[z * rows + y], first[z * rows + y + 1]
            if at == end:
                continue
            before = np.uint8(0)
            for x in range(width):
                value = mask[z, y, x]
                if value != before:
                    if value:
                        start[at] = x
                    else:
                        stop[at] = x
                        at += 1
                    before = value
            if before:
                stop[at] = width
    return first, start, stop


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def root(parent: Any, of: int) -> int:
    """The run that stands for its component; ways to it are halved."""
    while parent[of] != of:
        parent[of] = parent[parent[of]]
        of = parent[of]
    return of


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def join(parent: Any, a: int, b: int) -> None:
    """Make one component of two; the lower number stands for it."""
    a, b = root(parent, a), root(parent, b)
    if a < b:
        parent[b] = a
    else:
        parent[a] = b


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def join_all(parent: Any, a: Any, b: Any) -> None:
    """Join pairs."""
    for n in range(len(a)):
        join(parent, a[n], b[n])


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def roots(parent: Any) -> Any:
    """What stands for each, int64."""
    found = np.empty_like(parent)
    for n in range(len(parent)):
        found[n] = root(parent, n)
    return found


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def number_runs(depth: int, rows: int, first: Any, start: Any, stop: Any, reach: Any) -> Any:
    """Component of each run, int64[run], numbered 0, 1, … by their first runs; and how many there are."""
    parent = np.arange(len(start))
    for z in range(depth):
        for y in range(rows):
            here, end = first[z * rows + y], first[z * rows + y + 1]
            if here == end:
                continue
            for n in range(len(reach)):
                near_z, near_y, wide = z + reach[n, 0], y + reach[n, 1], reach[n, 2]
                if near_z < 0 or near_y < 0 or near_y >= rows:
                    continue
                a, b = here, first[near_z * rows + near_y]
                last = first[near_z * rows + near_y + 1]
                while a < end and b < last:
                    if start[a] < stop[b] + wide and start[b] < stop[a] + wide:
                        join(parent, a, b)
                    if stop[a] < stop[b]:
                        a += 1
                    else:
                        b += 1
    count = 0
    number = np.empty(len(start), np.int64)
    for run in range(len(start)):
        number[run] = number[root(parent, run)] if parent[run] != run else count
        count += parent[run] == run
    return number, count


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def paint(rows: int, first: Any, start: Any, stop: Any, chosen: Any, out: Any) -> None:
    """Set the voxels of the chosen runs (bool[run]) in out, uint8[z, y, x], to 1."""
    for row in range(len(first) - 1):
        for run in range(first[row], first[row + 1]):
            if chosen[run]:
                out[row // rows, row % rows, start[run] : stop[run]] = 1


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def meets(mask: Any, first: Any, start: Any, stop: Any) -> Any:
    """Which runs contain a voxel of another mask, uint8[z, y, x]: bool[run]."""
    found = np.zeros(len(start), np.bool_)
    rows = mask.shape[1]
    for row in range(len(first) - 1):
        for run in range(first[row], first[row + 1]):
            for x in range(start[run], stop[run]):
                if mask[row // rows, row % rows, x]:
                    found[run] = True
                    break
    return found


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def shell(shape: Any, first: Any, start: Any, stop: Any) -> Any:
    """Foreground voxels on the six faces of a block: position int64[n] in C order, rising, and run int64[n]."""
    depth, rows, width = shape
    place, of = np.empty(0, np.int64), np.empty(0, np.int64)
    for filling in (False, True):
        at = 0
        for row in range(depth * rows):
            face = row // rows in (0, depth - 1) or row % rows in (0, rows - 1)
            for run in range(first[row], first[row + 1]):
                step = 1 if face else max(1, width - 1)
                x = start[run] if face else (0 if start[run] == 0 else width - 1)
                while x < stop[run]:
                    if filling:
                        place[at], of[at] = row * width + x, run
                    at += 1
                    x += step
        if not filling:
            place, of = np.empty(at, np.int64), np.empty(at, np.int64)
    return place, of
