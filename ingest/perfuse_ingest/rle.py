"""Masks as run lengths: tables `id,rle` with a row a slice, as Kaggle's vessel competition gives them.

An id is DATASET_SLICE, as kidney_1_dense_0000. A row's runs are pairs `start length`: voxels counted from 1, along the
rows of the slice; `1 0` says that nothing is marked. Only where each row lies is kept in memory.
"""

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from perfuse import storage
from perfuse.catalog import Scan
from perfuse.errors import SliceError, SourceError
from perfuse_ingest.mask_sources import Mask, MaskSource

_HEADER = b"id,rle"
_ID = re.compile(r"(.+)_(\d+)")


@dataclass
class _Dataset:
    rows: dict[str, tuple[int, int]] = field(default_factory=dict)
    """By slice: where its line begins in the file, and its bytes."""
    digest: Any = field(default_factory=hashlib.sha256)


class TableMask(MaskSource):
    """The rows of one dataset of a table, for slices of a known shape."""

    def __init__(self, url: str, name: str, dataset: _Dataset, plane_shape: tuple[int, int], file: Any) -> None:
        self.names = tuple(sorted(dataset.rows, key=int))
        for one, other in pairwise(self.names):
            if int(other) != int(one) + 1:
                raise SourceError(
                    f"{url} goes from {name}_{one} to {name}_{other}: rows for the slices between are missing. Add them; a slice "
                    "without vessels has the runs `1 0`."
                )
        self.url, self.shape_zyx = f"{url}:{name}", (len(self.names), *plane_shape)
        self.identity = storage.digest_json([dataset.digest.hexdigest(), plane_shape])
        self._name, self._rows, self._file = name, dataset.rows, file

    def planes(self, start: int, stop: int) -> Mask:
        """See MaskSource."""
        return np.stack([self._plane(name) for name in self.names[start:stop]])

    def _plane(self, name: str) -> Mask:
        offset, size = self._rows[name]
        self._file.seek(offset)
        _, _, runs = self._file.read(size).partition(b",")
        try:
            return decode(runs.strip().strip(b'"'), (self.shape_zyx[1], self.shape_zyx[2]))
        except ValueError as error:
            raise SliceError(f"{self.url}, id {self._name}_{name}: {error}. Mend that row.") from error


def decode(runs: bytes, shape: tuple[int, int]) -> Mask:
    """The slice [y, x], 0 or 255, that pairs `start length` mark; ValueError when they mark none of this shape."""
    if runs.translate(None, b"0123456789 "):
        raise ValueError("runs are whole numbers with a space between")
    numbers = np.fromstring(runs.decode(), np.int64, sep=" ")
    if len(numbers) % 2:
        raise ValueError(f"there are {len(numbers)} numbers, but runs are pairs of start and length")
    begin, size = numbers[::2] - 1, shape[0] * shape[1]
    outside = (begin < 0) | (begin >= size) | (numbers[1::2] > size - begin)
    if outside.any():
        start, length = numbers.reshape(-1, 2)[np.argmax(outside)]
        raise ValueError(
            f"the run {start} {length} lies outside the slice, which has voxels 1 to {size} ({shape[0]} × {shape[1]})"
        )
    begin, end = begin[numbers[1::2] > 0], (begin + numbers[1::2])[numbers[1::2] > 0]
    order = np.argsort(begin)
    over = begin[order][1:] < end[order][:-1]
    if over.any():
        raise ValueError(f"the run that starts at {begin[order][1:][np.argmax(over)] + 1} overlaps the one before")
    steps = np.zeros(size + 1, np.int8)
    steps[begin] += 1
    steps[end] -= 1
    marked = np.cumsum(steps[:-1], dtype=np.int8).astype(np.uint8)
    return (marked * np.uint8(255)).reshape(shape)


def is_table(source: str) -> bool:
    """True for FILE.csv and FILE.csv:DATASET."""
    return _split(source)[0].lower().endswith(".csv")


def _split(source: str) -> tuple[str, str]:
    path, _, dataset = source.rpartition(":")
    return (path, dataset) if path.lower().endswith(".csv") else (source, "")


def datasets(source: str) -> list[str]:
    """The datasets of a table. Raises SourceError when it is none."""
    with _file(storage.normal(source)) as file:
        return sorted(_indexed(file, source))


@contextmanager
def open_table(source: str, scan: Scan) -> Iterator[MaskSource]:
    """Open a table for the slices of a scan, as a context manager; every id is read, no run is.

    source: FILE.csv:DATASET, or FILE.csv where it holds one dataset. Raises SourceError, SliceError.
    """
    path, wanted = _split(source)
    url = storage.normal(path)
    with _file(url) as file:
        found = _indexed(file, url)
        name = wanted or next(iter(found))
        if name not in found or (not wanted and len(found) > 1):
            raise SourceError(f"{url} holds the datasets {', '.join(sorted(found))}: pick one, as {path}:{min(found)}")
        yield TableMask(url, name, found[name], (scan.shape_zyx[1], scan.shape_zyx[2]), file)


@contextmanager
def _file(url: str) -> Iterator[Any]:
    with storage.reaching(url):
        try:
            file = storage.filesystem(url).open(url, "rb")
        except FileNotFoundError as error:
            raise SourceError(f"{url} does not exist. Give a table of run lengths, with the columns id,rle.") from error
        with file:
            yield file


def _indexed(file: Any, url: str) -> dict[str, _Dataset]:
    found: dict[str, _Dataset] = {}
    offset = 0
    for number, line in enumerate(file):
        if number == 0:
            if line.strip().removeprefix(b"\xef\xbb\xbf").replace(b'"', b"") != _HEADER:
                raise SourceError(
                    f"{url} is no table of run lengths: its first line is {line[:40]!r}, where {_HEADER!r} is expected."
                )
        elif line.strip():
            _add(found, line, (offset, len(line)), f"line {number + 1} of {url}")
        offset += len(line)
    if not found:
        raise SourceError(f"{url} holds no rows of run lengths.")
    return found


def _add(found: dict[str, _Dataset], line: bytes, place: tuple[int, int], where: str) -> None:
    name, comma, _ = line.partition(b",")
    text = name.strip().strip(b'"').decode("utf-8", "replace")
    words = _ID.fullmatch(text)
    if not comma or words is None:
        raise SliceError(
            f"The id {text[:60]!r} (in {where}) is not DATASET_SLICE, as kidney_1_dense_0000, with runs after a comma."
        )
    dataset = found.setdefault(words[1], _Dataset())
    if words[2] in dataset.rows:
        raise SliceError(f"The id {words[0]} stands there twice (again in {where}). Keep one of its rows.")
    dataset.rows[words[2]] = place
    dataset.digest.update(line.strip() + b"\n")
