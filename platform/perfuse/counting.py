"""What is counted of a prediction in a scan: inside the organ, where the truth was given, in one pass over the voxels."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
import numpy.typing as npt

from perfuse.catalog import ORGAN, LabelInfo, Scan
from perfuse.errors import ScanError
from perfuse.geometry import Box, Index3, blocks
from perfuse.metrics import ConfusionCounts, SurfaceCounts, plane_counts, surface_layers
from perfuse.metrics.areas import CLASSES
from perfuse.passes import BLOCK, Arrays, cut, over_cubes

Mask = npt.NDArray[np.bool_]
Counts = npt.NDArray[np.int64]
Maker = Callable[..., Mask]
"""Makes a mask in a box: called with it, and with the array that is to hold the mask, or with None."""
Part = Callable[[Box, ConfusionCounts, SurfaceCounts], object]
"""Is told of each part of a scan that is counted by itself, and of what is counted there."""
VESSEL = np.uint8(128)
"""From here on a voxel of a truth is vessel."""
NO, YES = np.bool_(False), np.bool_(True)


def truth_mask(scan: Scan, truth: str, box: Box) -> Mask:
    """Where a label says vessel."""
    return scan.read_label(truth, box) >= VESSEL


def counted_mask(scan: Scan, labels: Sequence[str], box: Box) -> Mask:
    """Where scores are counted: where all these labels were given, sparse or not, and inside the organ if that is marked.

    May be read-only, and take no memory.
    """
    limits = [scan.read_given(label, box) for label in labels if not _is_given(scan, label, box)]
    if ORGAN in scan.labels():
        limits.append(scan.read_label(ORGAN, box) >= VESSEL)
    return reduce(np.logical_and, limits, np.broadcast_to(YES, box.shape))


def counted_everywhere(scan: Scan, labels: Sequence[str]) -> bool:
    """Whether scores are counted throughout a scan."""
    whole = Box.whole(scan.shape_zyx)
    return ORGAN not in scan.labels() and all(_is_given(scan, label, whole) for label in labels)


def _is_given(scan: Scan, label: str, box: Box) -> bool:
    """Whether one of a label's boxes holds all of `box`."""
    return any(given.box.intersect(box) == box for given in scan.label_boxes(label))


def at_least(scan: Scan, prediction: str, threshold: int | None) -> Maker:
    """The function that makes the mask of a prediction in a box; threshold: see `threshold_or_own`."""
    at = np.uint8(threshold_or_own(scan.label_info(prediction), threshold))
    return lambda box, out=None: np.greater_equal(scan.read_label(prediction, box), at, out=out)


def threshold_or_own(info: LabelInfo, threshold: int | None) -> int:
    """The one given, of 255, or that of the label's model; ScanError when it has none."""
    if threshold is not None:
        return threshold
    if info.model is None:
        raise ScanError(f"Label {info.name!r} was made by no model, so it has no threshold. Give one: --threshold 0.5")
    return info.model.threshold


@dataclass(frozen=True)
class Tally:
    """Counts of a scan, slice by slice and column by column; every voxel and cube is in one of each."""

    planes: Counts
    """int64[z, 4]: as `plane_counts`."""
    layers: Counts
    """int64[z, 4, 14]: the four of `SurfaceCounts`, of the cubes between a slice and the one before it; the last slice has those at
    the far face, too."""
    columns: Counts
    """int64[y, x, 4]: the same, of the voxels above each other in z."""
    surfaces: Counts
    """int64[y, x, 4, 14]: as `layers`, of the columns' cubes."""
    width: tuple[int, int]
    """Voxels of a column along y and x; the last may be narrower."""

    @property
    def voxels(self) -> ConfusionCounts:
        """Of the whole scan."""
        return ConfusionCounts.of_planes(self.planes)

    @property
    def surface(self) -> SurfaceCounts:
        """Of the whole scan."""
        return SurfaceCounts(*self.surfaces.sum((0, 1)))


def tally(
    scan: Scan,
    labels: Sequence[str],
    predicted: Maker,
    width: tuple[int, int] | None = None,
    each: Part | None = None,
) -> Tally:
    """Count a mask against the first of some labels, where all of them were given.

    width: of columns along y and x, which divide those of blocks; None: as those. each: is told of a column's part in each block.
    """
    width = width or (BLOCK[1], BLOCK[2])
    depth, rows, columns = shape = scan.shape_zyx
    grid = (-(-rows // width[0]), -(-columns // width[1]))
    planes, layers = np.zeros((depth, 4), np.int64), np.zeros((depth, 4, CLASSES), np.int64)
    voxels, surfaces = np.zeros((*grid, 4), np.int64), np.zeros((*grid, 4, CLASSES), np.int64)

    everywhere = counted_everywhere(scan, labels)
    outside = (NO, NO) if everywhere else (NO, NO, YES)

    def read(box: Box, into: Arrays) -> None:
        np.greater_equal(scan.read_label(labels[0], box), VESSEL, out=into[0])
        predicted(box, into[1])
        if not everywhere:
            into[2][...] = counted_mask(scan, labels, box)

    def count(box: Box, arrays: Arrays) -> list[tuple[Box, Counts, Counts]]:
        return [_cell(cell, box, arrays, shape) for cell in _cells(box, width)]

    for cells in over_cubes(cut(shape), shape, f"score {scan.info.id}", read, outside, count):
        for cell, of_planes, of_surface in cells:
            at = cell.start[1] // width[0], cell.start[2] // width[1]
            planes[cell.slices[0]] += of_planes
            voxels[at] += of_planes.sum(0)
            surfaces[at] += of_surface.sum(0)
            own, beyond = of_surface[: len(of_planes)], of_surface[len(of_planes) :]
            layers[cell.slices[0]] += own
            layers[cell.stop[0] - 1] += beyond.sum(0)
            if each is not None:
                each(cell, ConfusionCounts.of_planes(of_planes), SurfaceCounts(*of_surface.sum(0)))
    return Tally(planes, layers, voxels, surfaces, width)


def _cells(box: Box, width: tuple[int, int]) -> Iterator[Box]:
    for cell in blocks(box.shape, (box.shape[0], *width)):
        yield cell.shifted(box.start)


def _cell(cell: Box, box: Box, arrays: Arrays, shape_zyx: Index3) -> tuple[Box, Counts, Counts]:
    """The counts of a part of a block, whose arrays begin one voxel before it."""
    inside = cell.relative_to(box.start)
    own = tuple(slice(a + 1, b + 1) for a, b in zip(inside.start, inside.stop, strict=True))
    far = (int(b == n) for b, n in zip(cell.stop, shape_zyx, strict=True))
    around = tuple(slice(s.start - 1, s.stop + extra) for s, extra in zip(own, far, strict=True))
    return cell, plane_counts(*(a[own] for a in arrays)), surface_layers(*(a[around] for a in arrays))
