"""Surface dice at any tolerance and spacing, exact over blocks whose halo is as wide as the tolerance."""

import math
from dataclasses import dataclass, field
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
from scipy import ndimage

from perfuse.geometry import Index3, Spacing, index3
from perfuse.metrics.normals import areas_at
from perfuse.metrics.overlap import check_shapes, mask_bytes

Counts = npt.NDArray[np.int64]
TRIVIAL = (0, 255)
"""Codes of cubes that are no surface."""


@dataclass(frozen=True)
class NearCounts:
    """Surface cubes by code, int64[256]; counts of disjoint blocks of cubes add, exactly."""

    truth: Counts = field(default_factory=lambda: np.zeros(256, np.int64))
    predicted: Counts = field(default_factory=lambda: np.zeros(256, np.int64))
    truth_near: Counts = field(default_factory=lambda: np.zeros(256, np.int64))
    """Those of the truth no farther than the tolerance from a surface cube of the prediction."""
    predicted_near: Counts = field(default_factory=lambda: np.zeros(256, np.int64))
    """Those of the prediction no farther than the tolerance from one of the truth."""

    def __add__(self, other: "NearCounts") -> "NearCounts":
        return NearCounts(
            self.truth + other.truth,
            self.predicted + other.predicted,
            self.truth_near + other.truth_near,
            self.predicted_near + other.predicted_near,
        )

    def surface_dice(self, spacing: Spacing) -> float:
        """Area of both surfaces that is near the other, over their whole area; NaN when neither mask has a surface."""
        areas = areas_at(spacing)
        whole = float((self.truth + self.predicted) @ areas)
        return float((self.truth_near + self.predicted_near) @ areas) / whole if whole else math.nan


def reach(tolerance: float, spacing: Spacing) -> Index3:
    """Cubes that a block must see around itself, along each axis."""
    return index3([math.ceil(tolerance / s) for s in spacing])


def near_counts(
    truth: npt.NDArray[np.bool_],
    predicted: npt.NDArray[np.bool_],
    known: npt.NDArray[np.bool_],
    owned: tuple[slice, slice, slice],
    tolerance: float,
    spacing: Spacing,
) -> NearCounts:
    """Count the surface cubes of a block, and those near the other surface.

    truth, predicted, known: bool[z, y, x] of one shape (n + 1 voxels give n cubes), as `read_cubes` cuts them of a block with
    a halo of `reach`. owned: which of the cubes are counted. tolerance: in the unit of `spacing`, Euclidean, from a cube's middle to
    another's. Cubes with a voxel that is not known are no surface. Raises ShapeMismatchError when the shapes differ.
    After Nikolov et al. 2018, "Deep learning to achieve clinically applicable segmentation of head and neck anatomy".
    """
    check_shapes(truth, predicted, known)
    whole = _codes(mask_bytes(known)) == 255
    codes = [np.where(whole, _codes(mask_bytes(mask)), np.uint8(0)) for mask in (truth, predicted)]
    surfaces = [~np.isin(code, TRIVIAL) for code in codes]
    found = [_by_code(code[owned], surface[owned]) for code, surface in zip(codes, surfaces, strict=True)]
    for code, surface, other in ((codes[0], *surfaces), (codes[1], *surfaces[::-1])):
        near = _near(other, tolerance, spacing)[owned]
        found.append(_by_code(code[owned], surface[owned] & near))
    return NearCounts(*found)


def _near(surface: npt.NDArray[np.bool_], tolerance: float, spacing: Spacing) -> npt.NDArray[np.bool_]:
    if not surface.any():
        return np.zeros(surface.shape, np.bool_)
    return np.asarray(ndimage.distance_transform_edt(~surface, sampling=spacing) <= tolerance)


def _by_code(codes: npt.NDArray[np.uint8], where: npt.NDArray[np.bool_]) -> Counts:
    return np.bincount(codes[where], minlength=256)


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _codes(mask: Any) -> Any:
    """The code of each cube, uint8[z − 1, y − 1, x − 1]; the first voxel in z, y, x order is the highest bit."""
    depth, rows, width = mask.shape
    codes = np.empty((depth - 1, rows - 1, width - 1), np.uint8)
    for z in range(depth - 1):
        for y in range(rows - 1):
            for x in range(width - 1):
                code = np.uint8(0)
                for n in range(8):
                    code = np.uint8(code << np.uint8(1)) | mask[z + n // 4, y + n // 2 % 2, x + n % 2]
                codes[z, y, x] = code
    return codes
