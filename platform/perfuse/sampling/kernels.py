"""Compiled loops over voxels: bricks to crops, in one pass over each crop. None holds the interpreter's lock."""

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

Voxels = npt.NDArray[Any]
Planes = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]


@numba.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def window_image(
    voxels: Voxels,
    planes: Indices,
    rows: Indices,
    columns: Indices,
    straight: int,
    scaling: tuple[float, float, float, float],
    out: Planes,
) -> None:
    """Voxels [planes, rows, columns] at the given indices into out, float32, normalised as `normalisation.normalise` does.

    straight: so many columns follow each other from the first one on. scaling: low, 1 / (high − low), clip, knee (0: none).
    """
    low, factor = np.float32(scaling[0]), np.float32(scaling[1])
    clip, knee, one = np.float32(scaling[2]), np.float32(scaling[3]), np.float32(1)
    top = one + clip
    for p in range(planes.size):
        for r in range(rows.size):
            source, target = voxels[planes[p], rows[r]], out[p, r]
            first = source[columns[0] :]
            for c in range(straight):
                target[c] = (np.float32(first[c]) - low) * factor
            for c in range(straight, columns.size):
                target[c] = (np.float32(source[columns[c]]) - low) * factor
            if knee > 0:
                for c in range(columns.size):
                    target[c] = np.arcsinh(target[c] / knee) / np.arcsinh(one / knee)
            for c in range(columns.size):
                target[c] = min(max(target[c], -clip), top)


@numba.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def window_label(
    label: Voxels,
    known: Voxels,
    planes: Indices,
    rows: Indices,
    columns: Indices,
    straight: tuple[int, int],
    target: Planes,
    seen: Planes,
) -> None:
    """Labels at the given indices as p = value / 255, and where they are known: 1 or 0.

    known: as label, or of no voxel where all is known. straight: so many rows and columns lie inside; beyond is unknown.
    A plane of index −1 lies beyond the scan, too.
    """
    for p in range(planes.size):
        for r in range(rows.size):
            if planes[p] < 0:
                target[p, r] = 0
                seen[p, r] = 0
                continue
            source = label[planes[p], rows[r]]
            first = source[columns[0] :]
            for c in range(straight[1]):
                target[p, r, c] = np.float32(first[c]) / np.float32(255)
            for c in range(straight[1], columns.size):
                target[p, r, c] = np.float32(source[columns[c]]) / np.float32(255)
            if r >= straight[0]:
                seen[p, r] = 0
            else:
                seen[p, r, : straight[1]] = 1
                seen[p, r, straight[1] :] = 0
                if known.size:
                    stated = known[planes[p], rows[r], columns[0] :]
                    for c in range(straight[1]):
                        seen[p, r, c] = np.float32(stated[c] != 0)


@numba.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def vessels_per_row(label: Voxels, known: Voxels, out: Indices) -> None:
    """How many known voxels of each row [planes, rows] are vessel. known: as label, or of no voxel where all is known."""
    for p in range(label.shape[0]):
        for r in range(label.shape[1]):
            line, count = label[p, r], 0
            if known.size:
                stated = known[p, r]
                for c in range(line.size):
                    count += (line[c] >= 128) & (stated[c] != 0)
            else:
                for c in range(line.size):
                    count += line[c] >= 128
            out[p, r] = count


@numba.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def turned_image(
    voxels: Voxels, origin: npt.NDArray[np.float64], steps: npt.NDArray[np.float64], half: float, out: Voxels
) -> None:
    """Trilinear samples; beyond the volume its nearest voxel.

    out[i, j, k] lies at origin + (i, j, k) @ steps, in voxels of `voxels` [z, y, x]; steps: float64[3, 3]. half: 0.5 to
    round to integers, else 0.
    """
    depth, rows, columns = voxels.shape
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            for k in range(out.shape[2]):
                z = min(max(origin[0] + i * steps[0, 0] + j * steps[1, 0] + k * steps[2, 0], 0.0), depth - 1.0)
                y = min(max(origin[1] + i * steps[0, 1] + j * steps[1, 1] + k * steps[2, 1], 0.0), rows - 1.0)
                x = min(max(origin[2] + i * steps[0, 2] + j * steps[1, 2] + k * steps[2, 2], 0.0), columns - 1.0)
                z0, y0, x0 = int(z), int(y), int(x)
                z1, y1, x1 = min(z0 + 1, depth - 1), min(y0 + 1, rows - 1), min(x0 + 1, columns - 1)
                dz, dy, dx = z - z0, y - y0, x - x0
                near = (1 - dy) * ((1 - dx) * voxels[z0, y0, x0] + dx * voxels[z0, y0, x1]) + dy * (
                    (1 - dx) * voxels[z0, y1, x0] + dx * voxels[z0, y1, x1]
                )
                far = (1 - dy) * ((1 - dx) * voxels[z1, y0, x0] + dx * voxels[z1, y0, x1]) + dy * (
                    (1 - dx) * voxels[z1, y1, x0] + dx * voxels[z1, y1, x1]
                )
                out[i, j, k] = (1 - dz) * near + dz * far + half


@numba.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def turned_label(
    label: Voxels,
    known: Voxels,
    origin: npt.NDArray[np.float64],
    steps: npt.NDArray[np.float64],
    out: Voxels,
    seen: Voxels,
) -> None:
    """Nearest labels of the same positions as `turned_image`, and where they are known: 1 or 0; nothing is beyond the volume.

    known: as label, or of no voxel where all is known.
    """
    depth, rows, columns = label.shape
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            for k in range(out.shape[2]):
                z = int(np.floor(origin[0] + i * steps[0, 0] + j * steps[1, 0] + k * steps[2, 0] + 0.5))
                y = int(np.floor(origin[1] + i * steps[0, 1] + j * steps[1, 1] + k * steps[2, 1] + 0.5))
                x = int(np.floor(origin[2] + i * steps[0, 2] + j * steps[1, 2] + k * steps[2, 2] + 0.5))
                out[i, j, k] = seen[i, j, k] = 0
                if 0 <= z < depth and 0 <= y < rows and 0 <= x < columns:
                    out[i, j, k] = label[z, y, x]
                    seen[i, j, k] = known[z, y, x] if known.size else 1
