"""Marching-cubes areas of a 2×2×2 cube of voxels, at unit spacing.

A cube's code is Σ bit · weight with weights 128, 64, 32, 16, 8, 4, 2, 1 in z, y, x order. The area depends only on how the
set corners lie to one another (on the unset ones where more than four are set), that is on the sorted squared
distances between them: fourteen classes. Every area is (a + b√2 + c√3) / 8 with whole a, b, c, so that sums of areas stay
whole numbers until the last step.
"""

from itertools import combinations, product

import numpy as np
import numpy.typing as npt

_CORNERS = tuple(product((0, 1), repeat=3))

_EIGHTHS_OF_DISTANCES: dict[tuple[int, ...], tuple[int, int, int]] = {
    (): (0, 0, 1),
    (1,): (0, 4, 0),
    (2,): (0, 0, 2),
    (3,): (0, 0, 2),
    (1, 1, 2): (4, 0, 3),
    (2, 2, 2): (0, 0, 3),
    (1, 2, 3): (0, 4, 1),
    (1, 1, 1, 1, 2, 2): (8, 0, 0),
    (1, 1, 1, 2, 2, 2): (0, 0, 6),
    (1, 1, 1, 2, 2, 3): (0, 4, 4),
    (1, 1, 2, 2, 2, 3): (4, 0, 4),
    (1, 1, 2, 2, 3, 3): (0, 8, 0),
    (2, 2, 2, 2, 2, 2): (0, 0, 4),
}
"""Squared distances between the corners of a class → a, b, c of its area."""

CLASSES = 1 + len(_EIGHTHS_OF_DISTANCES)
"""Class 0 is no surface: no corner set, or all of them."""

_EIGHTHS = np.array([(0, 0, 0), *_EIGHTHS_OF_DISTANCES.values()], np.int64)


def area(cubes: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Area of cubes counted per class, in squared voxels: int64[…, 14] → float64[…]; equal counts give equal bits."""
    ones, roots_of_2, roots_of_3 = np.moveaxis(cubes @ _EIGHTHS, -1, 0)
    return np.asarray((ones + roots_of_2 * np.sqrt(2) + roots_of_3 * np.sqrt(3)) / 8)


def _class_of(code: int) -> int:
    bits = [(code >> (7 - i)) & 1 for i in range(8)]
    minority = 1 if sum(bits) <= 4 else 0
    chosen = [corner for corner, bit in zip(_CORNERS, bits, strict=True) if bit == minority]
    if not chosen:
        return 0
    distances = sorted(sum((a - b) ** 2 for a, b in zip(p, q, strict=True)) for p, q in combinations(chosen, 2))
    return 1 + list(_EIGHTHS_OF_DISTANCES).index(tuple(distances))


CODE_CLASS: npt.NDArray[np.uint8] = np.array([_class_of(code) for code in range(256)], np.uint8)
"""Class of each of the 256 codes."""
