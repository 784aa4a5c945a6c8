"""Surface dice at tolerance 0, exact over blocks.

The volume is zero-padded by one voxel; cube (i, j, k) holds the voxels i−1…i, j−1…j, k−1…k, so that a volume of n voxels
has n + 1 cubes along an axis. A block of cubes owns them alone, and reads its voxels with a halo of one before.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from perfuse.geometry import Box, Index3, index3
from perfuse.metrics.areas import CLASSES, CODE_CLASS, area
from perfuse.metrics.overlap import NOTHING, check_shapes, mask_bytes

Counts = npt.NDArray[np.int64]


def _zeros() -> Counts:
    return np.zeros(CLASSES, np.int64)


@dataclass(frozen=True)
class SurfaceCounts:
    """Surface cubes per area class, int64[14]; counts of disjoint blocks of cubes add, exactly."""

    truth: Counts = field(default_factory=_zeros)
    """Surface cubes of the truth."""
    predicted: Counts = field(default_factory=_zeros)
    """Surface cubes of the prediction."""
    truth_shared: Counts = field(default_factory=_zeros)
    """Those of the truth that are surface in the prediction too."""
    predicted_shared: Counts = field(default_factory=_zeros)
    """Those of the prediction that are surface in the truth too."""

    def __add__(self, other: "SurfaceCounts") -> "SurfaceCounts":
        return SurfaceCounts(
            self.truth + other.truth,
            self.predicted + other.predicted,
            self.truth_shared + other.truth_shared,
            self.predicted_shared + other.predicted_shared,
        )

    @property
    def truth_area(self) -> float:
        """Area of the truth's surface, in squared voxels."""
        return float(area(self.truth))

    @property
    def area(self) -> float:
        """Area of both surfaces, in squared voxels."""
        return float(area(self.truth + self.predicted))

    @property
    def shared_area(self) -> float:
        """Area of both surfaces where they share their cubes."""
        return float(area(self.truth_shared + self.predicted_shared))

    @property
    def undefined(self) -> bool:
        """True when neither mask has a surface, so that there is nothing to score."""
        return not (self.truth.any() or self.predicted.any())

    @property
    def surface_dice(self) -> float:
        """Shared area of both surfaces over their whole area; NaN when `undefined`."""
        if self.undefined:
            return float("nan")
        return self.shared_area / self.area


def surface_counts(
    truth: npt.NDArray[np.bool_], predicted: npt.NDArray[np.bool_], known: npt.NDArray[np.bool_] | None = None
) -> SurfaceCounts:
    """Count the surface cubes that lie inside a block of voxels, at tolerance 0 and unit spacing.

    truth, predicted, known: bool[z, y, x] of one shape (n + 1 voxels give n cubes), as `read_cubes` cuts them. A cube with
    a voxel that is not known does not count. Raises ShapeMismatchError when the shapes differ, TypeError for other dtypes.
    After Nikolov et al. 2018, "Deep learning to achieve clinically applicable segmentation of head and neck anatomy".
    """
    return SurfaceCounts(*surface_layers(truth, predicted, known).sum(0))


def surface_layers(
    truth: npt.NDArray[np.bool_], predicted: npt.NDArray[np.bool_], known: npt.NDArray[np.bool_] | None = None
) -> Counts:
    """The same, layer by layer of cubes along z: int64[z, 4, 14], the four of `SurfaceCounts` in their order."""
    check_shapes(truth, predicted, known)
    pairs = _count(
        mask_bytes(truth), mask_bytes(predicted), NOTHING if known is None else mask_bytes(known), CODE_CLASS
    )
    shared = pairs[:, 1:, 1:]
    counts = np.zeros((len(pairs), 4, CLASSES), np.int64)
    for number, of_class in enumerate((pairs.sum(2)[:, 1:], pairs.sum(1)[:, 1:], shared.sum(2), shared.sum(1))):
        counts[:, number, 1:] = of_class
    return counts


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _count(truth: Any, predicted: Any, known: Any, code_class: Any) -> Any:
    """Cubes by layer and by class in truth and prediction, int64[z, 14, 14], of those that are surface in either.

    known: of no voxels where all are. A row of cubes at a time, in loops over bytes that the compiler makes wide: codes, then which
    cubes are surface. Eight that are none are passed over at once; of eight that are some all are looked up, without a branch. The
    order of bits in a code is another than in `areas`; a class has no directions.
    """
    depth, rows, width = truth.shape
    pairs = np.zeros((depth - 1, CLASSES, CLASSES), np.int64)
    column, k, whole = np.empty(width, np.uint8), np.empty(width, np.uint8), (width + 7) // 8 * 8
    a, b, surface = np.zeros(whole, np.uint8), np.zeros(whole, np.uint8), np.zeros(whole, np.uint8)
    eights = surface.view(np.uint64)
    for z in range(depth - 1):
        of_layer = pairs[z]
        for y in range(rows - 1):
            cube_codes(truth, z, y, column, a)
            cube_codes(predicted, z, y, column, b)
            for x in range(width - 1):
                surface[x] = ((a[x] != 0) & (a[x] != 255)) | ((b[x] != 0) & (b[x] != 255))
            if known.size:
                cube_codes(known, z, y, column, k)
                for x in range(width - 1):
                    surface[x] &= k[x] == 255
            for n in range(len(eights)):
                if eights[n]:
                    for x in range(8 * n, 8 * n + 8):
                        of_layer[code_class[a[x]], code_class[b[x]]] += surface[x]
    return pairs


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def cube_codes(mask: Any, z: int, y: int, column: Any, out: Any) -> None:
    """The eight voxels of each cube of a row as the bits of a byte, by way of the four of each column along x."""
    low, right, far, across = mask[z, y], mask[z, y + 1], mask[z + 1, y], mask[z + 1, y + 1]
    for x in range(len(column)):
        column[x] = low[x] | (right[x] << np.uint8(1)) | (far[x] << np.uint8(2)) | (across[x] << np.uint8(3))
    for x in range(len(column) - 1):
        out[x] = column[x] | (column[x + 1] << np.uint8(4))


def read_cubes(
    read: Callable[[Box], npt.NDArray[Any]], owned: Box, shape_zyx: Index3, outside: int = 0
) -> npt.NDArray[Any]:
    """The voxels of the cubes that belong to an owned box of voxels: one more before, and the padding at the far faces.

    read: gives the voxels of a box inside the volume. owned: boxes that tile the volume own each cube once.
    outside: what the padding holds (0 for masks; 1 for validity, since the padding is known background).
    """
    last = index3([int(b == n) for b, n in zip(owned.stop, shape_zyx, strict=True)])
    wanted = Box(
        index3([a - 1 for a in owned.start]), index3([b + extra for b, extra in zip(owned.stop, last, strict=True)])
    )
    inside = wanted.intersect(Box.whole(shape_zyx))
    voxels = read(inside)
    padding = [(c - a, b - d) for a, b, c, d in zip(wanted.start, wanted.stop, inside.start, inside.stop, strict=True)]
    return np.pad(voxels, padding, constant_values=outside)
