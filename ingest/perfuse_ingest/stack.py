"""Stacks of TIFF slices: one file a slice, or the pages of one file; on any fsspec URL.

All headers are read first, so that a bad slice is named before hours are spent. Decoding happens slice by slice.
"""

import hashlib
import io
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile

from perfuse import storage
from perfuse.errors import SliceError, SourceError
from perfuse.geometry import Index3

TIFF = (".tif", ".tiff")
OTHER_IMAGES = (".jp2", ".j2k", ".png", ".jpg", ".jpeg", ".bmp", ".gif", ".nii", ".h5", ".dcm", ".npy")
HEADERS_AT_ONCE = 16
DTYPES = ("uint8", "uint16")


@dataclass(frozen=True)
class Slice:
    """One slice: a page of a file."""

    url: str
    page: int
    size: int
    """Bytes of the file."""
    shape: tuple[int, ...]
    dtype: str

    @property
    def name(self) -> str:
        """File name, with the page where there are several."""
        return storage.name_of(self.url) + (f"[{self.page}]" if self.page else "")


@dataclass(frozen=True)
class Stack:
    """A checked stack: all slices have one shape and one dtype."""

    url: str
    slices: tuple[Slice, ...]
    passed_over: tuple[str, ...]
    """Files that are no images."""

    @property
    def shape_zyx(self) -> Index3:
        """Slices, rows, columns."""
        rows, columns = self.slices[0].shape
        return len(self.slices), rows, columns

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the voxels."""
        return np.dtype(self.slices[0].dtype)

    def identity(self) -> list[Any]:
        """What tells this stack from another without reading it all: names, pages and sizes."""
        return [[s.name, s.size] for s in self.slices]

    def read(self, index: int) -> tuple[npt.NDArray[Any], bytes]:
        """One slice [y, x] and the SHA-256 of its bytes (of a page: of its stored segments).

        Raises SliceError naming file and index when it cannot be decoded.
        """
        one = self.slices[index]
        try:
            with storage.reaching(one.url):
                data = storage.filesystem(one.url).cat_file(one.url) if self._one_a_file else None
                with tifffile.TiffFile(io.BytesIO(data) if data is not None else _opened(one.url)) as tiff:
                    page = tiff.pages[one.page]
                    digest = hashlib.sha256(data) if data is not None else _segments(tiff, page)
                    return page.asarray(), digest.digest()
        except (ValueError, RuntimeError, OSError, tifffile.TiffFileError) as error:
            raise SliceError(f"Slice {index} ({one.url}) cannot be decoded: {error}. Replace the file.") from error

    @property
    def _one_a_file(self) -> bool:
        return len(self.slices) < 2 or self.slices[0].url != self.slices[1].url


def _opened(url: str) -> Any:
    return storage.filesystem(url).open(url, "rb")


def _segments(tiff: tifffile.TiffFile, page: Any) -> Any:
    total = hashlib.sha256()
    for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
        tiff.filehandle.seek(offset)
        total.update(tiff.filehandle.read(count))
    return total


def open_stack(source: str) -> Stack:
    """Find the slices of a source and check every header.

    Raises SourceError for an empty folder, images that are no TIFF, missing or double slice numbers; SliceError for a
    truncated slice, or one that differs in shape or dtype.
    """
    source = storage.normal(source)
    with storage.reaching(source):
        files = storage.filesystem(source)
        if not files.exists(source):
            raise SourceError(f"{source} does not exist. Give a folder of TIFF slices or one multi-page TIFF.")
        folder = files.isdir(source)
    urls, passed_over = _listed(source) if folder else ([source], ())
    with ThreadPoolExecutor(HEADERS_AT_ONCE) as pool:
        headers = list(pool.map(lambda item: _headers(item[1], item[0], one=folder), enumerate(urls)))
    slices = tuple(s for pages in headers for s in pages)
    _check_alike(slices)
    return Stack(source, slices, tuple(passed_over))


def _listed(source: str) -> tuple[list[str], list[str]]:
    files = storage.filesystem(source)
    names = sorted(storage.name_of(str(e["name"])) for e in files.ls(source, detail=True) if e["type"] == "file")
    names = [n for n in names if not n.startswith(".")]
    tiffs = [n for n in names if n.lower().endswith(TIFF)]
    strange = [n for n in names if n.lower().endswith(OTHER_IMAGES)]
    if strange:
        raise SourceError(f"{source} holds {strange[0]}, which is no TIFF slice. Move it away; allowed: .tif, .tiff.")
    if not tiffs:
        raise SourceError(f"{source} holds no TIFF slices (*.tif, *.tiff). Give the folder that holds them.")
    return [storage.join(source, n) for n in _in_order(source, tiffs)], [n for n in names if n not in tiffs]


def _in_order(source: str, names: Sequence[str]) -> list[str]:
    """Natural order; where names end in numbers, these must follow one another."""
    if len(names) == 1:
        return list(names)
    numbers = {name: _number(name) for name in names}
    lost = [name for name, number in numbers.items() if number is None]
    if lost:
        raise SourceError(f"{source}: {lost[0]} has no slice number in its name, so its place is unknown. Rename it.")
    by_number: dict[int, str] = {}
    for name, number in numbers.items():
        if number in by_number:
            raise SourceError(
                f"{source}: {by_number[number]} and {name} have the same slice number {number}. Keep one."
            )
        by_number[int(number or 0)] = name
    first, last = min(by_number), max(by_number)
    missing = [n for n in range(first, last + 1) if n not in by_number]
    if missing:
        shown = ", ".join(map(str, missing[:5])) + (" …" if len(missing) > 5 else "")
        raise SliceError(
            f"{source}: {len(missing)} slice numbers are missing between {by_number[first]} and {by_number[last]}: {shown}. "
            "Add the missing slices."
        )
    return [by_number[n] for n in sorted(by_number)]


def _number(name: str) -> int | None:
    digits = re.findall(r"\d+", name.rsplit(".", 1)[0])
    return int(digits[-1]) if digits else None


def _headers(url: str, index: int, *, one: bool) -> list[Slice]:
    try:
        with storage.reaching(url):
            size = int(storage.filesystem(url).size(url))
            with _opened(url) as file, tifffile.TiffFile(file) as tiff:
                if one and len(tiff.pages) > 1:
                    raise SliceError(f"Slice {index} ({url}) has {len(tiff.pages)} pages; a slice of a folder has one.")
                return [
                    _checked(page, url, index if one else number, number, size)
                    for number, page in enumerate(tiff.pages)
                ]
    except (tifffile.TiffFileError, ValueError, EOFError, KeyError, IndexError) as error:
        if isinstance(error, SourceError):
            raise
        raise SliceError(f"Slice {index} ({url}) is not a readable TIFF: {error}. Replace the file.") from error


def _checked(page: Any, url: str, index: int, number: int, size: int) -> Slice:
    if len(page.shape) != 2:
        raise SliceError(
            f"Slice {index} ({url}) has shape {page.shape}; a slice has rows and columns, one grey value a pixel."
        )
    if str(page.dtype) not in DTYPES:
        raise SliceError(f"Slice {index} ({url}) has dtype {page.dtype}; allowed: {', '.join(DTYPES)}.")
    ends = [o + n for o, n in zip(page.dataoffsets, page.databytecounts, strict=True)]
    if not ends or max(ends) > size:
        raise SliceError(
            f"Slice {index} ({url}) is truncated: {max(ends, default=0)} bytes are stated, {size} are there."
        )
    return Slice(url, number, size, tuple(page.shape), str(page.dtype))


def _check_alike(slices: Sequence[Slice]) -> None:
    first = slices[0]
    for index, other in enumerate(slices):
        if other.shape != first.shape:
            raise SliceError(
                f"Slice {index} ({other.url}) has shape {other.shape}; slice 0 has {first.shape}. All must agree."
            )
        if other.dtype != first.dtype:
            raise SliceError(
                f"Slice {index} ({other.url}) has dtype {other.dtype}; slice 0 has {first.dtype}. All must agree."
            )
