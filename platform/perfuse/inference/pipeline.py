"""Slabs through the network, where nothing waits that need not.

    one thread           the engine's          this thread    WRITERS threads
    reads and        →   streams normalise →   blends a   →   compress and write  →  this thread
    decompresses         and compute batches   row of         whole shards           marks the slab done
    one band ahead       as many wait          tiles          as many wait

What is read and computed ahead goes on into the next slab. An error or Ctrl-C anywhere ends all of it; a slab is marked when all of its
shards are written, and not before.
"""

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from perfuse.geometry import Box
from perfuse.inference.engine import Engine, Fixed, Images
from perfuse.inference.logits import Logits
from perfuse.inference.region import Region
from perfuse.inference.scratch import Scratch
from perfuse.inference.slab import Tiles
from perfuse.normalisation import bounds, normalise
from perfuse.parallel import in_order

WRITERS = 2
Band = npt.NDArray[Any]
Row = dict[str, int]


@dataclass(frozen=True)
class Slab:
    """A slab to do."""

    row: Row
    """By which whoever asked for it knows it."""
    scratch: Scratch
    task: int
    planes: tuple[int, int]


@dataclass(frozen=True)
class _Piece:
    slab: Slab
    box: Box
    logits: Logits

    @property
    def last(self) -> bool:
        """No more of the slab follows: it ends where the volume ends, along every axis but that of the slab."""
        scratch = self.slab.scratch
        return all(self.box.stop[a] == scratch.shape[a] for a in range(3) if a != scratch.axis)


def finished(region: Region, slabs: list[Slab], engine: Engine) -> Iterator[Row]:
    """Compute the logits of slabs, write their shards whole, then their done-marks: the row of each when it is done."""
    forward, shape = engine.forward, region.grid.shape_zyx
    window = bounds(region.grid.scan, forward.normalisation)
    needed = None if region.everywhere else region.needed

    def read(box: Box) -> tuple[Box, Band]:
        return box, region.grid.read(box)

    def shown(made: Callable[[], Band]) -> Callable[[], Images]:
        return lambda: normalise(made(), window, forward.normalisation)

    def write(piece: _Piece) -> tuple[_Piece, list[bytes]]:
        return piece, piece.slab.scratch.write(piece.box, piece.logits)

    tiles = [Tiles(forward, shape, s.scratch.axis, s.planes, needed) for s in slabs]
    boxes = (box for of_slab in tiles for box in of_slab.boxes())
    digests: list[list[bytes]] = []
    with (
        closing(in_order(read, boxes, threads=1, waiting=1)) as bands,
        closing(engine.all_logits(map(shown, _batches(tiles, bands)))) as answers,
        closing(in_order(write, _pieces(slabs, tiles, answers), threads=WRITERS, waiting=WRITERS)) as written,
    ):
        for piece, found in written:
            digests.append(found)
            if piece.last:
                piece.slab.scratch.mark(piece.slab.task, digests)
                digests = []
                yield piece.slab.row


def _batches(tiles: list[Tiles], bands: Iterator[tuple[Box, Band]]) -> Iterator[Callable[[], Band]]:
    def next_band(box: Box) -> Band:
        there, voxels = next(bands)
        assert box == there, f"{there} was read ahead, and {box} is asked for"
        return voxels

    for of_slab in tiles:
        yield from of_slab.batches(next_band)


def _pieces(slabs: list[Slab], tiles: list[Tiles], answers: Iterator[Fixed]) -> Iterator[_Piece]:
    for slab, of_slab in zip(slabs, tiles, strict=True):
        for box, logits in slab.scratch.pieces(slab.planes, of_slab.rows(answers)):
            yield _Piece(slab, box, logits)
