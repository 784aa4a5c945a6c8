"""Volumes whose voxels lie in one file one after the other: NIfTI-1 and -2 (x fastest), NumPy's .npy.

A gzipped file cannot be cut: when its voxels are first asked for it is unpacked, in bounded memory, into a nameless
file in the folder for temporary files (TMPDIR), which vanishes with the process.
"""

import gzip
import io
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from threading import Lock
from typing import Any, BinaryIO

import numpy as np

from perfuse import storage
from perfuse.errors import PlanError, SliceError, SourceError
from perfuse.geometry import Box, Index3, Spacing
from perfuse_ingest.sources.source import Voxels
from perfuse_ingest.sources.volumes.probes import digest_of_file
from perfuse_ingest.sources.volumes.volume import Volume, check_finite, volume_shape

_HEADER_BYTES = 64 * 1024
_UNPACK_BYTES = 4 * 2**20
_UM_PER_UNIT = {"unknown": 1e3, "mm": 1e3, "micron": 1.0, "meter": 1e6}
"""NIfTI files that name no unit are in millimetres, as their tools write them."""


@dataclass(frozen=True)
class Header:
    """What a file says of its voxels."""

    shape_zyx: Index3
    dtype: np.dtype[Any]
    """As stored, with its byte order."""
    offset: int
    """Of the first voxel, bytes."""
    voxel_size_um: Spacing | None = None


class FlatVolume(Volume):
    """A volume in one file."""

    _opened = ("_unpacked", "_unpacking")

    def __init__(self, url: str) -> None:
        super().__init__()
        self.url = url
        self._gzipped = url.lower().endswith(".gz")
        with storage.reaching(url):
            self._size = int(storage.filesystem(url).size(url))
        header = self._header()
        self._describe(url, header.shape_zyx, header.dtype)
        self._stored, self._offset = header.dtype, header.offset
        self.voxel_size_um = header.voxel_size_um
        self.largest_bytes = prod(self.shape_zyx[1:]) * self._stored.itemsize
        self.identity = digest_of_file(url)
        self._prepare()
        if not self._gzipped and self._size < self._end(self.shape_zyx[0]):
            self._refuse_truncated(self._size)

    def _prepare(self) -> None:
        self._unpacked: BinaryIO | None = None
        self._unpacking = Lock()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._prepare()

    def rows(self, box: Box, pool: Executor) -> Voxels:
        """See Source; only the box's rows are read."""
        if self._gzipped:
            self._unpack()
        voxels = np.empty(box.shape, self.dtype)

        def fill(z: int) -> None:
            voxels[z - box.start[0]] = self._plane(z, box)

        list(pool.map(fill, range(box.start[0], box.stop[0])))
        return voxels

    def _plane(self, z: int, box: Box) -> Voxels:
        first, last, columns = box.start[1], box.stop[1], self.shape_zyx[2]
        start = self._end(z) + first * columns * self._stored.itemsize
        stop = start + (last - first) * columns * self._stored.itemsize
        data = self._bytes(start, stop)
        if len(data) < stop - start:
            raise SliceError(f"Plane {z} of {self.url} cannot be read: the file has become shorter. Copy it again.")
        rows = np.frombuffer(data, self._stored).reshape(last - first, columns)[:, box.start[2] : box.stop[2]]
        check_finite(rows[None], Box((z, *box.start[1:]), (z + 1, *box.stop[1:])), self.url)
        return rows

    def _end(self, planes: int) -> int:
        """Where in the unpacked file so many planes end."""
        return self._offset + planes * prod(self.shape_zyx[1:]) * self._stored.itemsize

    def _bytes(self, start: int, stop: int) -> bytes:
        if self._unpacked is not None:
            return os.pread(self._unpacked.fileno(), stop - start, start)
        with storage.reaching(self.url):
            return bytes(storage.filesystem(self.url).cat_file(self.url, start=start, end=stop))

    def _header(self) -> Header:
        with storage.reaching(self.url):
            start = bytes(storage.filesystem(self.url).cat_file(self.url, start=0, end=min(_HEADER_BYTES, self._size)))
        if self._gzipped:
            with _naming(f"The header of {self.url}"):
                start = zlib.decompressobj(wbits=31).decompress(start, _HEADER_BYTES)
        parse = _npy_header if self.url.lower().endswith(".npy") else _nifti_header
        return parse(start, self.url)

    def _unpack(self) -> None:
        with self._unpacking:
            if self._unpacked is not None:
                return
            wanted, folder = self._end(self.shape_zyx[0]), tempfile.gettempdir()
            free = shutil.disk_usage(folder).free
            if wanted > free:
                raise PlanError(
                    f"{self.url} is gzipped, so it is unpacked first: that takes {wanted:,} bytes in {folder}, where "
                    f"{free:,} are free. Set TMPDIR to a folder with more room, or unpack the file yourself."
                )
            file = self._files.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
            with storage.reaching(self.url), storage.filesystem(self.url).open(self.url, "rb") as packed:
                self._copy(gzip.GzipFile(fileobj=packed), file)
            self._unpacked = file

    def _copy(self, packed: gzip.GzipFile, file: Any) -> None:
        while True:
            reached = file.tell()
            with _naming(f"Plane {self._plane_at(reached)} of {self.url}"):
                block = packed.read(_UNPACK_BYTES)
            if not block:
                break
            file.write(block)
        file.flush()
        if reached < self._end(self.shape_zyx[0]):
            self._refuse_truncated(reached)

    def _plane_at(self, offset: int) -> int:
        return max(0, offset - self._offset) // (self._end(1) - self._offset)

    def _refuse_truncated(self, size: int) -> None:
        raise SliceError(
            f"{self.url} ends within plane {self._plane_at(size)} of {self.shape_zyx[0]}: the file is truncated. "
            "Copy it again."
        )


@contextmanager
def _naming(what: str) -> Iterator[None]:
    try:
        yield
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise SliceError(f"{what} cannot be unpacked ({error}). Copy the file again.") from error


def _nifti_header(start: bytes, url: str) -> Header:
    from nibabel import Nifti1Header, Nifti2Header
    from nibabel.spatialimages import HeaderDataError
    from nibabel.wrapstruct import WrapStructError

    is_second = 540 in (int.from_bytes(start[:4], "little"), int.from_bytes(start[:4], "big"))
    try:
        header = (Nifti2Header if is_second else Nifti1Header).from_fileobj(io.BytesIO(start))
    except (HeaderDataError, WrapStructError, ValueError) as error:
        raise SourceError(
            f"{url} is no NIfTI file ({error}). Give a .nii or .nii.gz with its header inside."
        ) from error
    slope, shift = float(header["scl_slope"]), float(header["scl_inter"])
    if (np.isfinite(slope) and slope not in (0, 1)) or (slope and np.isfinite(slope) and np.isfinite(shift) and shift):
        raise SourceError(
            f"{url} scales its values (scl_slope {slope:g}, scl_inter {shift:g}): store them as they are."
        )
    shape = tuple(int(n) for n in header.get_data_shape())
    z, y, x = volume_shape(shape[::-1], header.get_data_dtype(), url)
    um = _UM_PER_UNIT[header.get_xyzt_units()[0]]
    # Zooms are float32: four digits after the decimal point of a micrometre is all they hold.
    x_um, y_um, z_um = (round(float(zoom) * um, 4) for zoom in header.get_zooms()[:3])
    return Header((z, y, x), header.get_data_dtype(), int(header["vox_offset"]), (z_um, y_um, x_um))


def _npy_header(start: bytes, url: str) -> Header:
    file = io.BytesIO(start)
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)
    except ValueError as error:
        raise SourceError(f"{url} is no .npy file ({error}).") from error
    if fortran:
        raise SourceError(f"{url} is stored in Fortran order: save it with numpy.ascontiguousarray.")
    return Header(volume_shape(shape, dtype, url), dtype, file.tell())
