"""Losses that look at the boundary of the target, where it crosses the level `iso`.

A soft target is compared with `iso` only to find where its boundary is; as a target it stays soft.
"""

import edt
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from perfuse.losses.pixelwise import mean
from perfuse.losses.region import share

Plane = npt.NDArray[np.bool_]


def inner_boundary(vessel: Tensor, known: Tensor, *, volumetric: bool = False) -> Tensor:
    """Vessel pixels with known background among their 4 neighbours in the plane; volumetric: their 6 in the panel.

    vessel, known: bool[b, planes, h, w] → bool of the same shape. What lies beyond the crop is no background.
    """
    background = known & ~vessel
    beside = torch.zeros_like(vessel)
    for axis in (1, 2, 3) if volumetric else (2, 3):
        inner = vessel.shape[axis] - 1
        beside.narrow(axis, 1, inner).logical_or_(background.narrow(axis, 0, inner))
        beside.narrow(axis, 0, inner).logical_or_(background.narrow(axis, 1, inner))
    return vessel & beside


def boundary_bce(
    logits: Tensor, target: Tensor, known: Tensor, boundary: float = 1.0, volumetric: bool = False, iso: float = 0.5
) -> Tensor:
    """Mean binary cross entropy over known pixels, those of the inner boundary weighted 1 + boundary, others 1.

    Divided by the sum of the weights, so that its size does not depend on the length of the boundary.
    """
    each = binary_cross_entropy_with_logits(logits, target, reduction="none")
    return mean(each, boundary_weight(target, known, boundary, volumetric, iso))


def boundary_weight(
    target: Tensor, known: Tensor, boundary: float = 1.0, volumetric: bool = False, iso: float = 0.5
) -> Tensor:
    """1 + boundary on the inner boundary, 1 on other known pixels, else 0."""
    return known * (1 + boundary * inner_boundary(target >= iso, known.bool(), volumetric=volumetric))


def boundary_dou(logits: Tensor, target: Tensor, known: Tensor, iso: float = 0.5, smooth: float = 1.0) -> Tensor:
    """Σ (p − t)² / (Σ p² + Σ t² − (1 + α) Σ p t + s), s = smooth: difference over the union less a share α of what is common.

    α = 1 − 2 C / S, brought into 0 … 0.8, for C pixels of inner boundary among the S pixels of vessel in the batch: the larger
    the vessels, the more the loss looks at their boundary alone. Where all are thin it is 1 − IoU.
    After Sun et al. 2023, "Boundary difference over union loss for medical image segmentation".
    """
    vessel = (target >= iso) & known.bool()
    length = inner_boundary(vessel, known.bool()).sum(dtype=logits.dtype)
    alpha = (1 - 2 * length / vessel.sum().clamp(min=1)).clamp(0, 0.8)
    p, t = logits.sigmoid() * known, target * known
    return share((p - t) ** 2, p**2 + t**2 - (1 + alpha) * p * t, smooth)


def signed_distance(logits: Tensor, target: Tensor, known: Tensor, iso: float = 0.5) -> Tensor:
    """Mean of p · φ over known pixels, φ the signed distance of the target in its plane, in pixels.

    φ is the distance to the nearest known vessel pixel, or minus that to the nearest known background pixel inside a vessel.
    A plane that holds only one of them has no boundary and adds 0: combine with a loss of regions. May be negative.
    After Kervadec et al. 2019, "Boundary loss for highly unbalanced segmentation".
    """
    vessel = target >= iso
    planes = (part.flatten(0, 1).cpu().numpy() for part in (vessel & known.bool(), ~vessel & known.bool()))
    distance = np.stack([_signed_distance(*pair) for pair in zip(*planes, strict=True)])
    return mean(logits.sigmoid() * torch.from_numpy(distance).to(logits).view_as(logits), known)


def _signed_distance(vessel: Plane, background: Plane) -> npt.NDArray[np.float32]:
    if not (vessel.any() and background.any()):
        return np.zeros(vessel.shape, np.float32)
    distance: npt.NDArray[np.float32] = np.where(vessel, -edt.edt(~background), edt.edt(~vessel))
    return distance
