"""Which tiles a network has to see: those that a box of interest depends on, and where the organ is, if the contract says so."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from perfuse import volumes
from perfuse.contract import Forward
from perfuse.geometry import Box, Index3, along_axis, index3, move_axis, runs, tile_starts
from perfuse.inference.grid import Grid


@dataclass(frozen=True)
class Region:
    """Parts of a member's grid that are needed."""

    grid: Grid
    interest: Box | None
    """In voxels of the grid; None: everywhere."""
    organ_share: npt.NDArray[np.int64] | None
    """Organ voxels of each chunk of the scan; None: background is not told apart."""

    @classmethod
    def of(cls, grid: Grid, forward: Forward, roi: Box | None) -> "Region":
        """roi: in voxels of the scan. A contract that skips background sees everything where the organ is not marked."""
        share = grid.scan.organ_share() if forward.skip_background else None
        return cls(grid, None if roi is None else grid.covering(roi), share)

    @property
    def everywhere(self) -> bool:
        """Whether nothing is left out."""
        return self.interest is None and self.organ_share is None

    def needed(self, box: Box) -> bool:
        """Whether a box of the grid touches what is asked for, in a chunk that holds organ."""
        if self.interest is not None and box.intersect(self.interest).empty:
            return False
        if self.organ_share is None:
            return True
        inside = self.grid.in_scan(box)
        chunk = volumes.chunk_shape(self.grid.scan.shape_zyx)
        first = index3([a // c for a, c in zip(inside.start, chunk, strict=True)])
        last = index3([-(-b // c) for b, c in zip(inside.stop, chunk, strict=True)])
        return bool(self.organ_share[Box(first, last).slices].any())


def tiles(shape_zyx: Index3, forward: Forward, axis: int, planes: int) -> Iterator[Box]:
    """The tiles of a grid along an axis, so many planes thick: the part of each that lies inside."""
    depth, height, width = move_axis(shape_zyx, axis)
    for first, last in runs(depth, planes):
        for top in tile_starts(height, forward.tile, forward.stride):
            for left in tile_starts(width, forward.tile, forward.stride):
                rows, columns = (top, min(top + forward.tile, height)), (left, min(left + forward.tile, width))
                yield along_axis(axis, (first, last), rows, columns)
