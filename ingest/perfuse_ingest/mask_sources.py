"""Where labels come from: stacks of TIFF masks, or one volume (NIfTI, HDF5, Zarr). Read by planes, as 0 and 255."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt

from perfuse import storage
from perfuse.errors import ShapeMismatchError, SliceError
from perfuse.geometry import Box, Index3
from perfuse_ingest.masks import MaskVolume, content_digest, open_mask
from perfuse_ingest.stack import Stack, open_stack

Mask = npt.NDArray[np.uint8]
VALUES = (1, 254, 255)
"""What may stand for a vessel in a TIFF mask; one of them, everywhere."""
_VOLUMES = (".nii", ".nii.gz", ".h5", ".hdf5", ".zarr")


class MaskSource(ABC):
    """A mask [z, y, x] whose shape is known."""

    url: str
    shape_zyx: Index3
    identity: str
    """Digest that tells this mask from another."""
    passed_over: tuple[str, ...] = ()
    """Names of files that are no images."""
    names: tuple[str, ...] = ()
    """Of each slice, where each is a file or a row of its own: by them slices find their places in a scan."""
    probability: bool = False
    """True when planes hold probabilities, p = value / 255; known once `identity` is."""

    @abstractmethod
    def planes(self, start: int, stop: int) -> Mask:
        """uint8[stop − start, y, x], 0 or 255 unless `probability`. Raises SourceError for other values than a mask's."""

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


class StackMask(MaskSource):
    """A mask a slice."""

    def __init__(self, stack: Stack, pool: ThreadPoolExecutor) -> None:
        self.url, self.shape_zyx, self.passed_over = stack.url, stack.shape_zyx, stack.passed_over
        self.identity = stack.identity
        self.names = tuple(s.name for s in stack.slices if s.alone)
        self._stack, self._pool = stack, pool
        self._vessel: int | None = None
        self._learning = Lock()

    def planes(self, start: int, stop: int) -> Mask:
        """See MaskSource."""
        slab = np.empty((stop - start, *self.shape_zyx[1:]), np.uint8)

        def decode(index: int) -> None:
            plane, _ = self._stack.read(index)
            slab[index - start] = self._checked(plane, index)

        list(self._pool.map(decode, range(start, stop)))
        return slab

    def _checked(self, plane: npt.NDArray[Any], index: int) -> Mask:
        vessels: npt.NDArray[np.bool_] = plane != 0
        if vessels.any():
            value = int(plane.max())
            with self._learning:
                allowed = self._vessel = self._vessel or (value if value in VALUES else None)
            found = sorted({*plane[vessels & (plane != allowed)][:1].tolist()}) if allowed else [value]
            if found:
                raise SliceError(
                    f"Slice {index} ({self._stack.slices[index].name} of {self.url}) holds {found[0]}"
                    f"{f', where {allowed} marks the vessels' if allowed else ''}. A mask has two values in all its "
                    f"slices: 0 and one of {', '.join(map(str, VALUES))}."
                )
        return vessels.view(np.uint8) * np.uint8(255)


class VolumeMask(MaskSource):
    """A mask in one file or Zarr array."""

    def __init__(self, volume: MaskVolume) -> None:
        self.url, self.shape_zyx, self._volume = volume.url, volume.shape_zyx, volume
        self.identity = content_digest(volume.url)

    def planes(self, start: int, stop: int) -> Mask:
        """See MaskSource."""
        return self._volume.read(start, stop).view(np.uint8) * np.uint8(255)


def open_masks(source: str) -> AbstractContextManager[MaskSource]:
    """Open a source of labels and check its headers, as a context manager. Raises SourceError, SliceError."""
    path, _, _ = source.rpartition(":")
    name = (path if path.lower().endswith((".h5", ".hdf5")) else source).rstrip("/").lower()
    return _volume(source) if name.endswith(_VOLUMES) else _stack(storage.normal(source))


@contextmanager
def _volume(source: str) -> Iterator[MaskSource]:
    with storage.reaching(source), open_mask(source) as volume:
        yield VolumeMask(volume)


@contextmanager
def _stack(source: str) -> Iterator[MaskSource]:
    stack = open_stack(source)
    with ThreadPoolExecutor() as pool:
        yield StackMask(stack, pool)
