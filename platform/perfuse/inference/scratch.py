"""Logits on their way to a label: int16, one array for each axis, written slab by slab, with done-marks."""

from typing import Any

import numpy as np
import zarr

from perfuse import shards, volumes
from perfuse.catalog import Scan
from perfuse.errors import ScanError
from perfuse.geometry import Box, along_axis, index3, move_axis, runs
from perfuse.inference.logits import Logits

SLAB = 64
"""Planes of a slab: one chunk thick, a multiple of `PLANES`."""
BAND = 512
"""Rows of logits that are gathered before they are written: whole shards."""


class Scratch:
    """Int16 logits of one axis; shards are as thick as a slab along it, so that a slab alone writes its own."""

    def __init__(self, scan_url: str, path: str, axis: int, key: str) -> None:
        shape = Scan.open(scan_url).shape_zyx
        group = volumes.open_group(scan_url, "r+").require_group(path)
        name = "zyx"[axis]
        if name not in group:
            chunk = volumes.chunk_shape(shape)
            rows = [c * min(BAND // SLAB, -(-n // c)) for c, n in zip(chunk, shape, strict=True)]
            rows[axis] = chunk[axis]
            volumes.create_array(group, name, shape, "int16", shards=index3(rows))
        array = group[name]
        if not isinstance(array, zarr.Array):
            raise ScanError(f"{scan_url}/{path}/{name} is no array; remove it and run the same command again.")
        self.axis, self.array, self.shape = axis, array, shape
        self._marks = volumes.DoneMarks(group, f"done-{name}", len(runs(shape[axis], SLAB)), key)

    def _box(self, planes: tuple[int, int], rows: tuple[int, int]) -> Box:
        _, _, width = move_axis(self.shape, self.axis)
        return along_axis(self.axis, planes, rows, (0, width))

    def _digest(self, task: int) -> bytes:
        _, height, _ = move_axis(self.shape, self.axis)
        planes = runs(self.shape[self.axis], SLAB)[task]
        return shards.digest(volumes.stored_digests(self.array, self._box(planes, (0, height))))

    def intact(self) -> set[int]:
        """Slabs that are done and whose stored bytes are still those that were written."""
        return self._marks.intact(self._digest)

    def write(self, task: int, planes: tuple[int, int], rows: Any) -> None:
        """Gather rows into whole shards, write them, and mark the slab done."""
        _, height, _ = move_axis(self.shape, self.axis)
        unit = next(s for a, s in enumerate(index3(self.array.shards or self.array.chunks)) if a != self.axis)
        band: list[Logits] = []
        digests = b""
        first = held = 0
        for _, part in rows:
            band.append(part)
            held += part.shape[1]
            while held >= unit or (held and first + held == height):
                whole = np.concatenate(band, axis=1)
                take = min(unit, held)
                box = self._box(planes, (first, first + take))
                digests += volumes.write_shards(self.array, box, np.moveaxis(whole[:, :take], 0, self.axis))
                band, first, held = [whole[:, take:]], first + take, held - take
        self._marks.mark(task, shards.digest(digests))

    def read(self, box: Box) -> Logits:
        """The logits inside a box, in z, y, x."""
        return np.asarray(self.array[box.slices], np.int16)
