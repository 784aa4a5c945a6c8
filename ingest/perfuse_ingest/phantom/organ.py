"""The organ's envelope: a bumpy ellipsoid with a dent, the hilum, where the vessels enter."""

from dataclasses import dataclass
from typing import Self

import numba
import numpy as np
from numpy.typing import NDArray

from perfuse_ingest.phantom.lattice import Plane, Stream, generator

_WAVES = 8
_BUMP = 0.022
_DENT_DEPTH, _DENT_WIDTH = 0.25, 0.35


@dataclass(frozen=True)
class Envelope:
    """Where the organ is, as a pure function of the voxel."""

    centre: NDArray[np.float64]
    """[z, y, x] in voxels."""
    semi_axes: NDArray[np.float64]
    """[z, y, x] in voxels."""
    hilum: NDArray[np.float64]
    """Unit vector [z, y, x] from the centre towards the dent, in units of the semi-axes."""
    waves: NDArray[np.float64]
    """[wave, 4]: wave vector z, y, x and phase of each bump, in units of the semi-axes."""

    @classmethod
    def grow(cls, shape_zyx: tuple[int, int, int], seed: int) -> Self:
        """An envelope that fills the volume but for a margin; seeds differ in proportions, bumps and hilum."""
        rng = generator(seed, Stream.ENVELOPE)
        shape = np.array(shape_zyx, float)
        angle = rng.uniform(0, 2 * np.pi)
        return cls(
            centre=(shape - 1) / 2,
            semi_axes=shape * rng.uniform(0.40, 0.455, 3),
            hilum=np.array([0.0, np.sin(angle), np.cos(angle)]),
            waves=np.column_stack([_directions(rng), rng.uniform(0, 2 * np.pi, _WAVES)]),
        )

    def depth(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """How deep points[n, zyx] lie under the surface, in voxels, about; negative outside."""
        depths = np.empty(len(points))
        _depth_at(points, self.centre, self.semi_axes, self.hilum, self.waves, depths)
        return depths

    def slice_depth(self, z: int, plane_shape: tuple[int, int]) -> Plane:
        """As `depth`, float32[y, x], for the whole plane at z."""
        plane = np.empty(plane_shape, np.float32)
        _depth_of_plane(z, self.centre, self.semi_axes, self.hilum, self.waves, plane)
        return plane

    def entrance(self) -> NDArray[np.float64]:
        """The point [z, y, x] in the hilum, just outside of the tissue, where the trunk enters."""
        reach = np.linspace(0.3, 1.0, 200)
        ray = self.centre + reach[:, None] * self.hilum * self.semi_axes
        outside = np.flatnonzero(self.depth(ray) < 0)
        return np.asarray(ray[outside[0] if len(outside) else -1])


def _directions(rng: np.random.Generator) -> NDArray[np.float64]:
    vectors = rng.standard_normal((_WAVES, 3))
    lengths = rng.uniform(3.0, 9.0, (_WAVES, 1))
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True) * lengths)


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _depth(
    z: float,
    y: float,
    x: float,
    centre: NDArray[np.float64],
    semi_axes: NDArray[np.float64],
    hilum: NDArray[np.float64],
    waves: NDArray[np.float64],
) -> float:
    u = (z - centre[0]) / semi_axes[0]
    v = (y - centre[1]) / semi_axes[1]
    w = (x - centre[2]) / semi_axes[2]
    reach = np.sqrt(u * u + v * v + w * w)
    scale = semi_axes.mean()
    if reach < 0.4 or reach > 1.3:
        return float((1 - reach) * scale)
    bumps = 0.0
    for k in range(waves.shape[0]):
        bumps += np.sin(waves[k, 0] * u + waves[k, 1] * v + waves[k, 2] * w + waves[k, 3])
    away = (u - hilum[0]) ** 2 + (v - hilum[1]) ** 2 + (w - hilum[2]) ** 2
    dent = _DENT_DEPTH * np.exp(-away / (2 * _DENT_WIDTH**2))
    return float((1 - reach - _BUMP * bumps - dent) * scale)


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _depth_at(
    points: NDArray[np.float64],
    centre: NDArray[np.float64],
    semi_axes: NDArray[np.float64],
    hilum: NDArray[np.float64],
    waves: NDArray[np.float64],
    out: NDArray[np.float64],
) -> None:
    for i in range(points.shape[0]):
        out[i] = _depth(points[i, 0], points[i, 1], points[i, 2], centre, semi_axes, hilum, waves)


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _depth_of_plane(
    z: int,
    centre: NDArray[np.float64],
    semi_axes: NDArray[np.float64],
    hilum: NDArray[np.float64],
    waves: NDArray[np.float64],
    out: Plane,
) -> None:
    for y in range(out.shape[0]):
        for x in range(out.shape[1]):
            out[y, x] = _depth(z, y, x, centre, semi_axes, hilum, waves)
