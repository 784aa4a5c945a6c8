"""Marching-cubes areas of a 2×2×2 cube of voxels, at unit spacing.

A cube's code is Σ bit · weight with weights 128, 64, 32, 16, 8, 4, 2, 1 in z, y, x order. The area depends only on how the
set corners lie to one another (on the unset ones where more than four are set), that is on the sorted squared
distances between them: fourteen classes. Areas are irrational, so blocks count cubes per class and multiply once.
"""

from itertools import combinations, product
from math import sqrt

import numpy as np
import numpy.typing as npt

_CORNERS = tuple(product((0, 1), repeat=3))

_AREA_OF_DISTANCES: dict[tuple[int, ...], float] = {
    (): sqrt(3) / 8,
    (1,): sqrt(2) / 2,
    (2,): sqrt(3) / 4,
    (3,): sqrt(3) / 4,
    (1, 1, 2): 1 / 2 + 3 * sqrt(3) / 8,
    (2, 2, 2): 3 * sqrt(3) / 8,
    (1, 2, 3): sqrt(2) / 2 + sqrt(3) / 8,
    (1, 1, 1, 1, 2, 2): 1.0,
    (1, 1, 1, 2, 2, 2): 3 * sqrt(3) / 4,
    (1, 1, 1, 2, 2, 3): sqrt(2) / 2 + sqrt(3) / 2,
    (1, 1, 2, 2, 2, 3): 1 / 2 + sqrt(3) / 2,
    (1, 1, 2, 2, 3, 3): sqrt(2),
    (2, 2, 2, 2, 2, 2): sqrt(3) / 2,
}

CLASSES = 1 + len(_AREA_OF_DISTANCES)
"""Class 0 is no surface: no corner set, or all of them."""

CLASS_AREA: npt.NDArray[np.float64] = np.array([0.0, *_AREA_OF_DISTANCES.values()])
"""Area of a cube of each class, in squared voxels."""


def _class_of(code: int) -> int:
    bits = [(code >> (7 - i)) & 1 for i in range(8)]
    minority = 1 if sum(bits) <= 4 else 0
    chosen = [corner for corner, bit in zip(_CORNERS, bits, strict=True) if bit == minority]
    if not chosen:
        return 0
    distances = sorted(sum((a - b) ** 2 for a, b in zip(p, q, strict=True)) for p, q in combinations(chosen, 2))
    return 1 + list(_AREA_OF_DISTANCES).index(tuple(distances))


CODE_CLASS: npt.NDArray[np.uint8] = np.array([_class_of(code) for code in range(256)], np.uint8)
"""Class of each of the 256 codes."""
