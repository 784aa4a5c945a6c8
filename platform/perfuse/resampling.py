"""Resampling along axes: linear interpolation whose triangle is as wide as the larger of the two voxels."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class AxisWeights:
    """For each output voxel along one axis, the input voxels that it is made of."""

    first: npt.NDArray[np.int64]
    """First input voxel."""
    counts: npt.NDArray[np.int64]
    """How many, from there on."""
    weights: npt.NDArray[np.float32]
    """[output, most]; each row sums to 1."""

    @classmethod
    def of(cls, inputs: int, outputs: int, factor: float, start: float = 0.0) -> "AxisWeights":
        """factor: size of an output voxel in input voxels; start: from the outer face of the first input to that of the first output."""
        centre = start + (np.arange(outputs) + 0.5) * factor - 0.5
        radius = max(1.0, factor)
        first = np.clip(np.floor(centre - radius).astype(np.int64) + 1, 0, inputs - 1)
        stop = np.clip(np.ceil(centre + radius).astype(np.int64), first + 1, inputs)
        reach = first[:, None] + np.arange((stop - first).max())
        weights = np.maximum(0, 1 - np.abs(reach - centre[:, None]) / radius) * (reach < stop[:, None])
        weights[weights.sum(axis=1) == 0, 0] = 1
        return cls(first, stop - first, (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32))

    def of_output(self, index: int) -> Iterator[tuple[int, np.float32]]:
        """Input voxels and their weights, in order."""
        for k in range(self.counts[index]):
            yield int(self.first[index] + k), self.weights[index, k]


def resample_plane(plane: npt.NDArray[Any], rows: AxisWeights, columns: AxisWeights) -> npt.NDArray[np.float32]:
    """A plane [y, x] of any dtype at other sizes, float32."""
    out = np.empty((len(rows.first), len(columns.first)), np.float32)
    _resample(plane, rows.first, rows.counts, rows.weights, columns.first, columns.counts, columns.weights, out)
    return out


@numba.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _resample(
    plane: npt.NDArray[Any],
    row_first: npt.NDArray[np.int64],
    row_counts: npt.NDArray[np.int64],
    row_weights: npt.NDArray[np.float32],
    column_first: npt.NDArray[np.int64],
    column_counts: npt.NDArray[np.int64],
    column_weights: npt.NDArray[np.float32],
    out: npt.NDArray[np.float32],
) -> None:
    line = np.empty(plane.shape[1], np.float32)
    for y in range(out.shape[0]):
        line[:] = 0
        for k in range(row_counts[y]):
            source, weight = plane[row_first[y] + k], row_weights[y, k]
            for x in range(line.size):
                line[x] += weight * np.float32(source[x])
        for x in range(out.shape[1]):
            total = np.float32(0)
            for k in range(column_counts[x]):
                total += column_weights[x, k] * line[column_first[x] + k]
            out[y, x] = total
