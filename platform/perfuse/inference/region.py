"""Which tiles a network has to see: those that a box of interest depends on; no background, if the contract says so."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from perfuse.catalog import Scan
from perfuse.contract import Forward
from perfuse.geometry import Box, index3
from perfuse.inference.grid import Grid
from perfuse.measured import occupancy


@dataclass(frozen=True)
class Region:
    """Parts of a member's grid that are needed."""

    grid: Grid
    interest: Box | None
    """In voxels of the grid; None: everywhere."""
    busy: npt.NDArray[np.bool_] | None
    """Which chunks of the scan are worth seeing; None: background is not told apart."""

    @classmethod
    def of(cls, grid: Grid, forward: Forward, roi: Box | None) -> "Region":
        """roi: in voxels of the scan."""
        busy = _busy(grid.scan) if forward.skip_background else None
        return cls(grid, None if roi is None else grid.covering(roi), busy)

    @property
    def everywhere(self) -> bool:
        """Whether nothing is left out."""
        return self.interest is None and self.busy is None

    def needed(self, box: Box) -> bool:
        """Whether a box of the grid touches what is asked for, in a chunk that is worth seeing."""
        if self.interest is not None and box.intersect(self.interest).empty:
            return False
        if self.busy is None:
            return True
        inside = self.grid.in_scan(box)
        chunk = self.grid.scan.image.chunks
        first = index3([a // c for a, c in zip(inside.start, chunk, strict=True)])
        last = index3([-(-b // c) for b, c in zip(inside.stop, chunk, strict=True)])
        return bool(self.busy[Box(first, last).slices].any())


def _busy(scan: Scan) -> npt.NDArray[np.bool_] | None:
    """Chunks that hold organ, where that is marked, and more than one intensity; None where neither is known."""
    share, extremes = scan.organ_share(), occupancy(scan.group)
    organ = None if share is None else share > 0
    varied = None if extremes is None else extremes[..., 0] < extremes[..., 1]
    return varied if organ is None else organ if varied is None else organ & varied
