"""The one pass: a tree of Dask tasks, one a slab, each of which alone writes the shards of its planes.

    level 0, slab 0:  decode → shards → done-mark → halve ─┐
    level 0, slab 1:  decode → shards → done-mark → halve ─┴▶ level 1, slab 0:  shards → done-mark → halve ─▶ …

Dask bounds how many slabs are in memory; within a slab, slices and shards share one pool of threads. On resume, slabs
whose stored shards equal their marks are left alone, and read back only where a coarser slab needs their halves.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from dask.base import compute
from dask.delayed import delayed

from perfuse import storage, volumes
from perfuse.geometry import Box, blocks, index3, runs
from perfuse_ingest.measures import Measures, measure
from perfuse_ingest.plan import IngestPlan, Slab, slab_tree
from perfuse_ingest.sources import Source

Planes = npt.NDArray[Any]
Key = tuple[int, int]


@dataclass
class Pass:
    """One pass over a stack, into a scan whose arrays are there."""

    scan_url: str
    stack: Source
    levels: list[volumes.Level]
    arrays: list[zarr.Array[Any]]
    marks: list[volumes.DoneMarks]
    """One a level."""
    measures: Measures

    def run(self, plan: IngestPlan, advance: Callable[[int], None]) -> None:
        """Do every slab that is not stored intact. advance: called with the number of slices that are done."""
        tree = slab_tree(self.levels)
        self._advance = advance
        with ThreadPoolExecutor(plan.threads) as self._pool:
            todo = self._todo(tree)
            self._advance(sum(s.box.shape[0] for s in tree[0] if (0, s.index) not in todo))
            with ThreadPoolExecutor(plan.in_flight) as workers:
                compute(*self._graph(tree, todo), scheduler="threads", pool=workers)  # type: ignore[no-untyped-call]

    def _todo(self, tree: list[list[Slab]]) -> set[Key]:
        """Slabs whose shards are missing, torn or not yet written."""
        todo = set()
        for slabs, marks in zip(tree, self.marks, strict=True):
            for slab, mark in zip(slabs, marks.digests(), strict=True):
                if not any(mark) or mark != self._digests(slab, self._stored):
                    todo.add((slab.level, slab.index))
        return todo

    def _graph(self, tree: list[list[Slab]], todo: set[Key]) -> list[Any]:
        """Dask tasks that do `todo`. A task gives its halves to its parent; the last ones give None, which are returned."""
        parent = {(s.level - 1, c): (s.level, s.index) for slabs in tree[1:] for s in slabs for c in s.children}
        tasks: dict[Key, Any] = {}

        def halves(child: Slab) -> Any:
            key = child.level, child.index
            return tasks[key] if key in tasks else delayed(partial(self._stored_halves, child))()

        for slab in (s for slabs in tree for s in slabs if (s.level, s.index) in todo):
            wanted = parent.get((slab.level, slab.index)) in todo
            parts = [halves(tree[slab.level - 1][c]) for c in slab.children]
            tasks[slab.level, slab.index] = delayed(partial(self._do, slab, wanted))(parts)
        return [task for key, task in tasks.items() if parent.get(key) not in todo]

    def _do(self, slab: Slab, halves_wanted: bool, parts: Sequence[Planes]) -> Planes | None:
        voxels = np.concatenate(parts) if slab.level else self._decode(slab)
        digests = self._digests(
            slab, lambda level, box: self._write(level, box, voxels[box.relative_to(slab.box.start).slices])
        )
        self.marks[slab.level].mark(slab.index, digests)
        if slab.level == 0:
            self._advance(slab.box.shape[0])
        return self._halve(voxels, slab) if halves_wanted else None

    def _decode(self, slab: Slab) -> Planes:
        voxels, digests = self.stack.read(slab.box, self._pool)
        chunk = index3(self.arrays[0].chunks)
        bands = self._pool.map(
            lambda rows: measure(voxels[:, rows[0] : rows[1]], chunk[2]), runs(voxels.shape[1], chunk[1])
        )
        self.measures.store(slab, digests or [], list(bands))
        return voxels

    def _digests(self, slab: Slab, digest: Callable[[int, Box], bytes]) -> bytes:
        """The digests of a slab's shards, one after the other."""
        array = self.arrays[slab.level]
        shards = [b.shifted(slab.box.start) for b in blocks(slab.box.shape, index3(array.shards or array.chunks))]
        return b"".join(self._pool.map(lambda box: digest(slab.level, box), shards))

    def _write(self, level: int, box: Box, voxels: Planes) -> bytes:
        volumes.write_shards(self.arrays[level], box, voxels)
        return self._stored(level, box)

    def _stored(self, level: int, box: Box) -> bytes:
        return volumes.stored_digest(storage.join(self.scan_url, str(level)), self.arrays[level], box)

    def _stored_halves(self, slab: Slab) -> Planes:
        return self._halve(np.asarray(self.arrays[slab.level][slab.box.slices]), slab)

    def _halve(self, voxels: Planes, slab: Slab) -> Planes:
        return halve_in_bands(self._pool, voxels, self.levels[slab.level + 1].factor_zyx)


def halve_in_bands(pool: Executor, voxels: Planes, factor_zyx: tuple[int, int, int]) -> Planes:
    """`volumes.halve` by mean, a band of rows a thread, so that what it needs beside its result stays small."""
    halves = np.empty([-(-n // f) for n, f in zip(voxels.shape, factor_zyx, strict=True)], voxels.dtype)
    rows = factor_zyx[1]

    def halve(band: tuple[int, int]) -> None:
        start, stop = band
        halves[:, start // rows : -(-stop // rows)] = volumes.halve(voxels[:, start:stop], factor_zyx, "mean")

    list(pool.map(halve, runs(voxels.shape[1], volumes.CHUNK)))
    return halves
