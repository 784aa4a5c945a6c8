"""Shift, scale, rotation and deformation of crops, in one resampling."""

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from perfuse.augmentation.draws import Bools, Draws, Integers, Reals
from perfuse.augmentation.turns import Crops

if TYPE_CHECKING:
    from perfuse.recipes import Augmentation
    from perfuse.recipes.schema import Deformation

MOST_CELLS = 8
"""Between the knots of a displacement, along an edge."""
TOLERANCE = 1e-3
"""Share of an unknown pixel, or way beyond the outermost pixels in pixels, that a known pixel may have: rounding."""


def warped(crops: Crops, settings: "Augmentation", draws: Draws) -> Crops:
    """Those crops that drew a warp or a deformation, resampled once; the others keep their bits."""
    warp, deformation = settings.warp, settings.deformation
    warping, deforming = draws.chosen(warp.chance), draws.chosen(deformation.chance)
    scale = np.exp(draws.uniform(*np.log(warp.scale)))
    angle = draws.uniform(-warp.rotate, warp.rotate)
    shift = draws.uniform(-warp.shift, warp.shift, 2)
    kinds = draws.integers(len(deformation.kinds))
    knots = draws.uniform(-1, 1, 2, *[cells(deformation.strength) + 3] * 2)
    at = np.flatnonzero(warping | deforming)
    if not len(at):
        return crops
    index = torch.from_numpy(at).to(crops[0].device)
    images, targets, knowns = (part[index] for part in crops)
    still = ~warping[at]
    scale[at[still]], angle[at[still]], shift[at[still]] = 1, 0, 0
    bent = places(images).repeat(len(at), 1, 1)
    _deform(bent, deforming[at], deformation, kinds[at], knots[at])
    moved = resampled(images, targets, knowns, affine(scale[at], angle[at], shift[at], bent))
    images, targets, knowns = (old.index_copy(0, index, new) for old, new in zip(crops, moved, strict=True))
    return images, targets, knowns


def resampled(images: Tensor, targets: Tensor, knowns: Tensor, sources: Tensor) -> Crops:
    """Crops whose pixels are taken from `sources`: complex64[b, n, n], column + i · row, −1 … 1 between the edges of a crop.

    Images are bilinear, mirrored beyond their edges. Targets are bilinear, too; where no soft pixel (0 < p < 1) has a
    share, the result is then cut at ½, so that a mask stays a mask whose surface lies where the image's does (the
    nearest pixel's value would move it by up to half a pixel), and a soft label stays soft; in labels that mix both, each
    pixel as its kind asks. Known is what has only known pixels of the crop itself as sources.
    """
    soft = ((targets > 0) & (targets < 1)).to(targets)
    parts = torch.cat((images, targets, soft, knowns), 1)
    parts = grid_sample(
        parts, torch.view_as_real(sources), mode="bilinear", padding_mode="reflection", align_corners=False
    )
    images, targets, soft, knowns = torch.split(parts, [p.shape[1] for p in (images, targets, soft, knowns)], 1)
    targets = torch.where(soft > 0, targets.clamp(0, 1), (targets >= 0.5).to(targets))
    outermost = 1 - (1 - 2 * TOLERANCE) / images.shape[-1]
    inside = (sources.real.abs() <= outermost) & (sources.imag.abs() <= outermost)
    return images, targets, ((knowns >= 1 - TOLERANCE) & inside[:, None]).to(knowns)


def affine(scale: Reals, angle: Reals, shift: Reals, at: Tensor) -> Tensor:
    """Sources, as `resampled` takes them, of b crops that are scaled and turned about their middle, then shifted.

    at: complex64[b or 1, n, n], as of `places`, or deformed before: what does not fold then does not fold when enlarged.
    scale: factors by which things become larger; angle: degrees, counterclockwise; shift: [b, 2], right and down, in crops.
    """
    factor = np.exp(1j * np.radians(angle)) / scale
    offset = -2 * factor * (shift[:, 0] + 1j * shift[:, 1])
    return torch.addcmul(_complex(offset, at)[:, None, None], _complex(factor, at)[:, None, None], at)


def cells(strength: float) -> int:
    """So few cells that no displacement of knots by up to `strength` crops folds a crop.

    After Choi and Lee 2000, "Injectivity conditions of 2D and 3D uniform cubic B-spline functions": knots of a cubic
    spline may move by 0.48 cells. Those of a piecewise linear one may move by half a cell.
    """
    return min(MOST_CELLS, int(0.4 / strength))


def elastic(knots: Reals, strength: float, like: Tensor) -> Tensor:
    """Displacements, complex64[b, n, n], in crops: cubic B-splines through knots of −1 … 1, [b, 2, cells + 3, cells + 3].

    After Rueckert et al. 1999, "Nonrigid registration using free-form deformations".
    """
    spline = _complex(_spline(like.shape[-1], cells(strength), 3), like, torch.complex128)
    field = spline @ _complex(strength * (knots[:, 0] + 1j * knots[:, 1]), like, torch.complex128) @ spline.T
    return field.to(torch.complex64)  # the same bits in whichever order products were added up


def grid(knots: Reals, strength: float, like: Tensor) -> Tensor:
    """Displacements as of `elastic`: columns and rows each stretched piecewise; the first row of knots, without two, counts."""
    lines = strength * knots[:, :, 0, :-2] @ _spline(like.shape[-1], cells(strength), 1).T
    return _complex(lines[:, 0], like)[:, None, :] + _complex(1j * lines[:, 1], like)[:, :, None]


def optical(knots: Reals, strength: float, like: Tensor) -> Tensor:
    """Displacements as of `elastic`, along rays from the middle, with their third power; the first knot says how far.

    The corners move farthest, by `strength` at most: barrels where knots are positive, pincushions where negative.
    """
    place = places(like)
    corner = np.sqrt(2)
    return _complex(strength * knots[:, 0, 0, 0] / corner**3, like)[:, None, None] * (place * place.abs().square())


KINDS = {"elastic": elastic, "grid": grid, "optical": optical}


def _deform(at: Tensor, deforming: Bools, settings: "Deformation", kinds: Integers, knots: Reals) -> None:
    for kind, name in enumerate(settings.kinds):
        drew = np.flatnonzero(deforming & (kinds == kind))
        if len(drew):
            index = torch.from_numpy(drew).to(at.device)
            at[index] += 2 * KINDS[name](knots[drew], settings.strength, at)


def places(like: Tensor) -> Tensor:
    """Middles of pixels, complex64[1, n, n]: column + i · row, each between −1 and 1."""
    n = like.shape[-1]
    middles = (2 * np.arange(n) + 1) / n - 1
    return _complex(middles[None, None, :] + 1j * middles[None, :, None], like)


def _complex(values: npt.NDArray[np.number[Any]], like: Tensor, dtype: torch.dtype = torch.complex64) -> Tensor:
    return torch.as_tensor(values, dtype=dtype, device=like.device)


@lru_cache(maxsize=16)
def _spline(n: int, count: int, degree: int) -> Reals:
    """Shares [n, count + degree] of the knots in each pixel of an edge of so many cells: uniform B-splines of degree 1 or 3."""
    cell, t = np.divmod((np.arange(n) + 0.5) * count / n, 1)
    if degree == 1:
        shares = [1 - t, t]
    else:
        shares = [(1 - t) ** 3 / 6, (3 * t**3 - 6 * t**2 + 4) / 6, (-3 * t**3 + 3 * t**2 + 3 * t + 1) / 6, t**3 / 6]
    spline = np.zeros((n, count + degree))
    for knot, share in enumerate(shares):
        spline[np.arange(n), cell.astype(int) + knot] = share
    return spline
