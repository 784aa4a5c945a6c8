"""Pictures of a label as a whole: projections along the axes, and a turning one."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from perfuse.console import progress
from perfuse.geometry import runs
from perfuse.pictures import png
from perfuse_ingest.export.masks import Slabs

FRAMES, FRAME_MS = 48, 80
MOST_POINTS = 256
"""Edge of the level that is turned, in voxels, at most."""
PIXELS = 512


def write_projections(slabs: Slabs, out: Path) -> None:
    """PNG with three panels: along each axis, how near the first vessel is, from white to dark."""
    from matplotlib.figure import Figure

    shape = slabs.scan.shape_zyx
    near = [np.full([n for a, n in enumerate(shape) if a != axis], np.inf) for axis in range(3)]
    for first, mask in slabs:
        own = (slice(None), slice(first, first + len(mask)), slice(first, first + len(mask)))
        for axis in range(3):
            depth = np.where(mask.any(axis), mask.argmax(axis) + (first if axis == 0 else 0), np.inf)
            near[axis][own[axis]] = np.minimum(near[axis][own[axis]], depth)
    figure = Figure(figsize=(12, 4.4), layout="constrained")
    spacing = slabs.scan.info.voxel_size_um
    for axis, (axes, depth) in enumerate(zip(figure.subplots(1, 3), near, strict=True)):
        rows_um, columns_um = (um for a, um in enumerate(spacing) if a != axis)
        axes.imshow(_shaded(depth, shape[axis]), cmap="gray", vmin=0, vmax=1, aspect=rows_um / columns_um)
        axes.set_title(f"along {'zyx'[axis]}", fontsize=9)
        axes.set_axis_off()
    figure.suptitle(f"{slabs.label} in {slabs.scan.info.specimen}", fontsize=10)
    out.write_bytes(png(figure))


def _shaded(depth: npt.NDArray[np.float64], most: int) -> npt.NDArray[np.float64]:
    """White where a vessel is near, a third where it is farthest, black where none is."""
    return np.where(np.isfinite(depth), 1 - 2 / 3 * np.where(np.isfinite(depth), depth, 0) / max(most - 1, 1), 0)


def write_turning(slabs: Slabs, out: Path) -> None:
    """GIF of one turn about z, shaded by depth, from the finest level whose edges have no more than MOST_POINTS voxels."""
    from PIL import Image

    points = _points(slabs)
    reach = max(np.hypot(points[:, 1], points[:, 2]).max(initial=1), np.abs(points[:, 0]).max(initial=1)) + 1
    voxel = PIXELS / (2 * reach + 2)
    frames = []
    with progress("frames", FRAMES) as advance:
        for turn in np.linspace(0, 2 * np.pi, FRAMES, endpoint=False):
            frames.append(Image.fromarray(_frame(points * voxel, turn, int(np.ceil(voxel)) + 1)))
            advance()
    frames[0].save(out, save_all=True, append_images=frames[1:], duration=FRAME_MS, loop=0)


def _points(slabs: Slabs) -> npt.NDArray[np.float64]:
    """The vessel voxels of a coarse level about the middle of the volume, float64[n, 3], in its smallest voxel edge."""
    group = slabs.scan.group[f"labels/{slabs.label}"]
    levels = [array for _, array in sorted(group.arrays(), key=lambda named: int(named[0]))]  # type: ignore[union-attr]
    level = next((a for a in levels if max(a.shape) <= MOST_POINTS), levels[-1])
    spacing = np.array(slabs.scan.shape_zyx) / level.shape * np.array(slabs.scan.info.voxel_size_um)
    found = [
        np.argwhere(np.asarray(level[a:b]) >= slabs.threshold) + np.array([a, 0, 0])
        for a, b in runs(level.shape[0], 64)
    ]
    middle = (np.array(level.shape) - 1) / 2
    return np.asarray((np.concatenate(found) - middle) * spacing / spacing.min())


def _frame(points: npt.NDArray[np.float64], turn: float, voxel: int) -> npt.NDArray[np.uint8]:
    """The points, as squares of `voxel` pixels, seen after a turn; the nearest is the brightest and hides what is behind."""
    z, y, x = points.T
    across, deep = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    picture = np.zeros((PIXELS, PIXELS))
    shade = 0.65 - 0.7 * deep / PIXELS
    rows, columns = ((v + (PIXELS - voxel) / 2).astype(int) for v in (z, across))
    for down in range(voxel):
        for right in range(voxel):
            np.maximum.at(picture, (rows + down, columns + right), shade)
    return np.asarray(np.rint(255 * picture), np.uint8)
