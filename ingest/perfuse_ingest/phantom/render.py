"""Turns geometry into HiP-CT-like slices: surroundings, tissue, vessels, drift, rings and noise.

Each slice is a pure function of (seed, z, the vessels in it). Vessels are hollow where they are wide; in some regions
they are collapsed, and their contrast fades and turns over. Blobs in the tissue have the levels of lumens and walls.
"""

import numba
import numpy as np
from numpy.typing import NDArray

from perfuse_ingest.phantom import levels
from perfuse_ingest.phantom.geometry import Vessels
from perfuse_ingest.phantom.lattice import CellField, Plane, SplineField, Stream, WhiteNoise, generator
from perfuse_ingest.phantom.organ import Envelope

_LUMP_VOXELS = (6.0, 36.0)
"""Smallest and largest spacing of agar lumps."""
_GAP_SHARE = 0.35
"""Part of the lumps' lattice that holds fluid instead."""
_SLIVER_SHARE = 0.03
"""Part of the lumps' faces that shine."""
_DEEP_INSIDE = 1e6
"""Depth of tissue that has no surface."""


class Renderer:
    """Renders the slices of one phantom. Without an envelope the whole field of view is tissue."""

    def __init__(self, shape_zyx: tuple[int, int, int], seed: int, envelope: Envelope | None) -> None:
        plane, extent = shape_zyx[1:], max(shape_zyx)
        self._plane_shape, self._envelope, self._seed = plane, envelope, seed
        self._noise = WhiteNoise(seed, levels.NOISE_NEIGHBOUR, plane)
        self._drift = SplineField(seed, Stream.DRIFT, float(np.clip(extent / 8, 8, 160)), plane)
        self._coarse = SplineField(seed, Stream.COARSE, 9.0, plane)
        self._fine = SplineField(seed, Stream.FINE, 4.0, plane)
        self._blobs = SplineField(seed, Stream.BLOBS, 9.0, plane)
        self._collapse = SplineField(seed, Stream.COLLAPSE, float(np.clip(extent / 10, 6, 40)), plane)
        self._lump_spacing = float(np.clip(min(shape_zyx) / 5, *_LUMP_VOXELS))
        self._lumps = CellField(seed, self._lump_spacing, plane)
        self._rings = _ring_profile(seed, plane)

    def slice(self, z: int, vessels: Vessels, index: int) -> tuple[NDArray[np.uint16], int]:
        """The slice at z, uint16[y, x], and how many of its voxels are organ; `index` is its place in `vessels`."""
        depth = self._depth(z)
        grey = self._noise.slice(z) * np.float32(levels.NOISE)
        grey += np.float32(levels.DRIFT) * self._drift.slice(z)
        _add_rings(self._rings, grey)
        surroundings = np.zeros(self._plane_shape, np.float32)
        _draw_lumps(self._lumps.around(z), z, self._lump_spacing, depth, surroundings)
        texture = levels.TEXTURE_COARSE * self._coarse.slice(z) + levels.TEXTURE_FINE * self._fine.slice(z)
        surroundings += texture / 2
        tissue = levels.TISSUE + texture + levels.BLOB_CONTRAST * _blobs(self._blobs.slice(z))
        lumen, wall = vessels.lumen[index], vessels.wall[index]
        inside = np.clip(depth / 2 + 0.5, 0, 1)
        body = surroundings + inside * (tissue - surroundings)
        body *= 1 - lumen - wall
        body += lumen * (levels.TISSUE - levels.LUMEN_CONTRAST * _openness(self._collapse.slice(z)))
        body += wall * (levels.TISSUE + levels.WALL_CONTRAST)
        grey += body
        return np.clip(np.rint(grey), 0, 65535).astype(np.uint16), int(np.count_nonzero(depth >= 0))

    def _depth(self, z: int) -> Plane:
        if self._envelope is None:
            return np.full(self._plane_shape, _DEEP_INSIDE, np.float32)
        return self._envelope.slice_depth(z, self._plane_shape)


def _smoothstep(field: Plane, low: float, high: float) -> Plane:
    t = np.clip((field - np.float32(low)) / np.float32(high - low), 0, 1)
    return np.asarray(t * t * (3 - 2 * t), np.float32)


def _openness(collapse: Plane) -> Plane:
    """1 where vessels stand open; falls through 0 to −0.6 (brighter than tissue) where they are collapsed."""
    return np.float32(1) - np.float32(1.6) * _smoothstep(collapse, 1.1, 2.0)


def _blobs(field: Plane) -> Plane:
    """−1 in the middle of dark blobs, 0.5 in bright ones, 0 between."""
    return np.float32(0.5) * _smoothstep(field, 1.4, 3.0) - _smoothstep(-field, 1.2, 2.4)


def _ring_profile(seed: int, plane_shape: tuple[int, int]) -> Plane:
    """The offset at each whole distance from the rotation axis, which stands in the middle of the plane."""
    radii = int(np.hypot(*plane_shape) / 2) + 2
    return np.float32(levels.RING) * generator(seed, Stream.RINGS).standard_normal(radii, dtype=np.float32)


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _add_rings(profile: Plane, grey: Plane) -> None:
    centre_y, centre_x = (grey.shape[0] - 1) / 2, (grey.shape[1] - 1) / 2
    for y in range(grey.shape[0]):
        for x in range(grey.shape[1]):
            away = np.sqrt((y - centre_y) ** 2 + (x - centre_x) ** 2)
            inner = int(away)
            grey[y, x] += profile[inner] + (away - inner) * (profile[inner + 1] - profile[inner])


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _draw_lumps(cells: NDArray[np.float32], z: int, spacing: float, depth: Plane, out: Plane) -> None:
    """Agar lumps and fluid outside of the organ; neighbours blend over a voxel or two, a few faces shine."""
    middle = z // spacing
    for y in range(out.shape[0]):
        for x in range(out.shape[1]):
            if depth[y, x] > 3:
                continue
            cell_y, cell_x = int(y // spacing), int(x // spacing)
            first, second = 1e12, 1e12
            grey, other, face, other_face = 0.0, 0.0, 0.0, 0.0
            for k in range(3):
                for j in range(cell_y, cell_y + 3):
                    for i in range(cell_x, cell_x + 3):
                        cell = cells[k, j, i]
                        away = (
                            ((middle + k - 1 + cell[0]) * spacing - z) ** 2
                            + ((j - 1 + cell[1]) * spacing - y) ** 2
                            + ((i - 1 + cell[2]) * spacing - x) ** 2
                        )
                        if away < first:
                            second, other, other_face = first, grey, face
                            first, grey, face = away, _lump_level(cell[3], cell[4]), cell[4]
                        elif away < second:
                            second, other, other_face = away, _lump_level(cell[3], cell[4]), cell[4]
            gap = np.sqrt(second) - np.sqrt(first)
            out[y, x] = grey + (other - grey) * max(0.0, 0.5 - gap / 4)
            if gap < 2 and (1000 * (face + other_face)) % 1.0 < _SLIVER_SHARE and min(grey, other) > levels.FLUID:
                out[y, x] += levels.SLIVER * (1 - gap / 2)


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _lump_level(kind: float, shade: float) -> float:
    if kind < _GAP_SHARE:
        return levels.FLUID
    return levels.AGAR + levels.AGAR_SPREAD * (2 * shade - 1) * 1.7
