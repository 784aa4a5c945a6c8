"""Random fields as pure functions of (seed, stream, z): no state runs from slice to slice, so a slab starts anywhere.

Random numbers are drawn per lattice plane from Philox, keyed by (seed, stream, plane); a slice needs only the planes
near it, so memory does not depend on the depth of the volume.
"""

from enum import IntEnum
from functools import lru_cache

import numba
import numpy as np
from numpy.typing import NDArray

Plane = NDArray[np.float32]

_MARGIN = 4
"""Lattice planes start before the volume; keys are shifted by this so that none is negative."""

_BSPLINE_STD = (151 / 315) ** 1.5
"""Standard deviation of a 3D cubic B-spline over unit white noise: ∫B₃² = 151/315 along each axis."""


class Stream(IntEnum):
    """What a sequence of random numbers is for; two streams of one seed are independent."""

    ENVELOPE = 1
    TERMINALS = 2
    BRANCHES = 3
    NOISE = 4
    DRIFT = 5
    COARSE = 6
    FINE = 7
    BLOBS = 8
    COLLAPSE = 9
    CELLS = 10
    RINGS = 11


def generator(seed: int, stream: Stream, plane: int = 0) -> np.random.Generator:
    """The random numbers of one plane of one stream."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, stream, plane + _MARGIN])))


class SplineField:
    """Smooth noise of zero mean and unit variance whose features are about `spacing` voxels wide."""

    def __init__(self, seed: int, stream: Stream, spacing: float, plane_shape: tuple[int, int]) -> None:
        self._seed, self._stream, self._spacing, self._plane_shape = seed, stream, spacing, plane_shape
        self._nodes_yx = tuple(int(n / spacing) + 4 for n in plane_shape)
        self._nodes = lru_cache(maxsize=4)(self._draw)

    def _draw(self, plane: int) -> Plane:
        return generator(self._seed, self._stream, plane).standard_normal(self._nodes_yx, dtype=np.float32)

    def slice(self, z: int) -> Plane:
        """float32[y, x] at depth z."""
        first, t = divmod(z / self._spacing, 1.0)
        nodes = sum(w * self._nodes(int(first) + i) for i, w in enumerate(_bspline_weights(t)))
        field = np.empty(self._plane_shape, np.float32)
        _upsample(np.asarray(nodes / _BSPLINE_STD, np.float32), self._spacing, field)
        return field


class WhiteNoise:
    """Noise of unit variance that correlates with its nearest neighbours along z, y and x alike."""

    def __init__(self, seed: int, neighbour: float, plane_shape: tuple[int, int]) -> None:
        self._seed, self._neighbour, self._plane_shape = seed, np.float32(neighbour), plane_shape
        self._smoothed = lru_cache(maxsize=3)(self._draw)

    def _draw(self, z: int) -> Plane:
        a, (ny, nx) = self._neighbour, self._plane_shape
        white = generator(self._seed, Stream.NOISE, z).standard_normal((ny + 2, nx + 2), dtype=np.float32)
        rows = white[1:-1] + a * (white[:-2] + white[2:])
        return np.asarray(rows[:, 1:-1] + a * (rows[:, :-2] + rows[:, 2:]), np.float32)

    def slice(self, z: int) -> Plane:
        """float32[y, x] at depth z."""
        a = self._neighbour
        total = self._smoothed(z) + a * (self._smoothed(z - 1) + self._smoothed(z + 1))
        return np.asarray(total / np.float32((1 + 2 * float(a) ** 2) ** 1.5), np.float32)


class CellField:
    """Angular lumps: Voronoi cells of a jittered lattice, each with random numbers of its own (Worley 1996)."""

    def __init__(self, seed: int, spacing: float, plane_shape: tuple[int, int]) -> None:
        self._seed, self._spacing = seed, spacing
        self._nodes_yx = tuple(int(n / spacing) + 3 for n in plane_shape)
        self._plane = lru_cache(maxsize=3)(self._draw)

    def _draw(self, plane: int) -> Plane:
        return generator(self._seed, Stream.CELLS, plane).random((*self._nodes_yx, 5), dtype=np.float32)

    def around(self, z: int) -> NDArray[np.float32]:
        """float32[3, cells y, cells x, 5]: jitter z, y, x and two random numbers of the cells around depth z.

        Entry [1, j + 1, i + 1] is the cell that holds the voxels from (j, i) · spacing in the plane of z.
        """
        middle = int(z // self._spacing)
        return np.stack([self._plane(k) for k in (middle - 1, middle, middle + 1)])


def _bspline_weights(t: float) -> tuple[float, float, float, float]:
    return (1 - t) ** 3 / 6, (3 * t**3 - 6 * t**2 + 4) / 6, (-3 * t**3 + 3 * t**2 + 3 * t + 1) / 6, t**3 / 6


_weights = numba.njit(cache=True)(_bspline_weights)


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _upsample(nodes: Plane, spacing: float, out: Plane) -> None:
    row = np.empty(nodes.shape[1], np.float32)
    for y in range(out.shape[0]):
        j = int(y / spacing)
        w = _weights(y / spacing - j)
        for i in range(nodes.shape[1]):
            row[i] = w[0] * nodes[j, i] + w[1] * nodes[j + 1, i] + w[2] * nodes[j + 2, i] + w[3] * nodes[j + 3, i]
        for x in range(out.shape[1]):
            i = int(x / spacing)
            v = _weights(x / spacing - i)
            out[y, x] = v[0] * row[i] + v[1] * row[i + 1] + v[2] * row[i + 2] + v[3] * row[i + 3]
