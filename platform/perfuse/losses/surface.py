"""Surface dice at tolerance 0, differentiable.

A cube of 2×2×2 voxels that are vessel with chances p₁ … p₈, independently, has one of 256 codes; its expected area is the mean
of the metric's areas over them, a polynomial in the chances. A cube is a pair of squares of 16 patterns each, so that the mean is
a product: chances of 16 patterns, a 16 × 16 table of areas, chances of 16 patterns. So is a square a pair of rows of 4.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import max_pool3d

from perfuse.losses.region import share
from perfuse.metrics.areas import CLASSES, CODE_CLASS, area

AREAS = area(np.eye(CLASSES, dtype=np.int64))[CODE_CLASS].reshape(16, 16)
"""Area of a cube by the patterns of its two squares, in squared voxels."""


def surface_dice(logits: Tensor, target: Tensor, known: Tensor, smooth: float = 1.0) -> Tensor:
    """1 − (Σ Aₜ Sₚ + Aₚ Sₜ + s) / (Σ Aₜ + Aₚ + s), over the cubes of the batch whose voxels are all known; s = smooth.

    A is the expected area of a cube, S the chance that it is surface, of the target (t) and of the prediction (p).
    With several planes, cubes of neighbouring ones, as a volume of cubic voxels; with one, squares, as if the next plane were
    the same. Where all chances are 0 or 1 and s = 0, this is 1 − `SurfaceCounts.surface_dice` (0 where that is undefined).
    A surface has no inside: a prediction and its inverse cost the same. Combine with a loss that tells them apart, as `bce`.
    The metric is of Nikolov et al. 2018, "Deep learning to achieve clinically applicable segmentation of head and neck anatomy".
    """
    counted = 1 - max_pool3d(1 - known, (min(known.shape[1], 2), 2, 2), stride=1)
    area_t, surface_t = _cubes(target)
    area_p, surface_p = _cubes(logits.sigmoid())
    wrong = area_t * (1 - surface_p) + area_p * (1 - surface_t)
    return share(wrong * counted, (area_t + area_p) * counted, smooth)


def _cubes(chance: Tensor) -> tuple[Tensor, Tensor]:
    """Expected area of cubes, and the chance that each is surface: float[b, planes, h, w] → float[b, planes − 1 or 1, h − 1, w − 1]."""
    table = torch.from_numpy(AREAS).to(chance)
    rows = _together(*_ends(torch.stack([1 - chance, chance]), -1))
    if chance.shape[1] == 1:
        first, second = _ends(rows, -2)
        table = table.diagonal().reshape(4, 4)
    else:
        first, second = _ends(_together(*_ends(rows, -2)), 2)
    expected = (first * torch.tensordot(table, second, 1)).sum(0)
    return expected, 1 - first[0] * second[0] - first[-1] * second[-1]


def _together(one: Tensor, other: Tensor) -> Tensor:
    """Chances of each pair of patterns: [m, …] and [m, …] → [m², …]."""
    return (one[:, None] * other[None]).flatten(0, 1)


def _ends(patterns: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """All but the last, and all but the first."""
    inner = patterns.shape[axis] - 1
    return patterns.narrow(axis, 0, inner), patterns.narrow(axis, 1, inner)
