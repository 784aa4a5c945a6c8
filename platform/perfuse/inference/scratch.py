"""Logits on their way to a label: int16, one array for each axis, written slab by slab, with done-marks."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import zarr

from perfuse import shards, volumes
from perfuse.contract import of_class
from perfuse.errors import ScanError
from perfuse.geometry import Box, Index3, along_axis, index3, move_axis, runs
from perfuse.inference.logits import Logits

SLAB = 64
"""Planes of a slab: one chunk thick, a multiple of `PLANES`."""
BAND = 512
"""Rows of logits that are gathered before they are written: whole shards."""


class Scratch:
    """Int16 logits of one axis, an array for each class; shards are as thick as a slab along it, which alone writes them."""

    def __init__(
        self, scan_url: str, path: str, axis: int, key: str, shape_zyx: Index3, class_names: Sequence[str] = ("",)
    ) -> None:
        self.axis, self.shape = axis, shape_zyx
        group = volumes.open_group(scan_url, "r+").require_group(path)
        self.arrays = [self._array(group, of_class("zyx"[axis], name)) for name in class_names]
        self._marks = volumes.DoneMarks(group, f"done-{'zyx'[axis]}", len(runs(self.shape[axis], SLAB)), key)

    def _array(self, group: zarr.Group, name: str) -> zarr.Array[Any]:
        if name not in group:
            chunk = volumes.chunk_shape(self.shape)
            rows = [c * min(BAND // SLAB, -(-n // c)) for c, n in zip(chunk, self.shape, strict=True)]
            rows[self.axis] = chunk[self.axis]
            volumes.create_array(group, name, self.shape, "int16", shards=index3(rows))
        array = group[name]
        if not isinstance(array, zarr.Array):
            raise ScanError(f"{group.store_path}/{name} is no array; remove it and run the same command again.")
        return array

    def _box(self, planes: tuple[int, int], rows: tuple[int, int]) -> Box:
        _, _, width = move_axis(self.shape, self.axis)
        return along_axis(self.axis, planes, rows, (0, width))

    def _digest(self, task: int) -> bytes:
        _, height, _ = move_axis(self.shape, self.axis)
        planes = runs(self.shape[self.axis], SLAB)[task]
        box = self._box(planes, (0, height))
        return shards.digest(b"".join(volumes.stored_digests(array, box) for array in self.arrays))

    def intact(self) -> set[int]:
        """Slabs that are done and whose stored bytes are still those that were written."""
        return self._marks.intact(self._digest)

    def write(self, task: int, planes: tuple[int, int], rows: Any) -> None:
        """Gather rows [classes, planes, rows, columns] into whole shards, write them, and mark the slab done."""
        _, height, _ = move_axis(self.shape, self.axis)
        form = self.arrays[0].shards or self.arrays[0].chunks
        unit = next(s for a, s in enumerate(index3(form)) if a != self.axis)
        band: list[Logits] = []
        digests = [b"" for _ in self.arrays]
        first = held = 0
        for _, part in rows:
            band.append(part)
            held += part.shape[2]
            while held >= unit or (held and first + held == height):
                whole = np.concatenate(band, axis=2)
                take = min(unit, held)
                box = self._box(planes, (first, first + take))
                for number, array in enumerate(self.arrays):
                    digests[number] += volumes.write_shards(
                        array, box, np.moveaxis(whole[number, :, :take], 0, self.axis)
                    )
                band, first, held = [whole[:, :, take:]], first + take, held - take
        self._marks.mark(task, shards.digest(b"".join(digests)))

    def read(self, box: Box, class_number: int = 0) -> Logits:
        """The logits of a class inside a box, in z, y, x."""
        return np.asarray(self.arrays[class_number][box.slices], np.int16)
