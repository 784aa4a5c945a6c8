"""A crop out of its brick: panel, pixels of the wanted size, intensities normalised, all of it into the arrays of a batch."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from perfuse.contract import Normalisation
from perfuse.recipes import Recipe
from perfuse.resampling import AxisWeights, resample_plane
from perfuse.sampling import kernels
from perfuse.sampling.bricks import Brick, BrickLabel
from perfuse.sampling.places import Window

Planes = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class CropShape:
    """What a crop of a recipe consists of."""

    crop: int
    """Edge, in pixels."""
    offsets: tuple[int, ...]
    """Planes of the panel, from its middle plane, in voxels at scale 1."""
    segmented: slice
    """Which of them have a target."""
    classes: int

    @classmethod
    def of(cls, recipe: Recipe) -> "CropShape":
        """The crops of a recipe."""
        network = recipe.network
        middle = (network.planes - 1) // 2
        offsets = tuple((k - middle) * network.plane_stride for k in range(network.planes))
        segmented = slice(middle, middle + 1) if network.outputs == "middle" else slice(0, network.planes)
        return cls(recipe.crop, offsets, segmented, len(recipe.classes))

    def empty(self, crops: int) -> tuple[Planes, Planes, Planes]:
        """Arrays for image [crops, planes, n, n], target and known [crops, classes · segmented planes, n, n], float32."""
        planes, targets = len(self.offsets), self.classes * len(self.offsets[self.segmented])
        return tuple(np.empty((crops, n, self.crop, self.crop), np.float32) for n in (planes, targets, targets))  # type: ignore[return-value]


def scaling(low: float, high: float, normalisation: Normalisation) -> tuple[float, float, float, float]:
    """What `kernels.window_image` takes: as `normalisation.normalise` computes it."""
    return low, 1.0 / max(high - low, 1e-6), normalisation.clip, normalisation.knee or 0.0


def cut(
    brick: Brick,
    window: Window,
    shape: CropShape,
    scale: tuple[float, float, float, float],
    out: tuple[Planes, Planes, Planes],
) -> None:
    """Write one crop: image, target (0 … 1) and where it is known (0 or 1), float32[planes, n, n] each.

    Target and known come class by class; of a class that the scan has no label of, nothing is known.
    Planes beyond the scan repeat its last one, rows and columns beyond it are mirrored, and all of these are unknown. At
    another scale the image is interpolated linearly, by a triangle as wide as the larger of pixel and voxel; a
    label is that of the nearest voxel, so that masks stay masks and soft labels hold no value that was not given.
    """
    image, target, known = out
    centres, nearest, rows, columns = lines(brick.image.shape, window, shape)
    planes = np.clip(nearest, 0, brick.image.shape[0] - 1)
    if window.scale == 1:
        kernels.window_image(brick.image, planes, rows.voxels, columns.voxels, columns.inside, scale, image)
    else:
        resampled = _resampled(brick.image, centres, rows, columns, window.scale)
        kernels.window_image(
            resampled, np.arange(len(centres)), rows.pixels, columns.pixels, columns.inside, scale, image
        )
    shown = np.where(nearest == planes, planes, -1)[shape.segmented]
    volumes = zip(*(np.split(part, shape.classes) for part in (target, known)), strict=True)
    for label, (of_class, seen) in zip(brick.labels, volumes, strict=True):
        if label is None:
            of_class[...] = seen[...] = 0
        else:
            _label(label, shown, rows, columns, of_class, seen)


@dataclass(frozen=True)
class Line:
    """The pixels of a crop along one axis, and the voxels that they show."""

    start: float
    """Of the first pixel, in voxels."""
    inside: int
    """So many pixels lie in the scan."""
    pixels: Indices
    """For each pixel the one inside that it shows: itself, or its mirror image."""
    voxels: Indices
    """For each pixel the voxel nearest to its centre."""
    span: slice
    """The voxels that the pixels inside are made of."""

    @classmethod
    def of(cls, start: float, crop: int, length: int, scale: float) -> "Line":
        """Pixels of this size from `start` on, in a brick of so many voxels."""
        inside = min(crop, max(int((length - start) / scale), 1))
        phase = np.arange(crop) % (2 * inside)
        pixels = np.where(phase < inside, phase, 2 * inside - 1 - phase)
        voxels = np.minimum(np.floor(start + (pixels + 0.5) * scale).astype(np.int64), length - 1)
        reach = 0 if scale == 1 else math.ceil(max(scale, 1)) + 1
        first, stop = math.floor(start) - reach, math.ceil(start + inside * scale) + reach
        return cls(start, inside, pixels, voxels, slice(max(first, 0), min(stop, length)))


def lines(
    brick: tuple[int, ...], window: Window, shape: CropShape
) -> tuple[npt.NDArray[np.float64], Indices, Line, Line]:
    """For a brick of this shape: where the planes of a panel lie, the planes nearest to them, its rows and its columns."""
    centres = window.plane + np.array(shape.offsets) * window.scale
    rows, columns = (
        Line.of(start, shape.crop, n, window.scale)
        for start, n in zip((window.row, window.column), brick[1:], strict=True)
    )
    return centres, np.floor(centres + 0.5).astype(np.int64), rows, columns


def _resampled(
    voxels: npt.NDArray[Any], centres: npt.NDArray[np.float64], rows: Line, columns: Line, scale: float
) -> Planes:
    """The pixels of a panel inside the scan, float32[planes, rows, columns]."""
    spans = (rows.span, columns.span)
    weights = [
        AxisWeights.of(span.stop - span.start, line.inside, scale, line.start - span.start)
        for line, span in zip((rows, columns), spans, strict=True)
    ]
    out = np.empty((len(centres), rows.inside, columns.inside), np.float32)
    for number, centre in enumerate(centres):
        across = AxisWeights.of(voxels.shape[0], 1, scale, float(centre) + 0.5 - scale / 2)
        plane = np.zeros([s.stop - s.start for s in spans], np.float32)
        for index, weight in across.of_output(0):
            plane += weight * voxels[index][spans]
        out[number] = resample_plane(plane, *weights)
    return out


def _label(stored: BrickLabel, planes: Indices, rows: Line, columns: Line, target: Planes, known: Planes) -> None:
    inside = (rows.inside, columns.inside)
    if np.array_equal(columns.voxels[: columns.inside], columns.voxels[0] + np.arange(columns.inside)):
        kernels.window_label(stored.values, stored.known, planes, rows.voxels, columns.voxels, inside, target, known)
        return
    where = np.ix_(np.maximum(planes, 0), rows.voxels[: rows.inside], columns.voxels[: columns.inside])
    label = stored.values[where]
    stated = stored.known[where] if stored.known.size else stored.known
    kept = np.where(planes < 0, -1, np.arange(len(planes)))
    kernels.window_label(label, stated, kept, rows.pixels, columns.pixels, inside, target, known)
