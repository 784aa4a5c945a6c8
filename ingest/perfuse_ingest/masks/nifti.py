"""NIfTI masks, NIfTI-1 or -2 in one file, plain or gzipped.

Voxels lie with x fastest, so a run of planes is a run of bytes, and nothing but the header needs a library.
A gzipped file cannot be cut: it is decoded once, plane by plane, and its bits stay in memory, an eighth of a byte a
voxel (46 MiB for a whole rat kidney of 750 × 571 × 903).
"""

import gzip
import zlib
from functools import cached_property
from typing import Any

import fsspec
import numpy as np
from numpy.typing import NDArray

from perfuse.errors import SourceError
from perfuse_ingest.masks.volume import MaskVolume, VoxelSize, three_axes

_UM_PER_UNIT = {"unknown": 1e3, "mm": 1e3, "micron": 1.0, "meter": 1e6}
"""Files that name no unit are in millimetres, as NIfTI tools write them."""


class NiftiMask(MaskVolume):
    """A mask stored as x, y, z, read as z, y, x."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._gzipped = url.lower().endswith(".gz")
        with fsspec.open(url, "rb") as file:
            header = _header(self._decoded(file), url)
        x, y, z = three_axes(tuple(int(n) for n in header.get_data_shape()), url)
        self.shape_zyx, self.dtype = (z, y, x), header.get_data_dtype()
        self._offset = int(header["vox_offset"])
        self.voxel_size_um = _voxel_size(header)

    def _decoded(self, file: Any) -> Any:
        return gzip.GzipFile(fileobj=file) if self._gzipped else file

    def _read(self, z_begin: int, z_end: int) -> NDArray[Any]:
        if self._gzipped:
            rows, columns = self.shape_zyx[1:]
            planes = np.unpackbits(self._bits[z_begin:z_end], axis=1, count=rows * columns)
            return planes.view(np.bool_).reshape(-1, rows, columns)
        with fsspec.open(self.url, "rb") as file:
            file.seek(self._offset + z_begin * self.shape_zyx[1] * self.shape_zyx[2] * self.dtype.itemsize)
            return self._next_planes(file, z_begin, z_end)

    @cached_property
    def _bits(self) -> NDArray[np.uint8]:
        """uint8[z, ⌈y · x / 8⌉]: the whole mask, packed."""
        depth, rows, columns = self.shape_zyx
        bits = np.empty((depth, -(-rows * columns // 8)), np.uint8)
        with fsspec.open(self.url, "rb") as file:
            decoded = self._decoded(file)
            decoded.seek(self._offset)
            for z in range(depth):
                bits[z] = np.packbits(self._as_mask(self._next_planes(decoded, z, z + 1), z))
        return bits

    def _next_planes(self, file: Any, z_begin: int, z_end: int) -> NDArray[Any]:
        shape = (z_end - z_begin, *self.shape_zyx[1:])
        wanted = int(np.prod(shape)) * self.dtype.itemsize
        try:
            content = file.read(wanted)
        except (EOFError, OSError, zlib.error) as error:
            raise SourceError(f"{self.url} is damaged at plane {z_begin} of {self.shape_zyx[0]} ({error})") from error
        if len(content) < wanted:
            raise SourceError(f"{self.url} ends within plane {z_begin} of {self.shape_zyx[0]}: the file is truncated")
        return np.frombuffer(content, self.dtype).reshape(shape)


def _header(file: Any, url: str) -> Any:
    from nibabel import Nifti1Header, Nifti2Header
    from nibabel.spatialimages import HeaderDataError
    from nibabel.wrapstruct import WrapStructError

    start = file.read(4)
    is_second = 540 in (int.from_bytes(start, "little"), int.from_bytes(start, "big"))
    file.seek(0)
    try:
        header = (Nifti2Header if is_second else Nifti1Header).from_fileobj(file)
    except (HeaderDataError, WrapStructError) as error:
        raise SourceError(f"{url} is not a NIfTI file ({error})") from error
    intercept = float(header["scl_inter"])
    if np.isfinite(intercept) and intercept != 0:
        raise SourceError(f"{url} shifts its values (scl_inter {intercept}): store a mask as it is, 0 and one value")
    return header


def _voxel_size(header: Any) -> VoxelSize:
    """Zooms are float32; four digits after the decimal point of a micrometre is all they hold."""
    um = _UM_PER_UNIT[header.get_xyzt_units()[0]]
    x, y, z = (round(float(zoom) * um, 4) for zoom in header.get_zooms()[:3])
    return z, y, x
