"""Masks: any source of voxels, read as planes of one vessel class, uint8 with p = value / 255.

A mask is binary, 0 and one other value in all its planes, of any integer, bool or float type; or it holds
probabilities, floats from 0 to 1. Which of the two shows while it is read, and what is neither is refused.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt

from perfuse import storage
from perfuse.errors import ShapeMismatchError, SliceError
from perfuse.geometry import Box, Index3, Spacing, runs
from perfuse_ingest.sources import Source, open_source

Mask = npt.NDArray[np.uint8]
Range = tuple[Any, Any]
_AT_ONCE_BYTES = 64 * 2**20
_PLANES_AT_ONCE = 128
"""The thickness of usual chunks: thinner runs would decode each chunk several times."""
_ROWS_AT_LEAST = 64


class MaskSource(ABC):
    """A mask [z, y, x] whose shape is known."""

    url: str
    shape_zyx: Index3
    names: tuple[str, ...] = ()
    """Of each slice: by those of files slices find their places in a scan."""
    passed_over: tuple[str, ...] = ()
    """Names of files that are no images."""
    voxel_size_um: Spacing | None = None
    """Where the source states it."""
    identity: str
    """Digest that tells this mask from another."""
    probability: bool = False
    """True when planes hold probabilities, p = value / 255; known once `identity` is."""

    @abstractmethod
    def planes(self, start: int, stop: int) -> Mask:
        """uint8[stop − start, y, x]: 0 and 255, or probabilities × 255, rounded.

        Raises SliceError naming slice and value for what is neither binary nor a probability.
        """

    def box_in(self, scan_shape_zyx: Index3, at_zyx: Index3 | None) -> Box:
        """Where in a scan this mask lies: all of it, or a part that begins at `at_zyx`. Raises ShapeMismatchError."""
        if at_zyx is None and self.shape_zyx != scan_shape_zyx:
            raise ShapeMismatchError(
                f"The labels {self.url} have shape {self.shape_zyx} (z, y, x), the scan has {scan_shape_zyx}. They must be "
                "equal; labels of a part are added by `perfuse labels add … --at Z,Y,X`."
            )
        box = Box.whole(self.shape_zyx).shifted(at_zyx or (0, 0, 0))
        if box.intersect(Box.whole(scan_shape_zyx)) != box:
            raise ShapeMismatchError(
                f"The labels {self.url}, of shape {self.shape_zyx} (z, y, x) from {at_zyx} on, reach to {box.stop}, beyond "
                f"the scan, whose shape is {scan_shape_zyx}. Give --at so that they lie inside."
            )
        return box


class SourceMask(MaskSource):
    """A mask that is stored as images are: a stack of slices or a volume."""

    def __init__(self, source: Source, pool: Executor) -> None:
        self.url, self.shape_zyx, self.names = source.url, source.shape_zyx, source.names
        self.passed_over, self.voxel_size_um = source.passed_over, source.voxel_size_um
        self._source, self._pool = source, pool
        self._values = _Values(source)

    @property
    def probability(self) -> bool:  # type: ignore[override]
        """See MaskSource: true once a value between 0 and 1 was read."""
        return self._values.fractions

    @cached_property
    def identity(self) -> str:  # type: ignore[override]
        """Digest of all voxels, however they are stored. Reads the mask once: what is none is refused before work begins."""
        digests = []
        for start, stop in runs(self.shape_zyx[0], self._planes_at_once()):
            planes = [hashlib.sha256() for _ in range(start, stop)]
            for first, last in runs(self.shape_zyx[1], self._rows_at_once(stop - start)):
                band = self._read(Box((start, first, 0), (stop, last, self.shape_zyx[2])))
                for plane, voxels in zip(planes, band, strict=True):
                    plane.update(voxels.tobytes())
            digests += [plane.hexdigest() for plane in planes]
        return storage.digest_json([self.shape_zyx, digests])

    def _planes_at_once(self) -> int:
        rows, columns = self.shape_zyx[1:]
        fitting = _AT_ONCE_BYTES // (rows * columns * self._source.dtype.itemsize)
        return _PLANES_AT_ONCE if self._source.cuts_rows else min(_PLANES_AT_ONCE, max(1, fitting))

    def _rows_at_once(self, planes: int) -> int:
        if not self._source.cuts_rows:
            return self.shape_zyx[1]
        rows = _AT_ONCE_BYTES // (planes * self.shape_zyx[2] * self._source.dtype.itemsize)
        return max(1, rows // _ROWS_AT_LEAST) * _ROWS_AT_LEAST

    def planes(self, start: int, stop: int) -> Mask:
        """See MaskSource."""
        return self._read(Box((start, 0, 0), (stop, *self.shape_zyx[1:])))

    def _read(self, box: Box) -> Mask:
        whole = box.shape[1] == self.shape_zyx[1]
        voxels = self._source.read(box, self._pool)[0] if whole else self._source.rows(box, self._pool)
        ranges = self._pool.map(_marked_range, voxels)
        for index, values in enumerate(ranges, box.start[0]):
            self._values.add(index, values)
        mask = np.empty(voxels.shape, np.uint8)

        def encode(k: int) -> None:
            mask[k] = _encoded(voxels[k])

        list(self._pool.map(encode, range(len(voxels))))
        return mask


class _Values:
    """What was read so far: nothing but zeros, one other value, or probabilities."""

    def __init__(self, source: Source) -> None:
        self._url, self._names, self._float = source.url, source.names, source.dtype.kind == "f"
        self._one: Any = None
        self._several = False
        self._learning = Lock()

    @property
    def fractions(self) -> bool:
        return self._several or (self._float and self._one is not None and self._one < 1)

    def add(self, index: int, values: Range | None) -> None:
        """Smallest and largest value of a plane, zeros left out; None where all are. Raises SliceError."""
        if values is None:
            return
        low, high = values
        with self._learning:
            known = high if self._one is None else self._one
            if self._float and not (low > 0 and np.isfinite(high)):
                self._refuse(index, low if not low > 0 else high)
            if self._one is None or (low, high) != (known, known):
                self._widen(index, low, high, known)

    def _widen(self, index: int, low: Any, high: Any, known: Any) -> None:
        if low == high == known:
            self._one = known
        elif self._float and high <= 1 and known <= 1:
            self._one, self._several = known, True
        else:
            self._refuse(index, low if low != known else high)

    def _refuse(self, index: int, value: Any) -> None:
        seen = "" if self._one is None else f", where {self._one} marks the vessels"
        if self._several:
            seen = ", where probabilities were read before"
        raise SliceError(
            f"Slice {index} ({self._names[index]} of {storage.public(self._url)}) holds {value}{seen}. A mask has two "
            "values in all its slices, 0 and one other; or floats from 0 to 1, as probabilities."
        )


def _marked_range(plane: npt.NDArray[Any]) -> Range | None:
    """Smallest and largest value of a plane that is not 0; NaN where there is one."""
    marked = plane[plane != 0]
    return (marked.min(), marked.max()) if marked.size else None


def _encoded(plane: npt.NDArray[Any]) -> Mask:
    if plane.dtype.kind == "f" and plane.max() <= 1:
        return np.asarray(np.rint(plane * np.result_type(plane, np.float32).type(255)), np.uint8)
    return np.where(plane != 0, np.uint8(255), np.uint8(0))


@contextmanager
def open_masks(url: str) -> Iterator[MaskSource]:
    """Open a mask in any format that a source can have and check its headers. Raises SourceError, SliceError, ServerError."""
    with open_source(url) as source, ThreadPoolExecutor() as pool:
        yield SourceMask(source, pool)
