"""What all masks have in common."""

from abc import ABC, abstractmethod
from contextlib import ExitStack
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from perfuse.errors import SourceError

Mask = NDArray[np.bool_]
VoxelSize = tuple[float, float, float]


class MaskVolume(ABC):
    """A mask of shape z, y, x whose slabs are read when they are asked for. Closes its files as a context manager."""

    url: str
    shape_zyx: tuple[int, int, int]
    dtype: np.dtype[Any]
    """As stored."""
    voxel_size_um: VoxelSize | None = None
    """z, y, x; None where the file does not say."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._files = ExitStack()
        self._vessel_value: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()

    def read(self, z_begin: int, z_end: int) -> Mask:
        """bool[z, y, x] of the planes z_begin … z_end − 1.

        Raises SourceError where they hold more values than a mask has, or cannot be decoded.
        """
        return self._as_mask(self._read(z_begin, z_end), z_begin)

    @abstractmethod
    def _read(self, z_begin: int, z_end: int) -> NDArray[Any]:
        """The planes as stored."""

    def _as_mask(self, planes: NDArray[Any], z_begin: int) -> Mask:
        found = np.asarray(planes != 0, np.bool_)
        if planes.dtype != np.bool_ and found.any():
            self._insist_on_one_value(planes[found], f"planes {z_begin}–{z_begin + len(planes) - 1}")
        return found

    def _insist_on_one_value(self, values: NDArray[Any], where: str) -> None:
        if self._vessel_value is None:
            self._vessel_value = values[0]
        others = values[values != self._vessel_value]
        if len(others):
            raise SourceError(
                f"{self.url} is not a mask: {where} hold {others[0]}, where 0 and {self._vessel_value} were seen. "
                "A mask has two values, 0 and one other"
            )


def three_axes(shape: tuple[int, ...], url: str) -> tuple[int, int, int]:
    """The shape, where it is that of a volume; SourceError otherwise."""
    if len(shape) != 3 or 0 in shape:
        raise SourceError(f"{url} has shape {shape}: a mask has three axes, z, y and x, none of them empty")
    return shape[0], shape[1], shape[2]
