"""Statistics of one slab of level 0, gathered while its voxels are in memory."""

from collections.abc import Sequence
from concurrent.futures import Executor
from typing import Any

import numpy as np
import numpy.typing as npt

from perfuse import intensity
from perfuse.geometry import Index3, runs
from perfuse_ingest.measures import Measures
from perfuse_ingest.plan import Slab


class Tally:
    """Counts and extremes of a slab that comes whole, or in bands from the first row to the last."""

    def __init__(self, pool: Executor, slab: Slab, dtype: np.dtype[Any], chunk_zyx: Index3) -> None:
        self._pool, self._slab, self._chunk = pool, slab, chunk_zyx
        self._counts = np.zeros(intensity.bins(dtype), np.int64)
        self._extremes: list[npt.NDArray[Any]] = []

    def add(self, voxels: npt.NDArray[Any]) -> None:
        """Count rows [z, y, x] of the slab's planes."""
        layers, rows = runs(len(voxels), self._chunk[0]), runs(voxels.shape[1], self._chunk[1])
        cuts = [(slice(*layer), slice(*row)) for layer in layers for row in rows]
        found = list(self._pool.map(lambda cut: intensity.measure(voxels[cut], self._chunk[2]), cuts))
        for counts, _ in found:
            self._counts += counts
        self._extremes.append(np.stack([e for _, e in found]).reshape(len(layers), len(rows), -1, 2))

    def store(self, measures: Measures, digests: Sequence[bytes]) -> None:
        """Write the slab's rows; digests: of its slices, none where slices are not stored one by one."""
        extremes = np.concatenate(self._extremes, axis=1)
        measures.store(self._slab, self._slab.box.start[0] // self._chunk[0], digests, self._counts, extremes)
