"""The bytes of one file, wherever they lie: on a disk, in a store, on a web server, inside a zip or tar archive.

Whole, by range, or as a file that fetches what is read. Nothing stays open, so that workers can be sent these.
"""

import hashlib
import io
import os
import struct
import zlib
from dataclasses import dataclass, replace
from typing import BinaryIO
from urllib.parse import unquote, urlsplit

from perfuse import storage

READ_AHEAD = 64 * 1024
_PIECE = 4 * 1024 * 1024
_WHOLE_AT_MOST = 256 * 1024 * 1024
"""A file that a web server without byte ranges may have, to be fetched whole for a part of it."""
_LOCAL_HEADER = struct.Struct("<4s5H3I2H")
"""What stands before a member's bytes in a zip archive."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A file's bytes. Errors of reading are OSError, ValueError or zlib.error."""

    url: str
    """Where they lie: the file, or the archive that holds it."""
    size: int
    """Bytes; −1 until `settled` where a listing does not say it."""
    start: int = 0
    """Where it begins in the archive, bytes; of a zip member, until `settled`, where its header does."""
    deflated: int | None = None
    """Bytes in the archive, of a compressed member."""
    crc: int | None = None
    """Checksum of a zip member's bytes."""
    member: str = ""
    """Its path in the archive."""

    @property
    def name(self) -> str:
        """File name, without folders."""
        return storage.name_of(self.member) if self.member else unquoted_name(self.url)

    @property
    def where(self) -> str:
        """What messages call it: its URL, or ARCHIVE!MEMBER."""
        return f"{storage.public(self.url)}!{self.member}" if self.member else storage.public(self.url)

    @property
    def remote(self) -> bool:
        """True when each read asks a server."""
        return storage.is_remote(self.url)

    @property
    def cuts(self) -> bool:
        """True when reading a part costs about that part."""
        return not self.remote and self.deflated is None

    def settled(self) -> "Stored":
        """The same, with the size and place that its listing left open."""
        if self.size < 0:
            return replace(self, size=size_of(self.url))
        if self.crc is None:
            return self
        header = _LOCAL_HEADER.unpack(fetch(self.url, self.start, self.start + _LOCAL_HEADER.size))
        if header[0] != b"PK\x03\x04":
            raise ValueError("the archive is damaged: no member begins where its directory says")
        return replace(self, start=self.start + _LOCAL_HEADER.size + header[-2] + header[-1])

    def whole(self) -> bytes:
        """All bytes. Raises ValueError when they are no longer what they were."""
        if self.deflated is not None:
            data = zlib.decompressobj(-15).decompress(
                fetch(self.url, self.start, self.start + self.deflated), self.size
            )
        elif self.member:
            data = fetch(self.url, self.start, self.start + self.size)
        elif self.remote:
            data = bytes(storage.filesystem(self.url).cat_file(self.url))
        else:
            data = storage.local_path(self.url).read_bytes()
        if len(data) != self.size or (self.crc is not None and zlib.crc32(data) != self.crc):
            raise ValueError("its bytes are not those that were there when it was checked")
        return data

    def open(self) -> BinaryIO:
        """The bytes as a file; on a server, no byte of a header is asked for twice."""
        if self.deflated is not None:
            return io.BufferedReader(_Inflating(self), READ_AHEAD)
        if self.member or self.remote:
            return io.BufferedReader(_Ranges(self), READ_AHEAD if self.remote else io.DEFAULT_BUFFER_SIZE)
        return storage.local_path(self.url).open("rb")

    def sha256(self) -> bytes:
        """The digest of all bytes; on a disk, with a few of them in memory."""
        if not self.cuts:
            return hashlib.sha256(self.whole()).digest()
        digest = hashlib.sha256()
        for start in range(0, self.size, _PIECE):
            stop = min(start + _PIECE, self.size)
            digest.update(fetch(self.url, self.start + start, self.start + stop))
        return digest.digest()


def fetch(url: str, start: int, stop: int) -> bytes:
    """Bytes start … stop − 1 of a file. Raises ValueError when it ends before."""
    data = _fetch_remote(url, start, stop) if storage.is_remote(url) else _fetch_local(url, start, stop)
    if len(data) != stop - start:
        raise ValueError(f"the file ends at byte {start + len(data):,}, where {stop:,} were expected")
    return data


def _fetch_local(url: str, start: int, stop: int) -> bytes:
    with storage.local_path(url).open("rb") as file:
        file.seek(start)
        return file.read(stop - start)


def _fetch_remote(url: str, start: int, stop: int) -> bytes:
    files = storage.filesystem(url)
    if not is_http(url):
        return bytes(files.cat_file(url, start=start, end=stop))
    try:
        return fetch_http(url, start, stop)
    except ValueError:  # a server without byte ranges
        if (size := size_of(url)) > _WHOLE_AT_MOST:
            raise ValueError(
                f"its server sends no byte ranges, and {size:,} bytes are not fetched for a part"
            ) from None
        return bytes(files.cat_file(url))[start:stop]


def fetch_http(url: str, start: int, stop: int) -> bytes:
    """Bytes of a file on a web server. Raises ValueError when the server sends no byte ranges."""
    with storage.filesystem(url).open(url, "rb", size=stop, cache_type="none") as file:
        file.seek(start)
        return bytes(file.read(stop - start))


def unquoted_name(url: str) -> str:
    """The name of the file at a URL."""
    return unquote(storage.name_of(urlsplit(url).path)) if is_http(url) else storage.name_of(url)


def is_http(url: str) -> bool:
    """True for web servers."""
    return url.startswith(("http://", "https://"))


def size_of(url: str) -> int:
    """Bytes of a file. Raises FileNotFoundError, and what the server says; ValueError when it does not say the size."""
    if not storage.is_remote(url):
        return storage.local_path(url).stat().st_size
    try:
        size = storage.filesystem(url).info(url)["size"]
    except FileNotFoundError as error:  # of a web server, whatever went wrong
        if error.__cause__ is not None and getattr(error.__cause__, "status", None) not in (404, 410):
            raise error.__cause__ from None
        raise
    if size is None:
        raise ValueError("its server does not say its size")
    return int(size)


class _Ranges(io.RawIOBase):
    """A part of a file as a file; each read fetches a range."""

    def __init__(self, stored: Stored) -> None:
        self._stored, self._at = stored, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._stored.size}[whence]
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        start = min(self._at, self._stored.size)
        stop = min(start + len(buffer), self._stored.size)
        if start < stop:
            buffer[: stop - start] = self._bytes(start, stop)
        self._at = stop
        return stop - start

    def _bytes(self, start: int, stop: int) -> bytes:
        return fetch(self._stored.url, self._stored.start + start, self._stored.start + stop)


class _Inflating(_Ranges):
    """A compressed zip member as a file, inflated as far as it is read."""

    def __init__(self, stored: Stored) -> None:
        super().__init__(stored)
        self._inflate, self._fed, self._inflated = zlib.decompressobj(-15), 0, bytearray()

    def _bytes(self, start: int, stop: int) -> bytes:
        packed = self._stored.deflated or 0
        while len(self._inflated) < stop:
            upto = min(self._fed + READ_AHEAD, packed)
            if self._fed == upto:
                raise ValueError(f"it holds {len(self._inflated):,} bytes, where {self._stored.size:,} were stored")
            self._inflated += self._inflate.decompress(
                fetch(self._stored.url, self._stored.start + self._fed, self._stored.start + upto)
            )
            self._fed = upto
        return bytes(self._inflated[start:stop])
