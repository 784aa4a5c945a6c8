"""What slices of all formats have in common."""

import struct
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import tifffile

from perfuse.errors import PerfuseError, SliceError
from perfuse_ingest.sources.source import Voxels
from perfuse_ingest.sources.stored import Stored

Part = tuple[slice, slice]
"""Rows and columns, each with start and stop."""

_UNREADABLE = (
    *(ValueError, TypeError, LookupError, ArithmeticError, RuntimeError, OSError, EOFError, MemoryError),
    *(struct.error, zlib.error, tifffile.TiffFileError),
)


@dataclass(frozen=True, slots=True)
class Slice(ABC):
    """One slice whose header has been checked. What its methods raise is turned into a message by `naming`."""

    kind: ClassVar[str]
    stored: Stored
    size: int
    """Bytes: of the file, or of the page's stored segments."""
    shape: tuple[int, int]
    """Rows, columns."""
    dtype: str
    """In this machine's byte order."""

    @property
    def name(self) -> str:
        """File name; with the page where a file holds several."""
        return self.stored.name

    @property
    def cuts(self) -> bool:
        """True when `rows` works."""
        return False

    @abstractmethod
    def read(self, part: Part, out: Voxels) -> bytes:
        """Decode rows × columns into `out`, of that shape; SHA-256 of the file's bytes (of a page: its segments')."""

    def rows(self, part: Part, out: Voxels) -> None:
        """Decode rows × columns into `out`, holding no more than they need; only where `cuts`."""
        raise NotImplementedError

    def digest(self) -> bytes:
        """As `read` gives it, without decoding."""
        return self.stored.sha256()

    def _insist_unchanged(self, shape: tuple[int, ...], dtype: object) -> None:
        if tuple(shape) != self.shape or str(dtype) != self.dtype:
            raise ValueError(f"it changed to {tuple(shape)} {dtype} since it was checked")


@contextmanager
def naming(index: int, where: str, kind: str) -> Iterator[None]:
    """Turn whatever a decoder raises into one message with file and index."""
    try:
        yield
    except PerfuseError:
        raise
    except _UNREADABLE as error:
        why = str(error) or type(error).__name__
        raise SliceError(f"Slice {index} ({where}) is no readable {kind}: {why}. Replace the file.") from error
