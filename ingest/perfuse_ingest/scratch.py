"""Decoded planes on this machine's disk, for slabs that are too large for memory and cannot be decoded in part."""

import os
import tempfile
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from perfuse.geometry import Box
from perfuse.settings import scratch_folder

Voxels = npt.NDArray[Any]


class PlaneFile:
    """Voxels of a box in an unnamed file: gone when closed, or when the process is killed."""

    def __init__(self, box: Box, dtype: np.dtype[Any]) -> None:
        self._box, self._dtype = box, dtype
        folder = scratch_folder()
        folder.mkdir(parents=True, exist_ok=True)
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by __exit__

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, first: int, planes: Voxels) -> None:
        """Store whole planes, from plane `first` of the scan on."""
        self._file.seek(self._offset(first, 0))
        self._file.write(np.ascontiguousarray(planes, self._dtype).data)

    def rows(self, band: Box) -> Voxels:
        """The rows of a band over all planes of the box."""
        voxels = np.empty(band.shape, self._dtype)
        self._file.flush()
        for plane, z in zip(voxels, range(band.start[0], band.stop[0]), strict=True):
            if os.preadv(self._file.fileno(), [plane.data], self._offset(z, band.start[1])) != plane.nbytes:
                raise OSError(f"The scratch file in {scratch_folder()} was cut off: plane {z} is not whole.")
        return voxels

    def _offset(self, plane: int, row: int) -> int:
        _, rows, columns = self._box.shape
        return ((plane - self._box.start[0]) * rows + row) * columns * self._dtype.itemsize
