"""Statistics of one slab of level 0, gathered while its voxels are in memory."""

import hashlib
from concurrent.futures import Executor
from typing import Any

import numpy as np
import numpy.typing as npt

from perfuse import intensity
from perfuse.geometry import Index3, runs
from perfuse_ingest.measures import Measures
from perfuse_ingest.plan import Slab


class Tally:
    """Counts and extremes of a slab that comes whole, or in bands from the first row to the last.

    digests: of its slices; None where slices are not stored one by one: then those of the planes' voxels.
    """

    def __init__(
        self, pool: Executor, slab: Slab, dtype: np.dtype[Any], chunk_zyx: Index3, digests: list[bytes] | None
    ) -> None:
        self._pool, self._slab, self._chunk = pool, slab, chunk_zyx
        self._counts = np.zeros(intensity.bins(dtype), np.int64)
        self._extremes: list[npt.NDArray[Any]] = []
        self._digests = digests
        self._planes = [hashlib.sha256() for _ in range(slab.box.shape[0])] if digests is None else []

    def add(self, voxels: npt.NDArray[Any]) -> None:
        """Count rows [z, y, x] of the slab's planes."""
        layers, rows = runs(len(voxels), self._chunk[0]), runs(voxels.shape[1], self._chunk[1])
        cuts = [(slice(*layer), slice(*row)) for layer in layers for row in rows]
        found = list(self._pool.map(lambda cut: intensity.measure(voxels[cut], self._chunk[2]), cuts))
        for counts, _ in found:
            self._counts += counts
        self._extremes.append(np.stack([e for _, e in found]).reshape(len(layers), len(rows), -1, 2))
        list(self._pool.map(lambda k: self._planes[k].update(np.ascontiguousarray(voxels[k])), range(len(self._planes))))

    def store(self, measures: Measures) -> None:
        """Write the slab's rows."""
        digests = [plane.digest() for plane in self._planes] if self._digests is None else self._digests
        extremes = np.concatenate(self._extremes, axis=1)
        measures.store(self._slab, self._slab.box.start[0] // self._chunk[0], digests, self._counts, extremes)
