"""The grid on which a network sees a scan: the scan's own, a coarser level's, or that of another voxel size, and the way back.

Resizing is linear along each axis, with a low-pass where voxels get larger, from the level of the pyramid that is next finer.
A voxel's value follows from its own place alone, in one order of sums: it does not depend on the box that it is asked with.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
import numpy.typing as npt

from perfuse.catalog import Scan
from perfuse.contract import Forward
from perfuse.geometry import Box, Index3, Spacing, index3
from perfuse.inference.logits import Logits
from perfuse.resampling import AxisWeights
from perfuse.volumes import pyramid_levels

Voxels = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Grid:
    """Voxels in the field of view of a scan, from the same corner."""

    scan: Scan
    level: int
    """Of the image, whose voxels are read."""
    shape_zyx: Index3
    factor: Spacing
    """Edges of its voxels in voxels of that level."""
    extent: Index3
    """The voxels of the scan that they cover; of a level the last ones may lie beyond it."""

    @classmethod
    def of(cls, scan: Scan, forward: Forward) -> "Grid":
        """That of `forward.level`, or of `forward.resample_um`, so that whole voxels fill the field of view."""
        edges = scan.info.voxel_size_um
        scales = [level.scale_um for level in pyramid_levels(scan.shape_zyx, edges)[: scan.levels]]
        if forward.resample_um is None:
            shape = index3(scan.level(forward.level).shape)
            covered = [n * round(s / e) for n, s, e in zip(shape, scales[forward.level], edges, strict=True)]
            return cls(scan, forward.level, shape, (1.0, 1.0, 1.0), index3(covered))
        shape = shape_at(forward.resample_um, scan.shape_zyx, edges)
        wanted = [n * e / m for n, e, m in zip(scan.shape_zyx, edges, shape, strict=True)]
        fine = [k for k, scale in enumerate(scales) if all(s <= w * 1.01 for s, w in zip(scale, wanted, strict=True))]
        level = max(fine, default=0)
        z, y, x = (w / s for w, s in zip(wanted, scales[level], strict=True))
        return cls(scan, level, shape, (z, y, x), scan.shape_zyx)

    @property
    def is_scan(self) -> bool:
        """Whether it is the scan's own grid."""
        return self.level == 0 and self.shape_zyx == self.scan.shape_zyx

    @property
    def is_stored(self) -> bool:
        """Whether it is one of the scan's levels."""
        return self.factor == (1.0, 1.0, 1.0)

    def read(self, box: Box) -> npt.NDArray[Any]:
        """Intensities [z, y, x] inside a box of the grid: as they are stored, or float32."""
        read = partial(self.scan.read_image, level=self.level)
        if self.is_stored:
            return read(box)
        return resized(read, self._inputs, self.shape_zyx, self.factor, box)

    def source(self, box: Box) -> Box:
        """The voxels of its level that are read for a box."""
        return box if self.is_stored else source(self._inputs, self.shape_zyx, self.factor, box)

    @property
    def _inputs(self) -> Index3:
        return index3(self.scan.level(self.level).shape)

    def back(self, read: Callable[[Box], Logits], box: Box) -> Logits:
        """What `read` answers of the grid, int16, brought to a box of the scan."""
        if self.is_scan:
            return read(box)
        return np.rint(resized(read, *self._back, box)).astype(np.int16)

    def covering(self, box: Box) -> Box:
        """The voxels of the grid that a box of the scan depends on."""
        return box if self.is_scan else source(*self._back, box)

    @property
    def _back(self) -> tuple[Index3, Index3, Spacing]:
        z, y, x = (n / m for n, m in zip(self.shape_zyx, self.extent, strict=True))
        return self.shape_zyx, self.scan.shape_zyx, (z, y, x)

    def in_scan(self, box: Box) -> Box:
        """The voxels of the scan that a box of the grid touches."""
        ratios = [m / n for n, m in zip(self.shape_zyx, self.extent, strict=True)]
        start = [int(np.floor(a * r)) for a, r in zip(box.start, ratios, strict=True)]
        stop = [int(np.ceil(b * r)) for b, r in zip(box.stop, ratios, strict=True)]
        return Box(index3(start), index3(stop)).intersect(Box.whole(self.scan.shape_zyx))


def shape_at(voxel_um: float, shape_zyx: Index3, voxel_size_um: Spacing) -> Index3:
    """How many voxels of such an edge a volume has, rounded; at least 1 along each axis."""
    return index3([max(1, round(n * e / voxel_um)) for n, e in zip(shape_zyx, voxel_size_um, strict=True)])


def resized(
    read: Callable[[Box], npt.NDArray[np.generic]], inputs: Index3, outputs: Index3, factor: Spacing, box: Box
) -> Voxels:
    """A box of a volume at another size, float32, from the inputs that it depends on, axis after axis."""
    axes = _axes(inputs, outputs, factor)
    needed = source(inputs, outputs, factor, box)
    voxels = np.asarray(read(needed), np.float32)
    for axis, (weights, a, b) in enumerate(zip(axes, box.start, box.stop, strict=True)):
        voxels = _along(voxels, axis, weights, slice(a, b), needed.start[axis])
    return voxels


def source(inputs: Index3, outputs: Index3, factor: Spacing, box: Box) -> Box:
    """The inputs that a box of a volume at another size depends on."""
    parts = [(w, slice(a, b)) for w, a, b in zip(_axes(inputs, outputs, factor), box.start, box.stop, strict=True)]
    start = [int(weights.first[part].min()) for weights, part in parts]
    stop = [int((weights.first + weights.counts)[part].max()) for weights, part in parts]
    return Box(index3(start), index3(stop))


@lru_cache(maxsize=8)
def _axes(inputs: Index3, outputs: Index3, factor: Spacing) -> list[AxisWeights]:
    return [AxisWeights.of(n, m, f) for n, m, f in zip(inputs, outputs, factor, strict=True)]


def _along(voxels: Voxels, axis: int, weights: AxisWeights, outputs: slice, origin: int) -> Voxels:
    first, counts, factors = weights.first[outputs], weights.counts[outputs], weights.weights[outputs]
    shape = [1, 1, 1]
    shape[axis] = len(first)
    total = np.zeros((), np.float32)
    for k in range(int(counts.max())):
        at = first - origin + np.minimum(k, counts - 1)
        weight = np.where(k < counts, factors[:, min(k, factors.shape[1] - 1)], np.float32(0))
        total = total + voxels.take(at, axis) * weight.astype(np.float32).reshape(shape)
    return np.asarray(total, np.float32)
