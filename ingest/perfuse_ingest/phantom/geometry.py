"""Where the vessels are, slab by slab: a grown tree, or a mask that somebody gives. Both answer in the same terms."""

from dataclasses import dataclass
from typing import Protocol, TypeVar

import numba
import numpy as np
from numpy.typing import NDArray

from perfuse_ingest.mask_sources import MaskSource
from perfuse_ingest.phantom.tree import Tree

Volume = NDArray[np.float32]
Mask = NDArray[np.bool_]
Value = TypeVar("Value", np.bool_, np.float32)

_WALL = 1.2
"""Thickness of a vessel's wall in voxels."""
_HOLLOW_RADIUS = 2.0
"""Vessels thinner than this, in voxels, show no wall of their own."""
_BLUR = 0.6
"""Half the width, in voxels, of the edge that the scanner makes of a sharp boundary."""
_HALO = 2
"""Planes beyond a slab on which the rendering of a mask depends."""
_MARKED = 128
"""Where a mask holds probabilities, those of a half and more are vessels."""


@dataclass(frozen=True)
class Vessels:
    """The vessels of one slab, each array [z, y, x]."""

    truth: Mask
    """Voxels whose centre lies in a vessel, lumen or wall, and those on its centreline."""
    lumen: Volume
    """Part of each voxel that is lumen, 0–1."""
    wall: Volume
    """Part of each voxel that is wall, 0–1."""


class Geometry(Protocol):
    """The vessels of a volume. A voxel's answer does not depend on the slab that it is asked with."""

    shape_zyx: tuple[int, int, int]

    def slab(self, z_begin: int, z_end: int) -> Vessels:
        """The vessels in the planes z_begin … z_end − 1."""
        ...


class TreeGeometry:
    """The tubes of a tree."""

    def __init__(self, tree: Tree, shape_zyx: tuple[int, int, int]) -> None:
        self.shape_zyx = shape_zyx
        self._cones = tree.segments()
        reach = np.maximum(self._cones[:, 3], self._cones[:, 7]) + _BLUR
        self._lowest = np.minimum(self._cones[:, 0], self._cones[:, 4]) - reach
        self._highest = np.maximum(self._cones[:, 0], self._cones[:, 4]) + reach

    def slab(self, z_begin: int, z_end: int) -> Vessels:
        """The vessels in the planes z_begin … z_end − 1."""
        shape = (z_end - z_begin, *self.shape_zyx[1:])
        depth, radius = np.full(shape, -_BLUR, np.float32), np.zeros(shape, np.float32)
        near = self._cones[(self._lowest < z_end) & (self._highest >= z_begin)]
        _fill_cones(near, z_begin, depth, radius)
        truth = depth >= 0
        _mark_centrelines(near, z_begin, truth)
        lumen, wall = _parts(depth, radius)
        return Vessels(truth, lumen, wall)


class MaskGeometry:
    """The vessels of a given mask, whose truth is the mask itself."""

    def __init__(self, mask: MaskSource) -> None:
        self.shape_zyx = mask.shape_zyx
        self._mask = mask

    def slab(self, z_begin: int, z_end: int) -> Vessels:
        """The vessels in the planes z_begin … z_end − 1."""
        wide = self._read_wide(z_begin, z_end)
        deep = _erode(wide)
        filled = _blur(wide.astype(np.float32))
        core = np.where(deep, _blur(deep.astype(np.float32)), np.float32(0))
        inner = (slice(_HALO, -_HALO),) * 3
        wall = np.where(_dilate(deep), filled - core, 0)[inner]
        return Vessels(wide[inner], filled[inner] - wall, wall)

    def _read_wide(self, z_begin: int, z_end: int) -> Mask:
        """The slab with a halo on all six sides; nothing lies beyond the volume."""
        low, high = max(0, z_begin - _HALO), min(self.shape_zyx[0], z_end + _HALO)
        beyond = (low - (z_begin - _HALO), z_end + _HALO - high)
        return np.pad(self._mask.planes(low, high) >= _MARKED, (beyond, (_HALO, _HALO), (_HALO, _HALO)))


def _parts(depth: Volume, radius: Volume) -> tuple[Volume, Volume]:
    """Lumen and wall, 0–1, from how deep a voxel lies in its vessel and the radius of that there."""
    filled = np.clip((depth + _BLUR) / (2 * _BLUR), 0, 1)
    core = np.clip(depth - _WALL + 0.5, 0, 1)
    hollow = np.clip(radius - _HOLLOW_RADIUS, 0, 1)
    wall = hollow * (filled - np.minimum(filled, core))
    return filled - wall, wall


def _shifted(volume: NDArray[Value], axis: int) -> tuple[NDArray[Value], NDArray[Value]]:
    """The neighbours before and after along an axis; zero beyond the edges."""
    padded = np.pad(volume, [(1, 1) if a == axis else (0, 0) for a in range(3)])
    count = volume.shape[axis]
    return padded.take(range(count), axis), padded.take(range(2, count + 2), axis)


def _erode(mask: Mask) -> Mask:
    deep = mask.copy()
    for axis in range(3):
        before, after = _shifted(mask, axis)
        deep &= before & after
    return deep


def _dilate(mask: Mask) -> Mask:
    """All 26 neighbours as well."""
    for axis in range(3):
        before, after = _shifted(mask, axis)
        mask = mask | before | after
    return mask


def _blur(volume: Volume) -> Volume:
    for axis in range(3):
        before, after = _shifted(volume, axis)
        volume = np.float32(0.6) * volume + np.float32(0.2) * (before + after)
    return volume


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _fill_cones(cones: NDArray[np.float64], z_begin: int, depth: Volume, radius: Volume) -> None:
    """For each voxel the cone that it lies deepest in: that depth, and the radius there."""
    nz, ny, nx = depth.shape
    for n in range(cones.shape[0]):
        az, ay, ax, ar, bz, by, bx, br = cones[n]
        dz, dy, dx = bz - az, by - ay, bx - ax
        squared = max(dz * dz + dy * dy + dx * dx, 1e-12)
        reach = max(ar, br) + _BLUR
        z_low, z_high = (
            max(z_begin, int(np.floor(min(az, bz) - reach))),
            min(z_begin + nz, int(max(az, bz) + reach) + 2),
        )
        y_low, y_high = max(0, int(np.floor(min(ay, by) - reach))), min(ny, int(max(ay, by) + reach) + 2)
        x_low, x_high = max(0, int(np.floor(min(ax, bx) - reach))), min(nx, int(max(ax, bx) + reach) + 2)
        for z in range(z_low, z_high):
            for y in range(y_low, y_high):
                for x in range(x_low, x_high):
                    along = ((z - az) * dz + (y - ay) * dy + (x - ax) * dx) / squared
                    along = min(max(along, 0.0), 1.0)
                    away = (z - az - along * dz) ** 2 + (y - ay - along * dy) ** 2 + (x - ax - along * dx) ** 2
                    here = ar + along * (br - ar)
                    inside = np.float32(here - np.sqrt(away))
                    if inside > depth[z - z_begin, y, x]:
                        depth[z - z_begin, y, x] = inside
                        radius[z - z_begin, y, x] = here


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _mark_centrelines(cones: NDArray[np.float64], z_begin: int, truth: Mask) -> None:
    """Marks every voxel that an axis passes; steps of half a voxel at most leave no gap between 26-neighbours."""
    nz = truth.shape[0]
    for n in range(cones.shape[0]):
        az, ay, ax, _, bz, by, bx, _ = cones[n]
        steps = int(np.ceil(2 * max(abs(bz - az), abs(by - ay), abs(bx - ax)))) + 1
        for k in range(steps + 1):
            t = k / steps
            z = int(np.floor(az + t * (bz - az) + 0.5)) - z_begin
            if 0 <= z < nz:
                truth[z, int(np.floor(ay + t * (by - ay) + 0.5)), int(np.floor(ax + t * (bx - ax) + 0.5))] = True
