"""Pictures of a label as a whole: maximum intensity projections along the axes, and a turning one, shaded by depth."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from perfuse.console import progress
from perfuse.geometry import runs
from perfuse_ingest.export.masks import Slabs

FRAMES, FRAME_MS = 48, 80
MOST_POINTS = 256
"""Edge of the level that is turned, in voxels, at most."""
PIXELS = 512


def write_projections(slabs: Slabs, out: Path) -> None:
    """PNG, 8 bits grey, of the maximum intensity projections along z, y and x: the highest value that stands behind each pixel.

    Side by side, along z (rows y, columns x), along y (z, x) and along x (z, y), from the top, a black line between. A pixel is a
    voxel, or where these are no cubes as wide as their shortest edge. Values are the label's, p = value / 255, 0 below the
    threshold.
    """
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    shape = np.array(slabs.scan.shape_zyx)
    along = [np.zeros([n for a, n in enumerate(shape) if a != axis], np.uint8) for axis in range(3)]
    for first, values in slabs.over(slabs.values):
        own = (slice(None), slice(first, first + len(values)), slice(first, first + len(values)))
        for axis in range(3):
            along[axis][own[axis]] = np.maximum(along[axis][own[axis]], values.max(axis))
    um = np.array(slabs.scan.info.voxel_size_um)
    depth, height, width = (int(n) for n in np.maximum(1, np.rint(shape * um / um.min())))
    z, y, x = (
        (2 * np.arange(n) + 1) * voxels // (2 * n) for n, voxels in zip((depth, height, width), shape, strict=True)
    )
    picture = np.zeros((max(height, depth), width + 1 + width + 1 + height), np.uint8)
    left = 0
    for plane, rows, columns in zip(along, (y, z, z), (x, x, y), strict=True):
        picture[: len(rows), left : left + len(columns)] = plane[np.ix_(rows, columns)]
        left += len(columns) + 1
    about = PngInfo()
    about.add_text(
        "Title", f"{slabs.label} in {slabs.scan.info.specimen}: largest along z, y, x; pixels of {um.min():g} µm"
    )
    Image.fromarray(picture).save(out, pnginfo=about)


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
