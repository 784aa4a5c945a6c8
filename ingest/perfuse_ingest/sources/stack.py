"""A stack of slices: one TIFF or JPEG 2000 a slice, or the pages of one TIFF; in a folder or archive, on any URL.

All headers are checked first, so that a bad slice is named before hours are spent.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import cached_property
from typing import Any

import numpy as np

from perfuse import storage
from perfuse.errors import SliceError
from perfuse.geometry import Box
from perfuse_ingest.sources import jpeg2000, tiff
from perfuse_ingest.sources.listing import files_at
from perfuse_ingest.sources.naming import TIFF, in_order, slices_among
from perfuse_ingest.sources.slices import Part, Slice, naming
from perfuse_ingest.sources.source import Source, Voxels
from perfuse_ingest.sources.stored import Stored

HEADERS_AT_ONCE = 16
PROBES = 9
"""Slices whose bytes are part of a stack's identity, beside the names and sizes of all."""
NO_DIGEST = bytes(32)
"""What stands for the digest of a slice that is missing."""


class Stack(Source):
    """Checked slices of one shape and dtype, in order; an int stands for a missing slice of that number."""

    def __init__(self, url: str, slices: Sequence[Slice | int], passed_over: Sequence[str] = ()) -> None:
        super().__init__()
        there = [s for s in slices if not isinstance(s, int)]
        self.url, self.passed_over = url, tuple(passed_over)
        self.slices = tuple(None if isinstance(s, int) else s for s in slices)
        self.names = tuple(f"(missing {s})" if isinstance(s, int) else s.name for s in slices)
        self.missing = tuple(k for k, s in enumerate(self.slices) if s is None)
        self.shape_zyx = len(self.slices), *there[0].shape
        self.dtype = np.dtype(there[0].dtype)
        self.largest_bytes = max(s.size for s in there)
        self.cuts_rows = all(s.cuts for s in there)

    @cached_property
    def identity(self) -> str:  # type: ignore[override]
        """Digest of the names and sizes of all slices, and the bytes of nine, evenly spread."""
        last = len(self.slices) - 1
        probes = sorted({round(k * last / (PROBES - 1)) for k in range(PROBES)})
        sizes = [[name, s.size if s else 0] for name, s in zip(self.names, self.slices, strict=True)]
        return storage.digest_json([sizes, [self.slice_digest(k).hex() for k in probes]])

    def read(self, box: Box, pool: Executor) -> tuple[Voxels, list[bytes]]:
        """See Source. One task a slice; digests are those of the files' bytes, of a page: of its stored segments."""
        return self._each(box, pool, self.slice_into)

    def rows(self, box: Box, pool: Executor) -> Voxels:
        """See Source. One task a slice, which holds a strip or tile beside its voxels."""
        return self._each(box, pool, self._rows_into)[0]

    def digests(self, start: int, stop: int, pool: Executor) -> list[bytes]:
        """See Source."""
        return list(pool.map(self.slice_digest, range(start, stop)))

    def slice_into(self, index: int, part: Part, out: Voxels) -> bytes:
        """Decode rows × columns of one slice into `out` [y, x]; the SHA-256 of its bytes. Raises SliceError."""

        def read(one: Slice) -> bytes:
            digest = one.read(part, out)
            self._check_finite(index, out)
            return digest

        return self._at(index, read) or self._missing_into(out)

    def slice_digest(self, index: int) -> bytes:
        """The SHA-256 of one slice's bytes. Raises SliceError."""
        return self._at(index, lambda one: one.digest()) or NO_DIGEST

    def _rows_into(self, index: int, part: Part, out: Voxels) -> bytes:
        def rows(one: Slice) -> bytes:
            one.rows(part, out)
            self._check_finite(index, out)
            return NO_DIGEST

        return self._at(index, rows) or self._missing_into(out)

    def _missing_into(self, out: Voxels) -> bytes:
        out[...] = 0
        return NO_DIGEST

    def _each(self, box: Box, pool: Executor, into: Callable[[int, Part, Voxels], bytes]) -> tuple[Voxels, list[bytes]]:
        voxels = np.empty(box.shape, self.dtype)
        planes, rows, columns = box.slices
        indices = range(planes.start, planes.stop)
        return voxels, list(pool.map(lambda k: into(k, (rows, columns), voxels[k - planes.start]), indices))

    def _at(self, index: int, work: Callable[[Slice], bytes]) -> bytes | None:
        one = self.slices[index]
        if one is None:
            return None
        with naming(index, one.stored.where, one.kind), storage.reaching(one.stored.url):
            return work(one)

    def _check_finite(self, index: int, voxels: Voxels) -> None:
        if self.dtype.kind != "f" or np.isfinite([voxels.min(), voxels.max()]).all():
            return
        row, column = np.argwhere(~np.isfinite(voxels))[0]
        raise SliceError(
            f"Slice {index} ({self.names[index]} of {storage.public(self.url)}) holds {voxels[row, column]} at row {row}, "
            f"column {column} of what was read. Every voxel needs a number: replace the file, or fill it first."
        )


def open_stack(url: str, *, allow_gaps: bool = False) -> Stack:
    """Find the slices of a source and check every header.

    url: a folder, an archive (.zip, .tar; ARCHIVE::FOLDER picks one of its folders), or one file. allow_gaps: numbers
    that are missing between the first slice and the last read as zeros. Raises SourceError for a source that is
    absent, empty or holds other images; SliceError, naming file and index, for a slice that is missing, double,
    truncated, or differs from the others in name, shape or dtype.
    """
    there = files_at(storage.normal(url))
    names, passed_over = slices_among(there.where, list(there.files))
    if len(names) == 1:
        slices: list[Any] = list(_headers(there.files[names[0]], 0, pages=True))
    else:
        order = in_order(there.where, names, allow_gaps=allow_gaps)
        slices = list(order)
        places = [k for k, name in enumerate(order) if isinstance(name, str)]
        with ThreadPoolExecutor(HEADERS_AT_ONCE) as pool:
            for k, found in zip(
                places, pool.map(lambda k: _headers(there.files[str(order[k])], k), places), strict=True
            ):
                (slices[k],) = found
    _check_alike(there.where, slices)
    return Stack(there.url, slices, passed_over)


def _headers(stored: Stored, index: int, *, pages: bool = False) -> Sequence[Slice]:
    if stored.name.lower().endswith(TIFF):
        return tiff.headers(stored, index, pages=pages)
    return [jpeg2000.header(stored, index)]


def _check_alike(where: str, slices: Sequence[Slice | int]) -> None:
    there = {k: s for k, s in enumerate(slices) if not isinstance(s, int)}
    kinds = [(s.shape, s.dtype) for s in there.values()]
    usual = max(dict.fromkeys(kinds), key=kinds.count)
    for (index, one), kind in zip(there.items(), kinds, strict=True):
        if kind != usual:
            raise SliceError(
                f"Slice {index} ({one.name} of {where}) is {_words(kind)}; most slices are {_words(usual)}. All slices "
                "of a stack have one shape and one dtype."
            )


def _words(kind: tuple[tuple[int, int], str]) -> str:
    (rows, columns), dtype = kind
    return f"{rows} × {columns} {dtype}"
