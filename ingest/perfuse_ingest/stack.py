"""A stack of slices: a folder with one TIFF a slice, or the pages of one TIFF; on any fsspec URL.

All headers are checked first, so that a bad slice is named before hours are spent.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from perfuse import storage
from perfuse.errors import SliceError, SourceError
from perfuse.geometry import Index3
from perfuse_ingest.naming import in_order, slices_among
from perfuse_ingest.tiff import Slice, header, headers, read

HEADERS_AT_ONCE = 16
PROBES = 9
"""Slices whose bytes are part of a stack's identity, beside the names and sizes of all."""


@dataclass(frozen=True)
class Stack:
    """Checked slices of one shape and dtype, in order."""

    url: str
    slices: tuple[Slice, ...]
    passed_over: tuple[str, ...] = ()
    """Names of files that are no images."""

    @property
    def shape_zyx(self) -> Index3:
        """Slices, rows, columns."""
        return len(self.slices), *self.slices[0].shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """uint8 or uint16."""
        return np.dtype(self.slices[0].dtype)

    @property
    def largest_bytes(self) -> int:
        """Stored bytes of the largest slice."""
        return max(s.size for s in self.slices)

    @cached_property
    def identity(self) -> str:
        """Digest that tells this stack from another without reading it all.

        It covers names and sizes of all slices, and the bytes of nine, evenly spread.
        """
        last = len(self.slices) - 1
        probes = sorted({round(k * last / (PROBES - 1)) for k in range(PROBES)})
        sizes = [[s.name, s.size] for s in self.slices]
        return storage.digest_json([sizes, [self.read(k)[1].hex() for k in probes]])

    def read(self, index: int) -> tuple[npt.NDArray[Any], bytes]:
        """One slice [y, x] and the SHA-256 of its bytes; SliceError naming file and index."""
        return read(self.slices[index], index)


def open_stack(source: str) -> Stack:
    """Find the slices of a source and check every header.

    Raises SourceError for a source that is absent, empty or holds other images; SliceError, naming file and index, for
    a slice that is missing, double, truncated, or differs from the others in name, shape or dtype.
    """
    source = storage.normal(source)
    with storage.reaching(source):
        files = storage.filesystem(source)
        if not files.exists(source):
            raise SourceError(f"{source} does not exist. Give a folder of TIFF slices, or one multi-page TIFF.")
        folder = bool(files.isdir(source))
    return _folder(source) if folder else _one_file(source)


def _folder(source: str) -> Stack:
    with storage.reaching(source):
        entries = storage.filesystem(source).ls(source, detail=True)
    names = sorted(storage.name_of(str(e["name"])) for e in entries if e["type"] == "file" and e["name"] != source)
    tiffs, passed_over = slices_among(source, names)
    urls = [storage.join(source, name) for name in in_order(source, tiffs)]
    with ThreadPoolExecutor(HEADERS_AT_ONCE) as pool:
        slices = tuple(pool.map(header, urls, range(len(urls))))
    _check_alike(slices)
    return Stack(source, slices, tuple(passed_over))


def _one_file(source: str) -> Stack:
    if not source.lower().endswith((".tif", ".tiff")):
        raise SourceError(f"{source} is no TIFF. Give a folder of TIFF slices, or one multi-page TIFF (.tif, .tiff).")
    slices = tuple(headers(source))
    _check_alike(slices)
    return Stack(source, slices)


def _check_alike(slices: Sequence[Slice]) -> None:
    kinds = [(s.shape, s.dtype) for s in slices]
    usual = max(dict.fromkeys(kinds), key=kinds.count)
    for index, (kind, one) in enumerate(zip(kinds, slices, strict=True)):
        if kind != usual:
            raise SliceError(
                f"Slice {index} ({one.name} of {one.url}) is {_words(kind)}; most slices are "
                f"{_words(usual)}. All slices of a stack have one shape and one dtype."
            )


def _words(kind: tuple[tuple[int, int], str]) -> str:
    (rows, columns), dtype = kind
    return f"{rows} × {columns} {dtype}"
