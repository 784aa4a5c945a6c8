"""What is known of a training scan before any of its voxels is read: where organ, labels and vessels lie, chunk by chunk."""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from perfuse import validity
from perfuse.catalog import Scan
from perfuse.contract import Normalisation
from perfuse.errors import RecipeError
from perfuse.geometry import Box
from perfuse.measured import occupancy
from perfuse.normalisation import bounds
from perfuse.shards import ShardFormat
from perfuse.training.job import Source

EMPTY_SHARE = 0.02
"""Of the bricks that are laid anywhere: those that may lie over chunks with nothing but background."""
VESSEL_VOXELS = 4_000_000
"""Of the label's level that says where vessels are: the finest that is no larger."""

Point = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Labelled:
    """The label of a class in a scan, as far as it may be seen."""

    source: Source
    scan: Scan
    extent: Box

    @cached_property
    def form(self) -> ShardFormat:
        """How it is stored."""
        return ShardFormat.of(self.scan.label(self.source.label))

    @cached_property
    def given(self) -> list[tuple[str, float, Box]]:
        """Kind and coverage of the label in disjoint boxes, which make up all that is known of it inside the extent."""
        boxes = self.scan.label_boxes(self.source.label)
        parts = validity.visible([b.box for b in boxes])
        inside = [(b, part.intersect(self.extent)) for b, visible in zip(boxes, parts, strict=True) for part in visible]
        return [(b.kind, b.coverage, part) for b, part in inside if not part.empty]

    @property
    def annotated(self) -> float:
        """The share of the extent that is annotated; a sparse box counts as far as its coverage says."""
        return sum(coverage * box.size for _, coverage, box in self.given) / self.extent.size

    def is_known(self, box: Box) -> bool:
        """True when the label is known everywhere in a box: dense or soft. Else it has to be read."""
        return sum(part.intersect(box).size for kind, _, part in self.given if kind != "sparse") == box.size

    def read_known(self, box: Box, values: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Where it is known in a box, 0 or 1: [z, y, x]. values: its voxels there."""
        return self.scan.read_known(self.source.label, box, values).view(np.uint8)

    @cached_property
    def vessels(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Voxels [n, 3] of a coarser level that hold vessel inside the extent, and the size of one in voxels."""
        level = next(k for k in range(self.scan.levels) if self._level(k).size <= VESSEL_VOXELS)
        coarse = self._level(level)
        factor = 2 ** np.rint(np.log2(np.divide(self.scan.shape_zyx, coarse.shape))).astype(np.int64)
        found = np.argwhere(np.asarray(coarse[:]) >= 128)
        start = np.floor_divide(self.extent.start, factor)
        return found[((found >= start) & (found * factor < self.extent.stop)).all(1)], factor

    def _level(self, level: int) -> Any:
        return self.scan.label_level(self.source.label, level)


@dataclass(frozen=True)
class Opened:
    """A scan that crops are cut from, and the box of it that may be seen."""

    sources: tuple[Source | None, ...]
    """By class; None where the scan has no label of that class."""
    scan: Scan
    extent: Box
    low: float
    high: float
    """The intensities that become 0 and 1."""

    @cached_property
    def image(self) -> ShardFormat:
        """How the image is stored."""
        return ShardFormat.of(self.scan.image)

    @cached_property
    def labels(self) -> tuple[Labelled | None, ...]:
        """By class."""
        return tuple(None if s is None else Labelled(s, self.scan, self.extent) for s in self.sources)

    @property
    def _held(self) -> list[Labelled]:
        return [label for label in self.labels if label is not None]

    @property
    def annotated(self) -> float:
        """The share of the extent that is annotated, mean over the classes."""
        return sum(label.annotated for label in self._held) / len(self.labels)

    def voxel_bytes(self) -> int:
        """Memory of a voxel: image, labels, and what is known of each."""
        return self.image.dtype.itemsize + 2 * len(self._held)

    @cached_property
    def _chunks(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Chunks [n, 3] that hold labelled organ; sums, up to and with each, of its voxels, without and with background chunks."""
        weights = np.zeros([-(-n // c) for n, c in zip(self.scan.shape_zyx, self.scan.image.chunks, strict=True)])
        for _, _, box in (part for label in self._held for part in label.given):
            weights += np.einsum("i,j,k->ijk", *(self._shared(axis, box) for axis in range(3)))
        organ = self.scan.organ_share()
        if organ is not None:
            weights *= organ / np.prod(self.scan.image.chunks)
        chunks = np.argwhere(weights > 0)
        if not len(chunks):
            source = self._held[0].source
            raise RecipeError(
                f"No crop of specimen {source.specimen} can be trained on: label {source.label!r} was given "
                "nowhere inside its organ mask. Correct one of them (`perfuse labels add`), or leave it out: --set train=…"
            )
        held = weights[tuple(chunks.T)]
        extremes = occupancy(self.scan.group)
        if extremes is None:
            return chunks, np.cumsum(held), np.cumsum(held)
        lowest, highest = extremes[tuple(chunks.T)].astype(np.float64).T
        busy = held * ((highest > self.low) & (highest > lowest))
        return chunks, np.cumsum(busy), np.cumsum(held)

    def _shared(self, axis: int, box: Box) -> npt.NDArray[np.float64]:
        """Voxels along an axis that each chunk has in common with a box."""
        size = self.scan.image.chunks[axis]
        starts = np.arange(0, self.scan.shape_zyx[axis], size)
        common = np.minimum(starts + size, box.stop[axis]) - np.maximum(starts, box.start[axis])
        return np.asarray(np.maximum(common, 0), np.float64)

    @cached_property
    def _before(self) -> npt.NDArray[np.int64]:
        """Chunks that hold labelled organ, of those before each along all three axes."""
        shape = [-(-n // c) for n, c in zip(self.scan.shape_zyx, self.scan.image.chunks, strict=True)]
        table = np.zeros([n + 1 for n in shape], np.int64)
        table[tuple((self._chunks[0] + 1).T)] = 1
        for axis in range(3):
            np.cumsum(table, axis=axis, out=table)
        return table

    def held_along(self, axis: int, box: Box) -> list[tuple[int, int]]:
        """The runs of planes along an axis, counted from a box's first one, where a chunk that holds labelled organ meets the box."""
        size = self.scan.image.chunks
        first, last = np.floor_divide(box.start, size), np.floor_divide(np.subtract(box.stop, 1), size)
        ends = [(int(a), int(b) + 1) for a, b in zip(first, last, strict=True)]
        so_far = np.zeros(last[axis] - first[axis] + 2, np.int64)
        for corner in product((0, 1), repeat=2):
            at: list[int | slice] = [
                ends[a][k] for a, k in zip((a for a in range(3) if a != axis), corner, strict=True)
            ]
            at.insert(axis, slice(first[axis], last[axis] + 2))
            so_far += (-1) ** sum(corner) * self._before[tuple(at)]
        held = np.flatnonzero(np.diff(np.diff(so_far) > 0, prepend=False, append=False))
        planes = (np.add(held, first[axis]) * size[axis] - box.start[axis]).clip(0, box.stop[axis] - box.start[axis])
        return [(int(a), int(b)) for a, b in planes.reshape(-1, 2)]

    def somewhere(self, rng: np.random.Generator) -> Point:
        """A point, in voxels: in a chunk that holds labelled organ, the likelier the more; seldom in one of background."""
        chunks, busy, held = self._chunks
        sums = held if rng.random() < EMPTY_SHARE or not busy[-1] else busy
        chunk = chunks[np.searchsorted(sums, rng.random() * sums[-1], side="right")]
        start = np.maximum(chunk * self.scan.image.chunks, self.extent.start)
        stop = np.minimum((chunk + 1) * self.scan.image.chunks, self.extent.stop)
        return np.asarray(start + rng.random(3) * (stop - start))

    def at_vessel(self, rng: np.random.Generator) -> tuple[int, Point] | None:
        """A class, any that is marked here being equally likely, and a point of it, in voxels; None where nothing is marked."""
        there = [number for number, label in enumerate(self.labels) if label is not None and len(label.vessels[0])]
        if not there:
            return None
        number = there[rng.integers(len(there))]
        found, factor = self.labels[number].vessels  # type: ignore[union-attr]
        point = (found[rng.integers(len(found))] + rng.random(3)) * factor
        return number, np.asarray(np.clip(point, self.extent.start, np.subtract(self.extent.stop, 1)))


@lru_cache(maxsize=64)
def opened(sources: tuple[Source | None, ...], normalisation: Normalisation) -> Opened:
    """A training scan, as one of `TrainingJob.scans`, opened once in a process."""
    any_of_them = next(filter(None, sources))
    scan = Scan.open(any_of_them.url)
    extent = any_of_them.extent(scan.shape_zyx)
    return Opened(sources, scan, extent, *bounds(scan, normalisation))
