"""Slabs through the network, where nothing waits that need not.

    one thread           this thread              WRITERS threads
    reads, decompresses  network, blending   →    compress and write     →  this thread
    and normalises   →   of a row of tiles        whole shards              marks the slab done
    one band ahead                                as many wait

What is read ahead goes on into the next slab. An error or Ctrl-C anywhere ends all of it; a slab is marked when all of its
shards are written, and not before.
"""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from perfuse.geometry import Box
from perfuse.inference.engine import Engine
from perfuse.inference.logits import Logits
from perfuse.inference.region import Region
from perfuse.inference.scratch import Scratch
from perfuse.inference.slab import Needed, boxes_read, rows_of_logits
from perfuse.normalisation import bounds, normalise
from perfuse.parallel import in_order

WRITERS = 2
Band = npt.NDArray[np.float32]
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
        return box, normalise(region.grid.read(box), window, forward.normalisation)

    def write(piece: _Piece) -> tuple[_Piece, list[bytes]]:
        return piece, piece.slab.scratch.write(piece.box, piece.logits)

    boxes = (box for s in slabs for box in boxes_read(forward, shape, s.scratch.axis, s.planes, needed))
    digests: list[list[bytes]] = []
    with (
        closing(in_order(read, boxes, threads=1, waiting=1)) as bands,
        closing(in_order(write, _pieces(slabs, engine, bands, needed), threads=WRITERS, waiting=WRITERS)) as written,
    ):
        for piece, found in written:
            digests.append(found)
            if piece.last:
                piece.slab.scratch.mark(piece.slab.task, digests)
                digests = []
                yield piece.slab.row


def _pieces(
    slabs: list[Slab], engine: Engine, bands: Iterator[tuple[Box, Band]], needed: Needed | None
) -> Iterator[_Piece]:
    def next_band(box: Box) -> Band:
        there, voxels = next(bands)
        assert box == there, f"{there} was read ahead, and {box} is asked for"
        return voxels

    for slab in slabs:
        scratch = slab.scratch
        for box, logits in scratch.pieces(
            slab.planes, rows_of_logits(engine, next_band, scratch.shape, scratch.axis, slab.planes, needed)
        ):
            yield _Piece(slab, box, logits)
