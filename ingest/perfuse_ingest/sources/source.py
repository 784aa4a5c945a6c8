"""What all sources of voxels have in common, whatever they are stored as."""

from abc import ABC, abstractmethod
from concurrent.futures import Executor
from contextlib import ExitStack
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from perfuse.geometry import Box, Index3, Spacing

Voxels = npt.NDArray[Any]


class Source(ABC):
    """Slices of one shape and dtype, in order, whose headers have been checked. Closes its files as a context manager."""

    url: str
    names: tuple[str, ...]
    """Of each slice: its file, its page, or its plane."""
    shape_zyx: Index3
    dtype: np.dtype[Any]
    """As stored, in this machine's byte order."""
    identity: str
    """Digest that tells this source from another without reading it all."""
    largest_bytes: int
    """Stored bytes of the largest slice: what decoding holds in memory beside the voxels."""
    passed_over: tuple[str, ...] = ()
    """Names of files that are no images."""
    missing: tuple[int, ...] = ()
    """Indices of slices that are not there and read as zeros."""
    voxel_size_um: Spacing | None = None
    """Where the source states it."""
    passes: int = 1
    """How often each slice is decoded."""
    cuts_rows: bool = False
    """True when `rows` reads a part of a slice without decoding the rest."""

    def __init__(self) -> None:
        self._files = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()

    def learn(self, pool: Executor) -> None:  # noqa: B027 - most sources need nothing
        """Read what must be known before the first voxel can be given; for most, nothing."""

    def slices_of(self, start: int, stop: int) -> range:
        """Which of `names` the planes start … stop − 1 are made from; no slice belongs to two runs of planes."""
        return range(start, stop)

    @abstractmethod
    def read(self, box: Box, pool: Executor) -> tuple[Voxels, list[bytes] | None]:
        """Voxels [z, y, x] of a box, and the SHA-256 of the stored bytes of each of `slices_of` its planes.

        The digests are None where slices are not stored one by one. Raises SliceError naming file and index.
        """

    def rows(self, box: Box, pool: Executor) -> Voxels:
        """Voxels [z, y, x] of a box that spans a part of the rows; only where `cuts_rows`."""
        raise NotImplementedError

    def digests(self, start: int, stop: int, pool: Executor) -> list[bytes] | None:
        """As `read` gives them, for slices start … stop − 1 of `names`, without decoding."""
        raise NotImplementedError
