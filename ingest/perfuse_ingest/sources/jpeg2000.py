"""JPEG 2000 slices: headers from the SIZ marker, without decoding; voxels by OpenJPEG, one thread a slice.

JPEG 2000 has no checksums: bytes that were altered in the middle of a codestream decode to other voxels without a
complaint. What is found is a file that ends early.
"""

import hashlib
import struct
from dataclasses import dataclass
from typing import Any

import imagecodecs

from perfuse import storage
from perfuse.errors import SliceError
from perfuse_ingest.sources.slices import Part, Slice, naming
from perfuse_ingest.sources.source import Voxels
from perfuse_ingest.sources.stored import Stored

_SIGNATURE = b"\x00\x00\x00\x0cjP  \r\n\x87\n"
_SIZ = struct.Struct(">2s2sHH8IH")
"""Start of codestream, the SIZ marker, and what it says before the components."""
_BEGIN, _END = b"\xff\x4f", b"\xff\xd9"


@dataclass(frozen=True, slots=True)
class Jpeg2000Slice(Slice):
    """One file; its codestream lies between two of its bytes."""

    kind = "JPEG 2000"
    stream: tuple[int, int]

    def read(self, part: Part, out: Voxels) -> bytes:
        """See Slice."""
        data = self.stored.whole()
        _insist_ends(data[self.stream[1] - len(_END) : self.stream[1]])
        voxels = imagecodecs.jpeg2k_decode(data, numthreads=1)
        self._insist_unchanged(voxels.shape, voxels.dtype)
        out[...] = voxels[part]
        return hashlib.sha256(data).digest()


def header(stored: Stored, index: int) -> Jpeg2000Slice:
    """The slice of a file. Raises SliceError naming file and index."""
    with naming(index, stored.where, Jpeg2000Slice.kind), storage.reaching(stored.url):
        stored = stored.settled()
        with stored.open() as file:
            stream = _codestream(file, stored, index)
            file.seek(stream[0])
            shape, dtype = _size(file, stored, index)
            if stored.cuts:
                file.seek(stream[1] - len(_END))
                _insist_ends(file.read(len(_END)))
        return Jpeg2000Slice(stored, stored.size, shape, dtype, stream)


def _codestream(file: Any, stored: Stored, index: int) -> tuple[int, int]:
    """Where the codestream begins and ends, by the boxes of a JP2 file."""
    if file.read(len(_SIGNATURE)) != _SIGNATURE:
        return 0, stored.size
    at = len(_SIGNATURE)
    while at < stored.size:
        file.seek(at)
        (length, kind), head = struct.unpack(">I4s", file.read(8)), 8
        if length == 1:
            (length,), head = struct.unpack(">Q", file.read(8)), 16
        end = at + length if length else stored.size
        if end > stored.size or end < at + head:
            raise SliceError(
                f"Slice {index} ({stored.where}) is truncated: its boxes state {end:,} bytes, {stored.size:,} are "
                "there. Copy the file again."
            )
        if kind == b"jp2c":
            return at + head, end
        if kind == b"jp2h" and b"pclr" in file.read(length - head):
            raise SliceError(f"Slice {index} ({stored.where}) has a palette of colours; a slice has grey values.")
        at = end
    raise ValueError("it holds no codestream")


def _size(file: Any, stored: Stored, index: int) -> tuple[tuple[int, int], str]:
    begin, siz, _, _, right, bottom, left, top, _, _, _, _, components = _SIZ.unpack(file.read(_SIZ.size))
    if (begin, siz) != (_BEGIN, b"\xff\x51"):
        raise ValueError("its codestream does not begin as one")
    if components != 1:
        raise SliceError(
            f"Slice {index} ({stored.where}) has {components} components; a slice has one, of grey values."
        )
    depth, across, down = struct.unpack("3B", file.read(3))
    bits = (depth & 0x7F) + 1
    kind = f"{'int' if depth >> 7 else 'uint'}{8 if bits <= 8 else 16 if bits <= 16 else 32}"
    return (-(-bottom // down) - -(-top // down), -(-right // across) - -(-left // across)), kind


def _insist_ends(tail: bytes) -> None:
    if tail != _END:
        raise ValueError("it is truncated: its codestream does not end with the marker for it")
