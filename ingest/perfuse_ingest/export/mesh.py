"""The surface of a mask as triangles, slab by slab: binary STL, or binary PLY whose vertices are shared.

Marching cubes with half of the mask's height as level (Lewiner et al. 2003, as scikit-image has it): every vertex lies in the
middle between two voxels, so that where slabs meet both sides name it alike, by integers.
"""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from perfuse.geometry import Box
from perfuse.metrics import read_cubes
from perfuse_ingest.export.masks import Slabs

_STL = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("unused", "<u2")])
_FACE = np.dtype([("corners", "u1"), ("vertices", "<u4", 3)])
Halves = npt.NDArray[np.int64]


def surface(slabs: Slabs) -> Iterator[tuple[Halves, npt.NDArray[np.int64]]]:
    """Vertices int64[n, 3] of each slab's cubes, as z, y, x in half voxels, and its triangles int64[m, 3].

    Once the axes are x, y, z, triangles run counterclockwise as seen from outside. The volume counts as empty beyond its faces,
    so that the whole surface is closed.
    """
    from skimage.measure import marching_cubes

    shape = slabs.scan.shape_zyx
    for first, mask in slabs:
        owned = Box((first, 0, 0), (first + len(mask), *shape[1:]))
        cubes = read_cubes(slabs.read, owned, shape)
        if cubes.any() and not cubes.all():
            vertices, triangles, _, _ = marching_cubes(cubes.astype(np.float32), 0.5)
            origin = 2 * np.array([first - 1, -1, -1])
            yield np.rint(2 * vertices).astype(np.int64) + origin, triangles.astype(np.int64)


def _placed(vertices: Halves, slabs: Slabs) -> npt.NDArray[np.float32]:
    """Vertices as x, y, z in µm; a voxel's middle is its place, that of the first the scan's origin."""
    info = slabs.scan.info
    return np.asarray((vertices / 2 * info.voxel_size_um + info.origin_um)[:, ::-1], np.float32)


def write_stl(slabs: Slabs, out: Path) -> None:
    """Binary STL, in µm."""
    count = 0
    with out.open("wb") as file:
        file.write(bytes(84))
        for vertices, triangles in surface(slabs):
            corners = _placed(vertices, slabs)[triangles]
            records = np.zeros(len(triangles), _STL)
            records["corners"], records["normal"] = corners, _normals(corners)
            file.write(records.tobytes())
            count += len(triangles)
        file.seek(80)
        file.write(np.uint32(count).tobytes())


def _normals(corners: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    across = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    return np.asarray(across / np.maximum(np.linalg.norm(across, axis=1, keepdims=True), 1e-30), np.float32)


def write_ply(slabs: Slabs, out: Path) -> None:
    """Binary PLY, in µm; vertices that slabs share stand there once."""
    vertices = faces = 0
    with tempfile.TemporaryFile(dir=out.parent) as points, tempfile.TemporaryFile(dir=out.parent) as triangles:
        known = np.empty((0, 3), np.int64)
        numbers = np.empty(0, np.int64)
        for halves, corners in surface(slabs):
            at, new = _numbered(halves, known, numbers, vertices)
            points.write(_placed(halves[new], slabs).tobytes())
            records = np.zeros(len(corners), _FACE)
            records["corners"], records["vertices"] = 3, at[corners]
            triangles.write(records.tobytes())
            vertices, faces = vertices + int(new.sum()), faces + len(corners)
            last = halves[:, 0] == halves[:, 0].max()
            known, numbers = halves[last], at[last]
        with out.open("wb") as file:
            file.write(_ply_header(vertices, faces))
            for part in (points, triangles):
                part.seek(0)
                shutil.copyfileobj(part, file)


def _numbered(halves: Halves, known: Halves, numbers: Any, count: int) -> tuple[npt.NDArray[np.int64], Any]:
    """The number of each vertex, those of the slab before keeping theirs, and which are new."""
    there = {tuple(v): int(n) for v, n in zip(known.tolist(), numbers, strict=True)}
    at = np.fromiter((there.get(tuple(v), -1) for v in halves.tolist()), np.int64, len(halves))
    new = at < 0
    at[new] = count + np.arange(int(new.sum()))
    return at, new


def _ply_header(vertices: int, faces: int) -> bytes:
    lines = ["ply", "format binary_little_endian 1.0", "comment unit: micrometre", f"element vertex {vertices}"]
    lines += [f"property float {axis}" for axis in "xyz"]
    lines += [f"element face {faces}", "property list uchar uint vertex_indices", "end_header"]
    return ("\n".join(lines) + "\n").encode()
