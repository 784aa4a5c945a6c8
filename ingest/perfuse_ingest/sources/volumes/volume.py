"""What all volumes in containers have in common."""

from concurrent.futures import Executor
from math import prod
from typing import Any

import numpy as np

from perfuse import storage
from perfuse.errors import SliceError, SourceError
from perfuse.geometry import Box, Index3, index3
from perfuse_ingest.sources.source import Source, Voxels


class Volume(Source):
    """Planes that are cut in any way; what is open is opened again in another process."""

    cuts_rows = True
    _opened: tuple[str, ...] = ()
    """Attributes that do not travel."""

    def _describe(self, url: str, shape_zyx: Index3, dtype: np.dtype[Any]) -> None:
        self.url, self.shape_zyx, self.dtype = url, shape_zyx, dtype.newbyteorder("=")
        self.names = tuple(f"z={z}" for z in range(shape_zyx[0]))

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_files", *self._opened)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        Source.__init__(self)
        vars(self).update(state)

    def read(self, box: Box, pool: Executor) -> tuple[Voxels, None]:
        """Voxels [z, y, x] of a box, and no digests. Raises SliceError naming planes, ServerError, PlanError."""
        return self.rows(box, pool), None

    def digests(self, start: int, stop: int, pool: Executor) -> None:
        """None: planes are not stored one by one."""


def volume_shape(shape: tuple[int, ...], dtype: np.dtype[Any], url: str) -> Index3:
    """z, y, x of a shape whose axes before those have length 1. Raises SourceError."""
    if len(shape) < 3 or 0 in shape or prod(shape) != prod(shape[-3:]):
        raise SourceError(
            f"{storage.public(url)} has shape {shape}: a volume has three axes, z, y and x, none of them empty, and "
            "other axes of length 1."
        )
    if dtype.kind not in "biuf":
        raise SourceError(f"{storage.public(url)} holds {dtype}: a volume holds integers or floats.")
    return index3(shape[-3:])


def check_finite(voxels: Voxels, box: Box, url: str) -> None:
    """SliceError unless each of the voxels of a box is a number."""
    if voxels.dtype.kind != "f" or np.isfinite([voxels.min(), voxels.max()]).all():
        return
    z, y, x = (int(k) + start for k, start in zip(np.argwhere(~np.isfinite(voxels))[0], box.start, strict=True))
    raise SliceError(
        f"Plane {z} of {storage.public(url)} holds {voxels[z - box.start[0], y - box.start[1], x - box.start[2]]} at row "
        f"{y}, column {x}. Every voxel needs a number: fill it first."
    )
