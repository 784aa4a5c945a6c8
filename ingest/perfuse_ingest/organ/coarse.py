"""A coarse volume, with filters and morphology whose sizes do not depend on how it is sampled.

All lengths are in units of the finest axis's voxels; `extent` is the edge of a cube as large as the field of view.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from skimage.morphology import convex_hull_image

Mask = npt.NDArray[np.bool_]
Values = npt.NDArray[np.float32]

SMALLEST_CORNERS = 0.05
"""Share of a plane below which still columns are no corners."""
NARROWEST = 16
"""Planes of fewer rows or columns may hold one value in a corner by chance."""
ROUND = 0.98
"""Corners lie outside of the ellipse inscribed in the plane, shrunk by this."""


class Coarse:
    """Voxels [z, y, x], scaled to mean 0 and spread 1, and their field of view."""

    def __init__(self, voxels: npt.NDArray[Any], spacing: Sequence[float]) -> None:
        self.per_unit = min(spacing) / np.asarray(spacing, np.float64)
        self.plane = field_of_view(voxels)
        seen = voxels[:, self.plane].astype(np.float64)
        self.voxels: Values = ((voxels - seen.mean()) / (seen.std() or 1.0)).astype(np.float32)

    @cached_property
    def field(self) -> Mask:
        """The field of view, bool[z, y, x]."""
        return np.broadcast_to(self.plane, self.voxels.shape).copy()

    @cached_property
    def extent(self) -> float:
        """Edge of a cube of the field's volume."""
        return float((np.count_nonzero(self.field) / np.prod(self.per_unit)) ** (1 / 3))

    @property
    def sizes(self) -> npt.NDArray[np.float64]:
        """Length along each axis."""
        return np.asarray(self.voxels.shape) / self.per_unit

    def blur(self, values: npt.NDArray[Any], inside: Mask, sigma: float) -> Values:
        """Gaussian mean of the values inside a mask; far from it 0."""
        weight = inside.astype(np.float32)
        near = np.maximum(self._gauss(weight, sigma), np.float32(1e-6))
        return np.divide(self._gauss(values * weight, sigma), near, dtype=np.float32)

    def _gauss(self, values: npt.NDArray[Any], sigma: float) -> Values:
        return np.asarray(ndimage.gaussian_filter(values, sigma * self.per_unit, mode="reflect", truncate=3))

    def depth(self, mask: Mask) -> npt.NDArray[np.float64]:
        """Distance of each voxel from what is not in the mask, 0 outside; what lies beyond the volume does not count."""
        if mask.all():
            return np.full(mask.shape, np.inf)
        return np.asarray(ndimage.distance_transform_edt(mask, sampling=1 / self.per_unit))

    def opened(self, mask: Mask, radius: float) -> Mask:
        """What a ball of this radius covers that stays inside the mask; beyond the volume all is as at its faces."""
        around = [(int(np.ceil(radius * n)) + 1,) * 2 for n in self.per_unit]
        wide = np.pad(mask, around, mode="edge")
        covered = self.depth(~(self.depth(wide) > radius)) <= radius
        return np.asarray(covered[tuple(slice(a, -b) for a, b in around)])

    def closed(self, mask: Mask, radius: float) -> Mask:
        """The mask and all gaps that a ball of this radius does not enter."""
        return ~self.opened(~mask, radius)

    def rim(self, plane: Mask, width: float) -> Mask:
        """The voxels of a plane's mask, in all planes, that lie this near to its edge or that of the volume: bool[z, y, x]."""
        padded = np.pad(plane, 1)
        depth = ndimage.distance_transform_edt(padded, sampling=1 / self.per_unit[1:])[1:-1, 1:-1]
        return np.broadcast_to((depth > 0) & (depth <= width), self.voxels.shape)


def field_of_view(voxels: npt.NDArray[Any]) -> Mask:
    """Where in a plane [y, x] anything was reconstructed: all, but for corners that hold one value in all planes.

    A reconstruction is round, so what varies has a convex hull; outside of it, and of the inscribed ellipse, are corners.
    """
    whole = np.ones(voxels.shape[1:], np.bool_)
    varies = (voxels != voxels[:1]).any(axis=0)
    if not varies.any() or min(whole.shape) < NARROWEST:
        return whole
    inside: Mask = convex_hull_image(varies) | (radius_in(whole) <= ROUND)
    corners = voxels[0][~inside]
    if corners.size < SMALLEST_CORNERS * whole.size or (corners != corners[0]).any():
        return whole
    return inside


def radius_in(plane: Mask) -> npt.NDArray[np.float64]:
    """Distance from the middle of the box around a plane's mask, 1 on the ellipse inscribed in that box: [y, x]."""
    offsets = []
    for axis in (0, 1):
        used = np.flatnonzero(plane.any(axis=1 - axis))
        half = (used[-1] - used[0] + 1) / 2
        offsets.append((np.arange(plane.shape[axis]) - (used[0] + used[-1]) / 2) / half)
    return np.asarray(np.hypot(offsets[0][:, None], offsets[1][None]))
