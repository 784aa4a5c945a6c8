"""The one pass: a tree of tasks, one a slab, each of which alone writes the shards of its planes.

    level 0, slab 0:  decode → shards → done-mark → halve ─┐
    level 0, slab 1:  decode → shards → done-mark → halve ─┴▶ level 1, slab 0:  shards → done-mark → halve ─▶ …

Where not even one slab fits in memory, a slab is worked in bands of rows, as high as a shard, and the coarser levels are
made from the stored ones. On resume, slabs whose stored shards equal their marks are left alone, and read back only
where a coarser slab needs their halves.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from perfuse import storage, volumes
from perfuse.errors import ScanError
from perfuse.geometry import Box, index3, runs
from perfuse.shards import ShardFormat
from perfuse_ingest.measures import Measures
from perfuse_ingest.plan import IngestPlan, Slab, slab_tree
from perfuse_ingest.scratch import PlaneFile
from perfuse_ingest.sources.source import Source
from perfuse_ingest.tally import Tally

Planes = npt.NDArray[Any]
Key = tuple[int, int]
STORED_AT_ONCE = 8
"""Shards on their way to an object store."""


@dataclass
class Pass:
    """One pass over a source, into a scan whose arrays are there. Travels to the workers of a cluster."""

    scan_url: str
    source: Source
    levels: list[volumes.Level]
    plan: IngestPlan
    key: str
    """Digest of what the scan is made from: done-marks of another key do not count."""
    advance: Callable[[int], None] = field(default=lambda _: None)
    """Told how many slices are done; stays in the process that began."""

    def __getstate__(self) -> tuple[Any, ...]:
        return self.scan_url, self.source, self.levels, self.plan, self.key

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.__init__(*state)  # type: ignore[misc]

    @cached_property
    def group(self) -> zarr.Group:
        """The scan, opened for writing."""
        return volumes.open_group(self.scan_url, "r+")

    @cached_property
    def measures(self) -> Measures:
        """What falls out of the pass."""
        return Measures(self.group.require_group("perfuse"))

    @cached_property
    def tree(self) -> list[list[Slab]]:
        """The slabs of all levels, finest first."""
        return slab_tree(self.levels, self.plan.layout)

    @cached_property
    def arrays(self) -> list[zarr.Array[Any]]:
        """The levels."""
        found = [self.group.get(str(k)) for k in range(len(self.levels))]
        for level, array in enumerate(found):
            if not isinstance(array, zarr.Array):
                raise ScanError(f"{self.scan_url} is damaged: level {level} is missing. Remove the scan, ingest again.")
        return found  # type: ignore[return-value]

    @cached_property
    def forms(self) -> list[ShardFormat]:
        """How the shards of each level are made."""
        return [ShardFormat.of(array) for array in self.arrays]

    @cached_property
    def marks(self) -> list[volumes.DoneMarks]:
        """One a level."""
        done = self.group.require_group("perfuse/done")
        widths = [len(form.shards(slabs[0].box)) for form, slabs in zip(self.forms, self.tree, strict=True)]
        return [
            volumes.DoneMarks(done, str(level), len(slabs), self.key, shards=width)
            for level, (slabs, width) in enumerate(zip(self.tree, widths, strict=True))
        ]

    @cached_property
    def pool(self) -> Executor:
        """Threads that decode slices and encode shards."""
        return ThreadPoolExecutor(self.plan.threads)

    @cached_property
    def writers(self) -> Executor:
        """Threads that store shards: on a disk or, waiting for answers, in an object store."""
        return ThreadPoolExecutor(STORED_AT_ONCE if storage.is_remote(self.scan_url) else self.plan.threads)

    def todo(self) -> set[Key]:
        """Slabs whose shards are missing, torn or not yet written."""
        missing = set()
        for slabs, marks in zip(self.tree, self.marks, strict=True):
            for slab, mark in zip(slabs, marks.digests(), strict=True):
                if not any(mark) or mark != self._stored(slab):
                    missing.add((slab.level, slab.index))
        return missing

    def _stored(self, slab: Slab) -> bytes:
        form = self.forms[slab.level]
        return b"".join(self.pool.map(form.stored_digest, form.shards(slab.box)))

    def do(self, slab: Slab, halves_wanted: bool, parts: Sequence[Planes]) -> Planes | None:
        """Make one slab, from slices or from the halves of its children; returns its own halves where they are wanted."""
        if slab.level:
            voxels = np.concatenate(parts)
        else:
            voxels, digests = self.source.read(slab.box, self.pool)
            tally = self._tally(slab)
            tally.add(voxels)
            tally.store(self.measures, digests or [])
        stored = self._write(slab.level, slab.box, voxels)
        halves = halve_in_bands(self.pool, voxels, self.levels[slab.level + 1].factor_zyx) if halves_wanted else None
        self.marks[slab.level].mark(slab.index, _joined(stored))
        if slab.level == 0:
            self.advance(slab.box.shape[0])
        return halves

    def do_in_bands(self, slab: Slab) -> None:
        """Make one slab of level 0, a row of shards after the other."""
        digests, stored = b"", list[Future[bytes]]()
        with self._rows_of(slab) as (rows, of_slices):
            tally = self._tally(slab)
            for start, stop in runs(slab.box.stop[1], self.forms[0].shard_zyx[1]):
                band = Box((slab.box.start[0], start, 0), (slab.box.stop[0], stop, slab.box.stop[2]))
                voxels = rows(band)
                tally.add(voxels)
                digests += _joined(stored)
                stored = self._write(0, band, voxels)
        tally.store(self.measures, of_slices or [])
        self.marks[0].mark(slab.index, digests + _joined(stored))
        self.advance(slab.box.shape[0])

    @contextmanager
    def _rows_of(self, slab: Slab) -> Iterator[tuple[Callable[[Box], Planes], list[bytes] | None]]:
        start, stop = slab.box.start[0], slab.box.stop[0]
        if self.source.cuts_rows:
            yield lambda band: self.source.rows(band, self.pool), self.source.digests(start, stop, self.pool)
            return
        with PlaneFile(slab.box, self.source.dtype) as scratch:
            digests: list[bytes] = []
            for first, last in runs(stop - start, self.plan.threads):
                part = Box((start + first, 0, 0), (start + last, *slab.box.stop[1:]))
                voxels, found = self.source.read(part, self.pool)
                scratch.write(part.start[0], voxels)
                digests += found or []
            yield scratch.rows, digests or None

    def do_from_stored(self, slab: Slab) -> None:
        """Make one slab of a coarser level from the level above as it is stored, a shard after the other."""
        factor, digests = self.levels[slab.level].factor_zyx, b""
        for shard in self.forms[slab.level].shards(slab.box):
            start = index3([a * f for a, f in zip(shard.start, factor, strict=True)])
            stop = index3([b * f for b, f in zip(shard.stop, factor, strict=True)])
            above = Box(start, stop).intersect(Box.whole(self.levels[slab.level - 1].shape_zyx))
            halves = self.stored_halves(replace(slab, level=slab.level - 1, box=above))
            digests += _joined(self._write(slab.level, shard, halves))
        self.marks[slab.level].mark(slab.index, digests)

    def stored_halves(self, part: Slab) -> Planes:
        """The halves of a stored part of a level that begins and ends at shards' borders, a shard a thread."""
        form, factor = self.forms[part.level], self.levels[part.level + 1].factor_zyx
        halves = np.empty([-(-n // f) for n, f in zip(part.box.shape, factor, strict=True)], form.dtype)

        def halve(shard: Box) -> None:
            inside = shard.relative_to(part.box.start)
            start = [a // f for a, f in zip(inside.start, factor, strict=True)]
            stop = [-(-b // f) for b, f in zip(inside.stop, factor, strict=True)]
            place = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
            volumes.halve(form.read(shard), factor, "mean", halves[place])

        list(self.pool.map(halve, form.shards(part.box)))
        return halves

    def _tally(self, slab: Slab) -> Tally:
        return Tally(self.pool, slab, self.source.dtype, self.forms[0].chunk_zyx)

    def _write(self, level: int, box: Box, voxels: Planes) -> list[Future[bytes]]:
        """Encode the shards of a box; the digests of each come when it is stored."""
        form = self.forms[level]

        def write(shard: Box) -> Future[bytes]:
            return self.writers.submit(form.store, shard, form.encode(voxels[shard.relative_to(box.start).slices]))

        return list(self.pool.map(write, form.shards(box)))


def _joined(stored: list[Future[bytes]]) -> bytes:
    return b"".join(digest.result() for digest in stored)


def halve_in_bands(pool: Executor, voxels: Planes, factor_zyx: tuple[int, int, int]) -> Planes:
    """`volumes.halve` by mean, a band of rows a thread."""
    halves = np.empty([-(-n // f) for n, f in zip(voxels.shape, factor_zyx, strict=True)], voxels.dtype)

    def halve(band: tuple[int, int]) -> None:
        rows = slice(band[0] // factor_zyx[1], -(-band[1] // factor_zyx[1]))
        volumes.halve(voxels[:, band[0] : band[1]], factor_zyx, "mean", halves[:, rows])

    list(pool.map(halve, runs(voxels.shape[1], volumes.CHUNK)))
    return halves
