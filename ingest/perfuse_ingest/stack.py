"""A stack of slices: a folder with one TIFF a slice, or the pages of one TIFF; on any fsspec URL.

All headers are checked first, so that a bad slice is named before hours are spent.
"""

from collections.abc import Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from perfuse import storage
from perfuse.errors import SliceError, SourceError
from perfuse.geometry import Box
from perfuse_ingest.naming import in_order, slices_among
from perfuse_ingest.sources.source import Source
from perfuse_ingest.tiff import Slice, header, headers, read

HEADERS_AT_ONCE = 16
PROBES = 9
"""Slices whose bytes are part of a stack's identity, beside the names and sizes of all."""


class Stack(Source):
    """Checked slices of one shape and dtype, in order."""

    def __init__(self, url: str, slices: tuple[Slice, ...], passed_over: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.url, self.slices, self.passed_over = url, slices, passed_over
        self.names = tuple(s.name for s in slices)
        self.shape_zyx = (len(slices), *slices[0].shape)
        self.dtype = np.dtype(slices[0].dtype)
        self.largest_bytes = max(s.size for s in slices)

    @cached_property
    def identity(self) -> str:  # type: ignore[override]
        """Digest that tells this stack from another without reading it all.

        It covers names and sizes of all slices, and the bytes of nine, evenly spread.
        """
        last = len(self.slices) - 1
        probes = sorted({round(k * last / (PROBES - 1)) for k in range(PROBES)})
        sizes = [[s.name, s.size] for s in self.slices]
        return storage.digest_json([sizes, [self.read_one(k)[1].hex() for k in probes]])

    def read(self, box: Box, pool: Executor) -> tuple[npt.NDArray[Any], list[bytes] | None]:
        """See Source."""
        voxels = np.empty((box.shape[0], *self.shape_zyx[1:]), self.dtype)

        def decode(index: int) -> bytes:
            voxels[index - box.start[0]], digest = self.read_one(index)
            return digest

        digests = list(pool.map(decode, range(box.start[0], box.stop[0])))
        return voxels[:, box.slices[1], box.slices[2]], digests

    def read_one(self, index: int) -> tuple[npt.NDArray[Any], bytes]:
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
