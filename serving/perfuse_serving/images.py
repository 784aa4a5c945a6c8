"""What travels over HTTP: a slice or small volume as TIFF or NPY, checked before a byte of it is decoded."""

import io
import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

MAX_VOXELS = 64 * 2**20
"""Of a request: its logits and weights take some 20 bytes a voxel."""
MAX_BYTES = 2 * MAX_VOXELS + 2**20
"""Of a request's body: that many uint16 voxels, and headers."""

Kind = Literal["tiff", "npy"]
Voxels = npt.NDArray[Any]

_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_ALLOWED = "one channel of uint8 or uint16, [y, x] or [z, y, x]"


class RequestError(Exception):
    """A request that cannot be answered: an HTTP status of 4xx and one sentence."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status, self.sentence = status, sentence


@dataclass(frozen=True)
class Image:
    """A decoded request."""

    voxels: Voxels
    """uint8 or uint16, [y, x] or [z, y, x]."""
    kind: Kind
    """The kind of file that it came in, and that the answer goes out in."""


def decode(data: bytes) -> Image:
    """The voxels of a TIFF or NPY file; RequestError for anything else, other dtypes and shapes, and too many voxels.

    Shape and dtype are read from the header and checked first, so that a small file cannot claim much memory.
    """
    if data.startswith(_TIFF_MAGIC):
        return Image(_decode_tiff(data), "tiff")
    if data.startswith(np.lib.format.MAGIC_PREFIX):
        return Image(_decode_npy(data), "npy")
    raise RequestError(415, f"The body is neither a TIFF nor an NPY file; send {_ALLOWED}.")


def encode(voxels: Voxels, kind: Kind) -> bytes:
    """A file of the same kind as the request's."""
    out = io.BytesIO()
    if kind == "npy":
        np.save(out, voxels, allow_pickle=False)
    else:
        import tifffile

        tifffile.imwrite(out, voxels, photometric="minisblack", compression="zlib")
    return out.getvalue()


def _decode_npy(data: bytes) -> Voxels:
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, fortran_order, dtype = readers[version](stream)
    except Exception as error:
        raise RequestError(400, f"The NPY file's header cannot be read; send {_ALLOWED}.") from error
    _check(shape, dtype)
    if len(data) - stream.tell() != math.prod(shape) * dtype.itemsize:
        raise RequestError(400, f"The NPY file does not hold the {math.prod(shape)} voxels that its header states.")
    flat = np.frombuffer(data, dtype, offset=stream.tell())
    return flat.reshape(shape, order="F" if fortran_order else "C").astype(dtype.newbyteorder("="))


def _decode_tiff(data: bytes) -> Voxels:
    import tifffile

    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            if len(file.series) != 1:
                raise RequestError(422, f"The TIFF holds {len(file.series)} kinds of images; send {_ALLOWED}.")
            _check_channels(file.pages.first)
            _check(file.series[0].shape, file.series[0].dtype or np.dtype(object))
            voxels = np.asarray(file.asarray())
    except RequestError:
        raise
    except Exception as error:
        raise RequestError(400, f"The TIFF file cannot be decoded: {type(error).__name__}: {error}.") from error
    return voxels.astype(voxels.dtype.newbyteorder("="))


def _check_channels(page: Any) -> None:
    if page.samplesperpixel != 1:
        raise RequestError(422, f"The TIFF has {page.samplesperpixel} channels; send {_ALLOWED}.")


def _check(shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    if dtype.kind != "u" or dtype.itemsize > 2:
        raise RequestError(422, f"The voxels are {dtype}; send {_ALLOWED}.")
    if len(shape) not in (2, 3) or 0 in shape:
        raise RequestError(422, f"The shape is {shape}; send {_ALLOWED}, none empty.")
    if math.prod(shape) > MAX_VOXELS:
        raise RequestError(
            413,
            f"The image has {math.prod(shape)} voxels; at most {MAX_VOXELS} are taken. Scans are for `perfuse predict`.",
        )
