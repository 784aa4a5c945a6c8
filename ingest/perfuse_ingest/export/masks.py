"""A label from a threshold on, slab by slab."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from perfuse.catalog import Scan
from perfuse.console import progress
from perfuse.geometry import Box, index3, runs
from perfuse.parallel import in_order

MOST_VOXELS = 2**29
"""Of a slab, and of all that wait for their turn."""
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Slabs:
    """The voxels of a label from a threshold of 255 on."""

    scan: Scan
    label: str
    threshold: int

    def __iter__(self) -> Iterator[tuple[int, Mask]]:
        """Each slab as a mask, bool[z, y, x]; see `over`."""
        return self.over(self.read)

    def over(self, read: Callable[[Box], npt.NDArray[Any]]) -> Iterator[tuple[int, npt.NDArray[Any]]]:
        """What `read` answers of each slab, with the number of its first slice.

        Slabs are as thick as the label's shards, where slices are not huge.
        """
        depth, rows, columns = self.scan.shape_zyx
        stored = self.scan.label(self.label)
        thick = min(index3(stored.shards or stored.chunks)[0], max(1, MOST_VOXELS // (rows * columns)))
        ahead = min(2 * (os.cpu_count() or 1), MOST_VOXELS // (thick * rows * columns))
        cuts = [Box((a, 0, 0), (b, rows, columns)) for a, b in runs(depth, thick)]
        with progress(f"export {self.label}, slabs", len(cuts)) as advance:
            for box, values in zip(cuts, in_order(read, cuts, waiting=ahead), strict=True):
                yield box.start[0], values
                advance()

    def read(self, box: Box) -> Mask:
        """The mask inside a box."""
        return np.asarray(self.scan.read_label(self.label, box) >= self.threshold)

    def values(self, box: Box) -> npt.NDArray[np.uint8]:
        """The label's values inside a box from the threshold on, 0 below."""
        values = self.scan.read_label(self.label, box)
        return np.asarray(np.where(values >= self.threshold, values, 0), np.uint8)
