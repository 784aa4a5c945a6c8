"""TIFF slices on any fsspec URL: headers, checked without decoding; planes, with the digest of their bytes."""

import hashlib
import io
import logging
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile

from perfuse import storage
from perfuse.errors import PerfuseError, SliceError

DTYPES = ("uint8", "uint16")
_READ_AHEAD = 64 * 1024
_UNREADABLE = (
    *(ValueError, TypeError, LookupError, ArithmeticError, RuntimeError, OSError, EOFError, MemoryError),
    *(struct.error, tifffile.TiffFileError),
)
logging.getLogger("tifffile").addHandler(logging.NullHandler())  # what it reports, the errors below say once


@dataclass(frozen=True)
class Slice:
    """One slice whose header has been checked: a file of its own, or a page of a file."""

    url: str
    name: str
    """File name; with the page where a file holds several."""
    page: int
    ifd: int
    """Where the page's header begins, bytes."""
    size: int
    """Bytes: of the file, or of the page's stored segments."""
    shape: tuple[int, int]
    """Rows, columns."""
    dtype: str
    alone: bool
    """True for a file of its own."""


@contextmanager
def _opened(url: str) -> Iterator[Any]:
    """A file that remembers the last range read: on an object store, no byte of a header or page is fetched twice."""
    options = {"cache_type": "bytes", "block_size": _READ_AHEAD} if storage.is_remote(url) else {}
    with storage.filesystem(url).open(url, "rb", **options) as file:
        yield file


@contextmanager
def _naming(index: int, where: str) -> Iterator[None]:
    """Turn whatever a decoder raises into one message with file and index."""
    try:
        yield
    except PerfuseError:
        raise
    except _UNREADABLE as error:
        raise SliceError(f"Slice {index} ({where}) is no readable TIFF: {error}. Replace the file.") from error


def header(url: str, index: int) -> Slice:
    """The one slice of a file. Raises SliceError naming file and index."""
    pages = headers(url, index)
    if len(pages) > 1:
        raise SliceError(
            f"Slice {index} ({url}) has {len(pages)} pages, where each file of a folder holds one slice. To ingest one "
            "multi-page TIFF, give its own path instead of the folder's."
        )
    return pages[0]


def headers(url: str, index: int = 0) -> list[Slice]:
    """All pages of a file as slices, numbered from `index`. Raises SliceError naming file and index."""
    with _naming(index, url), storage.reaching(url), _opened(url) as file, tifffile.TiffFile(file) as tiff:
        _check_no_channels(tiff, url)
        count = len(tiff.pages)
        slices = [_checked(tiff, page, url, index + k, count) for k, page in enumerate(tiff.pages)]
        if not slices:
            raise SliceError(f"Slice {index} ({url}) holds no image. Replace the file.")
        _check_chain_ends(tiff, slices[-1], index + count)
        return slices


def _checked(tiff: tifffile.TiffFile, page: Any, url: str, index: int, count: int) -> Slice:
    if len(page.shape) != 2:
        raise SliceError(f"Slice {index} ({url}) has shape {page.shape}; a slice has rows and columns of grey values.")
    if str(page.dtype) not in DTYPES:
        raise SliceError(
            f"Slice {index} ({url}) has dtype {page.dtype}; allowed are {' and '.join(DTYPES)}. Convert the stack first."
        )
    end = max((o + n for o, n in zip(page.dataoffsets, page.databytecounts, strict=True)), default=0)
    if not end or end > tiff.filehandle.size:
        raise SliceError(
            f"Slice {index} ({url}) is truncated: its header states {end:,} bytes, {tiff.filehandle.size:,} are there. "
            "Copy the file again."
        )
    alone = count == 1
    name = storage.name_of(url) if alone else f"{storage.name_of(url)}[{page.index}]"
    size = int(tiff.filehandle.size) if alone else int(sum(page.databytecounts))
    rows, columns = page.shape
    return Slice(url, name, page.index, page.offset, size, (rows, columns), str(page.dtype), alone)


def _check_chain_ends(tiff: tifffile.TiffFile, last: Slice, index: int) -> None:
    """The last page must say that it is the last: in a truncated file it points beyond the end."""
    form, file = tiff.tiff, tiff.filehandle
    file.seek(last.ifd)
    (tags,) = struct.unpack(form.tagnoformat, file.read(form.tagnosize))
    file.seek(last.ifd + form.tagnosize + tags * form.tagsize)
    (following,) = struct.unpack(form.offsetformat, file.read(form.offsetsize))
    if following:
        raise SliceError(
            f"Slice {index} ({last.url}) is lost: the file is truncated after page {last.page}. Copy the file again."
        )


def _check_no_channels(tiff: tifffile.TiffFile, url: str) -> None:
    about = tiff.imagej_metadata or {}
    if int(about.get("images", 1)) > len(tiff.pages):
        raise SliceError(
            f"{url} states {about['images']} images in {len(tiff.pages)} page (ImageJ writes so above 4 GB). Save it "
            "as an image sequence or as BigTIFF."
        )
    if int(about.get("channels", 1)) * int(about.get("frames", 1)) > 1:
        raise SliceError(f"{url} holds several channels or times. Save the one that is wanted as a stack of its own.")


def read(one: Slice, index: int) -> tuple[npt.NDArray[Any], bytes]:
    """A slice's voxels [y, x], and the SHA-256 of the file's bytes (of a page: of its stored segments, in order).

    Raises SliceError naming file and index when it cannot be decoded, or has changed since its header was checked.
    """
    with _naming(index, one.url), storage.reaching(one.url):
        plane, digest = _read_file(one) if one.alone else _read_page(one)
        if plane.shape != one.shape or str(plane.dtype) != one.dtype:
            raise ValueError(f"it changed to {plane.shape} {plane.dtype} since it was checked")
        return plane, digest


def _read_file(one: Slice) -> tuple[npt.NDArray[Any], bytes]:
    data = storage.filesystem(one.url).cat_file(one.url)
    with tifffile.TiffFile(io.BytesIO(data)) as tiff:
        return tiff.pages[0].asarray(maxworkers=1), hashlib.sha256(data).digest()


def _read_page(one: Slice) -> tuple[npt.NDArray[Any], bytes]:
    with _opened(one.url) as file, tifffile.TiffFile(file) as tiff:
        tiff.filehandle.seek(one.ifd)
        page = tifffile.TiffPage(tiff, index=one.page)
        places = list(zip(page.dataoffsets, page.databytecounts, strict=True))
        start = min(o for o, _ in places)
        tiff.filehandle.seek(start)
        span = memoryview(tiff.filehandle.read(max(o + n for o, n in places) - start))
        digest = hashlib.sha256()
        for offset, size in places:
            digest.update(span[offset - start : offset - start + size])
        return np.asarray(page.asarray(maxworkers=1)), digest.digest()
