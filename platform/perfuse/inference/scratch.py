"""Logits on their way to a label: int16, one array for each axis, written slab by slab, with done-marks."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import zarr

from perfuse import shards, storage, volumes
from perfuse.contract import of_class
from perfuse.errors import ScanError
from perfuse.geometry import Box, Index3, along_axis, index3, move_axis, runs
from perfuse.inference.logits import Logits

SLAB = 64
"""Planes of a slab where there is memory for it: as thick as a chunk of the scan, a multiple of `PLANES`."""
THICKNESS = "slab"
"""The attribute of a member's logits that says how many planes their slabs have."""
LAYOUT = volumes.Layout(codec="lz4", clevel=1)
"""Of what is read once and removed: logits hardly shrink, and Zstandard takes eight times as long to make them a fifth smaller."""
BAND = 512
"""Rows of logits that are gathered before they are written: whole shards."""


def thickness(scan: zarr.Group, path: str) -> int | None:
    """Planes of the slabs of a member's logits; None where there are none."""
    group = scan.get(path)
    planes: Any = None if group is None else group.attrs.get(THICKNESS, SLAB)
    return None if planes is None else int(planes)


def marked(scan: zarr.Group, path: str, axis: int, key: str) -> set[int]:
    """Slabs of a member along an axis that were done, whatever has become of them since; nothing is written."""
    marks: Any = scan.get(f"{path}/{_marks_of(axis)}")
    if marks is None or marks.attrs.get("key") != key:
        return set()
    with storage.reaching(shards.url_of(marks)):
        return {task for task, digest in enumerate(np.asarray(marks[:])) if digest.any()}


def _marks_of(axis: int) -> str:
    return f"done-{'zyx'[axis]}"


class Scratch:
    """Int16 logits of one axis, an array for each class; shards are as thick as a slab along it, which alone writes them.

    What is there of slabs of another thickness goes.
    """

    def __init__(
        self,
        scan_url: str,
        path: str,
        axis: int,
        key: str,
        shape_zyx: Index3,
        class_names: Sequence[str] = ("",),
        slab: int = SLAB,
    ) -> None:
        self.axis, self.shape = axis, shape_zyx
        scan = volumes.open_group(scan_url, "r+")
        if thickness(scan, path) != slab:
            scan.create_group(path, overwrite=True, attributes={THICKNESS: slab})
        group = scan.require_group(path)
        self._slabs = runs(self.shape[axis], slab)
        self.arrays = [self._array(group, of_class("zyx"[axis], name)) for name in class_names]
        self._marks = volumes.DoneMarks(group, _marks_of(axis), len(self._slabs), key)

    def _array(self, group: zarr.Group, name: str) -> zarr.Array[Any]:
        if name not in group:
            chunk = list(volumes.chunk_shape(self.shape))
            rows = [c * min(BAND // volumes.CHUNK, -(-n // c)) for c, n in zip(chunk, self.shape, strict=True)]
            _, last = self._slabs[0]
            chunk[self.axis] = rows[self.axis] = last
            form = {"chunks": index3(chunk), "shards": index3(rows)}
            volumes.create_array(group, name, self.shape, "int16", **form, layout=LAYOUT)
        array = group[name]
        if not isinstance(array, zarr.Array):
            raise ScanError(f"{group.store_path}/{name} is no array; remove it and run the same command again.")
        return array

    def _box(self, planes: tuple[int, int], rows: tuple[int, int]) -> Box:
        _, _, width = move_axis(self.shape, self.axis)
        return along_axis(self.axis, planes, rows, (0, width))

    def _digest(self, task: int) -> bytes:
        _, height, _ = move_axis(self.shape, self.axis)
        box = self._box(self._slabs[task], (0, height))
        return shards.digest(b"".join(volumes.stored_digests(array, box) for array in self.arrays))

    def intact(self) -> set[int]:
        """Slabs that are done and whose stored bytes are still those that were written."""
        return self._marks.intact(self._digest)

    def missing_bytes(self) -> int:
        """Of logits, before they are compressed, in slabs that bear no done-mark."""
        _, height, width = move_axis(self.shape, self.axis)
        planes = sum(
            b - a for (a, b), digest in zip(self._slabs, self._marks.digests(), strict=True) if not any(digest)
        )
        return 2 * planes * height * width * len(self.arrays)

    def pieces(self, planes: tuple[int, int], rows: Iterable[tuple[int, Logits]]) -> Iterator[tuple[Box, Logits]]:
        """Whole shards, gathered from rows [classes, planes, rows, columns]: their box, and [classes, z, y, x] in it."""
        _, height, _ = move_axis(self.shape, self.axis)
        form = self.arrays[0].shards or self.arrays[0].chunks
        unit = next(s for a, s in enumerate(index3(form)) if a != self.axis)
        band: list[Logits] = []
        first = held = 0
        for _, part in rows:
            band.append(part)
            held += part.shape[2]
            while held >= unit or (held and first + held == height):
                whole = np.concatenate(band, axis=2) if len(band) > 1 else band[0]
                take = min(unit, held)
                box = self._box(planes, (first, first + take))
                band = [whole[:, :, take:]] if held > take else []
                first, held = first + take, held - take
                yield box, np.moveaxis(whole[:, :, :take], 1, 1 + self.axis)

    def write(self, box: Box, logits: Logits) -> list[bytes]:
        """Write the shards of a piece, whole; the digests of each class's."""
        pairs = zip(self.arrays, logits, strict=True)
        return [volumes.write_shards(array, box, part) for array, part in pairs]

    def mark(self, task: int, digests: Iterable[list[bytes]]) -> None:
        """Record that a slab is done: all its pieces are written, with these digests."""
        self._marks.mark(task, shards.digest(*(part for of_class in zip(*digests, strict=True) for part in of_class)))

    def read(self, box: Box, class_number: int = 0) -> Logits:
        """The logits of a class inside a box, in z, y, x."""
        return shards.ShardFormat.of(self.arrays[class_number]).read_box(box)
