"""Areas of marching cubes at any spacing: the triangles of each of the 256 cubes, as normals as long as their areas.

Corners of a cube that hang together by its edges are cut off by one loop through the middles of the edges that leave them. A loop
of five or six vertices does not lie in a plane, and can be triangulated in several ways; taken is the one whose area at unit
spacing is that of `areas`. At spacing s a normal n becomes (n₀s₁s₂, n₁s₀s₂, n₂s₀s₁).
"""

from collections.abc import Iterator
from functools import cache
from itertools import product

import numpy as np
import numpy.typing as npt

from perfuse.geometry import Spacing
from perfuse.metrics.areas import CLASSES, CODE_CLASS, area

Vector = npt.NDArray[np.float64]
Corner = tuple[int, int, int]

_CORNERS: list[Corner] = [(z, y, x) for z in (0, 1) for y in (0, 1) for x in (0, 1)]


def areas_at(spacing: Spacing) -> npt.NDArray[np.float64]:
    """float64[256]: the area of each code's surface, for voxels of this spacing in z, y, x; code: see `areas`."""
    scale = np.prod(spacing) / np.array(spacing)
    return np.array([np.linalg.norm(np.stack(n) * scale, axis=1).sum() if n else 0.0 for n in _normals()])


@cache
def _normals() -> list[list[Vector]]:
    """Of each code."""
    of_class = area(np.eye(CLASSES, dtype=np.int64))
    return [_of_code(code, float(of_class[CODE_CLASS[code]])) for code in range(256)]


def _of_code(code: int, wanted: float) -> list[Vector]:
    chosen = [corner for n, corner in enumerate(_CORNERS) if code >> (7 - n) & 1]
    if len(chosen) > 4:
        chosen = [corner for corner in _CORNERS if corner not in chosen]
    ways = [[*_triangulated(_loop(part))] for part in _parts(chosen)]
    for picked in product(*ways):
        normals = [n for part in picked for n in part]
        if abs(sum(float(np.linalg.norm(n)) for n in normals) - wanted) < 1e-9:
            return normals
    raise AssertionError(f"no triangulation of cube {code} has the area {wanted}")


def _neighbours(corner: Corner) -> Iterator[Corner]:
    z, y, x = corner
    yield from ((1 - z, y, x), (z, 1 - y, x), (z, y, 1 - x))


def _parts(chosen: list[Corner]) -> list[set[Corner]]:
    """Corners that hang together by edges."""
    left, parts = set(chosen), []
    while left:
        part, waiting = set(), [left.pop()]
        while waiting:
            corner = waiting.pop()
            part.add(corner)
            near = left.intersection(_neighbours(corner))
            left -= near
            waiting += near
        parts.append(part)
    return parts


def _loop(part: set[Corner]) -> list[Vector]:
    """The middles of the edges that leave a part, in order: two follow each other when they lie on one face of the cube."""
    left = [(np.array(a) + b) / 2 for a in sorted(part) for b in _neighbours(a) if b not in part]
    loop = [left.pop(0)]
    while left:
        at = next(n for n, point in enumerate(left) if _follows(loop[-1], point, part))
        loop.append(left.pop(at))
    return loop


def _follows(a: Vector, b: Vector, part: set[Corner]) -> bool:
    """On a face of the cube, and no other crossing of the part between them there."""
    faces = [(axis, side) for axis in range(3) for side in (0, 1) if a[axis] == b[axis] == side]
    return any(sum(corner[axis] == side for corner in part) in (1, 2, 3) for axis, side in faces)


def _triangulated(loop: list[Vector]) -> Iterator[list[Vector]]:
    """The normals of every triangulation of a loop."""
    if len(loop) == 2:
        yield []
        return
    for middle in range(1, len(loop) - 1):
        normal = np.cross(loop[middle] - loop[0], loop[-1] - loop[0]) / 2
        for before in _triangulated(loop[: middle + 1]):
            for after in _triangulated(loop[middle:]):
                yield [normal, *before, *after]
