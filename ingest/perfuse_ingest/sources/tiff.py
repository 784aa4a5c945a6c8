"""TIFF slices: headers, checked without decoding; voxels, whole or by rows, segment by segment."""

import hashlib
import io
import logging
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import tifffile

from perfuse import storage
from perfuse.errors import SliceError
from perfuse_ingest.sources.slices import Part, Slice, naming
from perfuse_ingest.sources.source import Voxels
from perfuse_ingest.sources.stored import Stored

Fetch = Callable[[int, int], "bytes | memoryview"]
"""Bytes of a file, by offset and count."""
_BAND = 8 * 1024 * 1024
"""Bytes of raw rows that are held at once."""
_SEGMENT_AT_MOST = 64 * 1024 * 1024
"""Decoded bytes of a strip or tile; larger ones are not held beside the voxels."""
logging.getLogger("tifffile").addHandler(logging.NullHandler())  # what it reports, the errors below say once


@dataclass(frozen=True, slots=True)
class TiffSlice(Slice):
    """A TIFF of its own, or a page of one."""

    kind = "TIFF"
    page: int
    ifd: int
    """Where the page's header begins, bytes."""
    alone: bool
    """True for a file of its own."""
    segments_cut: bool
    """True when its strips or tiles are decoded one by one."""

    @property
    def name(self) -> str:
        """See Slice."""
        return self.stored.name if self.alone else f"{self.stored.name}[{self.page}]"

    @property
    def cuts(self) -> bool:
        """See Slice."""
        return self.segments_cut and self.stored.cuts

    def read(self, part: Part, out: Voxels) -> bytes:
        """See Slice."""
        if not self.alone:
            with self._page() as (page, file):
                fetch = _gathered(file, page)
                _decode(page, fetch, part, out)
                return _digest(page, fetch)
        data = self.stored.whole()
        with tifffile.TiffFile(io.BytesIO(data)) as tiff:
            page = tiff.pages[0]
            self._insist_unchanged(page.shape, page.dtype)
            view = memoryview(data)
            _decode(page, lambda offset, count: view[offset : offset + count], part, out)
        return hashlib.sha256(data).digest()

    def rows(self, part: Part, out: Voxels) -> None:
        """See Slice."""
        with self._page() as (page, file):
            _decode(page, _reading(file), part, out)

    def digest(self) -> bytes:
        """See Slice."""
        if self.alone:
            return self.stored.sha256()
        with self._page() as (page, file):
            return _digest(page, _reading(file) if self.stored.cuts else _gathered(file, page))

    @contextmanager
    def _page(self) -> Iterator[tuple[Any, Any]]:
        with self.stored.open() as file, tifffile.TiffFile(file) as tiff:
            tiff.filehandle.seek(self.ifd)
            page = tifffile.TiffPage(tiff, index=self.page)
            self._insist_unchanged(page.shape, page.dtype)
            yield page, file


def headers(stored: Stored, index: int, *, pages: bool) -> list[TiffSlice]:
    """The slices of a file, numbered from `index`: one, unless `pages`. Raises SliceError naming file and index."""
    with naming(index, stored.where, TiffSlice.kind), storage.reaching(stored.url):
        stored = stored.settled()
        with stored.open() as file, tifffile.TiffFile(file) as tiff:
            _check_no_channels(tiff, stored.where)
            count = len(tiff.pages)
            _check_pages(stored, index, count, pages)
            slices = [_checked(page, stored, index + k, count) for k, page in enumerate(tiff.pages)]
            _check_chain_ends(tiff, slices[-1], index + count)
            return slices


def _check_pages(stored: Stored, index: int, count: int, pages: bool) -> None:
    if not count:
        raise SliceError(f"Slice {index} ({stored.where}) holds no image. Replace the file.")
    if count > 1 and not pages:
        raise SliceError(
            f"Slice {index} ({stored.where}) has {count} pages, where each file of a folder holds one slice. To ingest "
            "one multi-page TIFF, give its own path instead of the folder's."
        )
    if count > 1 and stored.deflated is not None:
        raise SliceError(
            f"{stored.where} has {count} pages and is compressed by the archive, so that no page can be read alone. "
            "Unpack it, or store it uncompressed (zip -0)."
        )


def _checked(page: Any, stored: Stored, index: int, count: int) -> TiffSlice:
    if len(page.shape) != 2:
        raise SliceError(
            f"Slice {index} ({stored.where}) has shape {page.shape}; a slice has rows and columns of grey values."
        )
    if page.dtype is None:
        raise SliceError(
            f"Slice {index} ({stored.where}) has {page.bitspersample} bits of an unknown kind. Convert the stack first."
        )
    end = max((o + n for o, n in zip(page.dataoffsets, page.databytecounts, strict=True)), default=0)
    if not end or end > stored.size:
        raise SliceError(
            f"Slice {index} ({stored.where}) is truncated: its header states {end:,} bytes, {stored.size:,} are there. "
            "Copy the file again."
        )
    alone = count == 1
    return TiffSlice(
        stored,
        size=stored.size if alone else int(sum(page.databytecounts)),
        shape=(int(page.shape[0]), int(page.shape[1])),
        dtype=sys.intern(str(page.dtype)),
        page=page.index,
        ifd=page.offset,
        alone=alone,
        segments_cut=_segments_cut(page),
    )


def _segments_cut(page: Any) -> bool:
    height, width = (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, page.imagewidth)
    small = height * width * page.dtype.itemsize <= _SEGMENT_AT_MOST
    return bool(page.is_contiguous or (height < page.imagelength and small))


def _check_chain_ends(tiff: tifffile.TiffFile, last: TiffSlice, index: int) -> None:
    """The last page must say that it is the last: in a truncated file it points beyond the end."""
    form, file = tiff.tiff, tiff.filehandle
    file.seek(last.ifd)
    (tags,) = struct.unpack(form.tagnoformat, file.read(form.tagnosize))
    file.seek(last.ifd + form.tagnosize + tags * form.tagsize)
    (following,) = struct.unpack(form.offsetformat, file.read(form.offsetsize))
    if following:
        raise SliceError(
            f"Slice {index} ({last.stored.where}) is lost: the file is truncated after page {last.page}. "
            "Copy the file again."
        )


def _check_no_channels(tiff: tifffile.TiffFile, where: str) -> None:
    about = tiff.imagej_metadata or {}
    if int(about.get("images", 1)) > len(tiff.pages):
        raise SliceError(
            f"{where} states {about['images']} images in {len(tiff.pages)} page (ImageJ writes so above 4 GB). Save it "
            "as an image sequence or as BigTIFF."
        )
    if int(about.get("channels", 1)) * int(about.get("frames", 1)) > 1:
        raise SliceError(f"{where} holds several channels or times. Save the one that is wanted as a stack of its own.")


def _decode(page: Any, fetch: Fetch, part: Part, out: Voxels) -> None:
    """Fill `out` from the rows or segments that meet it, one after the other."""
    if page.is_contiguous:
        _copy_raw(page, fetch, part, out)
        return
    rows, columns = part
    for index in _meeting(page, part):
        data = fetch(page.dataoffsets[index], page.databytecounts[index])
        if not len(data):
            raise ValueError(f"strip or tile {index} is not stored")
        voxels, (_, _, top, left, _), _ = page.decode(bytes(data), index, jpegtables=page.jpegtables)
        _, height, width, _ = voxels.shape
        y0, y1 = max(rows.start, top), min(rows.stop, top + height)
        x0, x1 = max(columns.start, left), min(columns.stop, left + width)
        out[y0 - rows.start : y1 - rows.start, x0 - columns.start : x1 - columns.start] = voxels[
            0, y0 - top : y1 - top, x0 - left : x1 - left, 0
        ]


def _copy_raw(page: Any, fetch: Fetch, part: Part, out: Voxels) -> None:
    rows, columns = part
    dtype = page.dtype.newbyteorder(page.parent.byteorder)
    line = page.imagewidth * dtype.itemsize
    band = max(1, _BAND // line)
    for top in range(rows.start, rows.stop, band):
        bottom = min(top + band, rows.stop)
        data = fetch(page.dataoffsets[0] + top * line, (bottom - top) * line)
        raw = np.frombuffer(data, dtype).reshape(bottom - top, page.imagewidth)
        out[top - rows.start : bottom - rows.start] = raw[:, columns]


def _meeting(page: Any, part: Part) -> Iterator[int]:
    """Indices of the strips or tiles that meet rows × columns."""
    rows, columns = part
    height, width = (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, page.imagewidth)
    across = -(-page.imagewidth // width)
    for down in range(rows.start // height, -(-rows.stop // height)):
        for along in range(columns.start // width, -(-columns.stop // width)):
            yield down * across + along


def _reading(file: Any) -> Fetch:
    def fetch(offset: int, count: int) -> bytes:
        file.seek(offset)
        data: bytes = file.read(count)
        return data

    return fetch


def _gathered(file: Any, page: Any) -> Fetch:
    """All segments of a page by one read, unless far more lies between them."""
    places = list(zip(page.dataoffsets, page.databytecounts, strict=True))
    start, stop = min(o for o, _ in places), max(o + n for o, n in places)
    if stop - start > 2 * sum(n for _, n in places):
        return _reading(file)
    span = memoryview(_reading(file)(start, stop - start))
    return lambda offset, count: span[offset - start : offset - start + count]


def _digest(page: Any, fetch: Fetch) -> bytes:
    """SHA-256 of a page's segments, in order."""
    digest = hashlib.sha256()
    for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
        for start in range(0, count, _BAND):
            digest.update(fetch(offset + start, min(_BAND, count - start)))
    return digest.digest()
