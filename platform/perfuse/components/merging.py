"""Components across blocks: each block is labelled alone, then what touches across their borders is united.

A block hands on only what its surroundings need: the voxels of its shell with their components, and of each component that
reaches the shell its size, its first voxel, and whether it was marked. The others are settled at once.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from heapq import nlargest
from itertools import product

import numpy as np
import numpy.typing as npt

from perfuse.components.runs import REACH, Connectivity, find_runs, join_all, meets, number_runs, paint, roots, shell
from perfuse.geometry import Box, Index3

Mask = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Block:
    """The components of one block, numbered by their first voxels in C order."""

    box: Box
    size: Ints
    """Voxels of each, int64[component]."""
    origin: Ints
    """First voxel of each, in C order of the whole volume, int64[component]."""
    marked: Mask
    """Whether each holds a marked voxel, bool[component]."""
    shell: Ints
    """Foreground voxels of its six faces in the volume, int64[voxel, 3] as z, y, x, in C order."""
    owner: Ints
    """The component of each of them."""
    runs: tuple[npt.NDArray[np.int64], npt.NDArray[np.int32], npt.NDArray[np.int32], Ints]
    """Rows, starts, stops and components of the runs."""

    @property
    def open(self) -> Ints:
        """The components that reach the shell, rising."""
        return np.unique(self.owner)

    def paint(self, chosen: Mask) -> Mask:
        """The voxels of the chosen components (bool[component]), bool[z, y, x]."""
        first, start, stop, number = self.runs
        out = np.zeros(self.box.shape, np.uint8)
        paint(self.box.shape[1], first, start, stop, chosen[number], out)
        return out.view(np.bool_)


def label_block(
    mask: Mask, box: Box, shape_zyx: Index3, connectivity: Connectivity = 26, marks: Mask | None = None
) -> Block:
    """The components of a mask bool[z, y, x] that lies at `box` in a volume of `shape_zyx`; marks: bool[z, y, x], see `Block`."""
    bytes_ = np.ascontiguousarray(mask).view(np.uint8)
    first, start, stop = find_runs(bytes_)
    depth, rows = mask.shape[:2]
    number, count = number_runs(depth, rows, first, start, stop, REACH[connectivity])
    _, leading = np.unique(number, return_index=True)
    row = np.searchsorted(first, leading, "right") - 1
    z, y, x = row // rows, row % rows, start[leading].astype(np.int64)
    marked = np.zeros(count, np.bool_)
    if marks is not None:
        marked[number[meets(np.ascontiguousarray(marks).view(np.uint8), first, start, stop)]] = True
    at, run = shell(mask.shape, first, start, stop)
    return Block(
        box=box,
        size=np.bincount(number, (stop - start).astype(np.float64), count).astype(np.int64),
        origin=_flat(_placed((z, y, x), box), shape_zyx),
        marked=marked,
        shell=_placed(np.unravel_index(at, mask.shape), box),
        owner=number[run],
        runs=(first, start, stop, number),
    )


def _placed(zyx: tuple[Ints, ...], box: Box) -> Ints:
    """Voxels of a block, coordinate by coordinate, as int64[n, 3] in the volume."""
    return np.asarray(np.stack(zyx, 1).astype(np.int64) + np.array(box.start))


def _flat(zyx: Ints, shape_zyx: Index3) -> Ints:
    """Positions int64[n, 3] in C order of a volume."""
    _, rows, width = shape_zyx
    return np.asarray((zyx[:, 0] * rows + zyx[:, 1]) * width + zyx[:, 2])


@dataclass(frozen=True)
class Rule:
    """Which components stay."""

    min_voxels: int = 1
    largest: int | None = None
    """Only so many; of equally large ones those that come first in C order."""
    marked: bool | None = None
    """Only those that hold a mark, or only those that hold none."""


ALL = Rule()


@dataclass(frozen=True)
class Components:
    """The components of a whole volume, and which of them stay."""

    count: int
    """Of those that stay."""
    voxels: int
    """Of those that stay."""
    largest: int
    """Voxels of the largest that stays; 0 when none does."""
    sizes: tuple[int, ...]
    """Of those that may stay, see `by_size`; as far as there are any."""
    listed: list[tuple[int, int]]
    """Voxels, and the first of them in C order of the volume, of those of the largest that were asked for, in falling order."""
    _rule: Rule
    _last: tuple[int, int]
    """Size and negated first voxel of the last that is large enough to stay."""
    _first: dict[Index3, int]
    """Number of the first open component of each block, by where the block starts."""
    _size: Ints
    _origin: Ints
    _marked: Mask
    """Of each open component, that of the whole that it belongs to."""

    def chosen(self, block: Block) -> Mask:
        """Which components of a block stay, bool[component]; the block is as it was when the components were found."""
        size, origin, marked = block.size.copy(), block.origin.copy(), block.marked.copy()
        reaching = block.open
        ours = slice(self._first[block.box.start], self._first[block.box.start] + len(reaching))
        size[reaching], origin[reaching], marked[reaching] = self._size[ours], self._origin[ours], self._marked[ours]
        return _allowed(self._rule, size, marked) & _large_enough(size, origin, self._last)


def by_size(size: Ints) -> Ints:
    """Components by their voxels (int64[component], each below 2⁵³): how many have 2ᵏ to 2ᵏ⁺¹ − 1 at place k, int64[63]."""
    return np.bincount(np.frexp(size.astype(np.float64))[1] - 1, minlength=63)


def find_components(blocks: Iterable[Block], connectivity: Connectivity = 26, rule: Rule = ALL) -> Components:
    """Unite the components of blocks, all of them at once; see `Gathering`."""
    gathered = Gathering(connectivity, rule)
    for block in blocks:
        gathered.add(block)
    return gathered.components()


class Gathering:
    """What is known of the blocks so far: unites the components of those that tile a volume, and chooses by the rule.

    Held are a number, size, first voxel and mark of each component that reaches the shell of its block, and the faces
    that later blocks may touch: memory grows with the foreground of a cross-section and of block borders, not of the volume.
    listed: how many of the largest components are named in the end, where the rule does not say how many stay.
    """

    def __init__(self, connectivity: Connectivity = 26, rule: Rule = ALL, listed: int = 0) -> None:
        self.steps = [np.array(d) for d in product((-1, 0, 1), repeat=3) if 0 < np.abs(d).sum() <= _FAR[connectivity]]
        self.rule = rule
        self.first: dict[Index3, int] = {}
        self.open = 0
        self.parts: list[tuple[Ints, Ints, Mask]] = []
        self.pairs: list[tuple[Ints, Ints]] = []
        self.layer = 0
        self.shells: list[Shell] = []
        """The far faces of this layer's blocks, and where the layer before touches this one."""
        self.closed: list[tuple[int, int]] = []
        """Size and negated first voxel of the largest, as many as are asked for."""
        self.listed = listed if rule.largest is None else rule.largest
        self.count = self.voxels = self.largest = 0
        self.sizes: Ints = np.zeros(63, np.int64)

    def add(self, block: Block) -> None:
        """Take the next block, in the C order of their grid."""
        reaching = block.open
        self.first[block.box.start] = self.open
        self.parts.append((block.size[reaching], block.origin[reaching], block.marked[reaching]))
        owner = self.open + np.searchsorted(reaching, block.owner)
        if block.box.start[0] != self.layer:
            self.layer = block.box.start[0]
            self.shells = [_where(s, s[1][:, 0] == self.layer - 1) for s in self.shells if s[0].stop[0] == self.layer]
        for box, voxels, theirs in self.shells:
            self.pairs += self._touching(block.box, block.shell, owner, box, voxels, theirs)
        far = (block.shell == np.array(block.box.stop) - 1).any(1)
        self.shells.append(_where((block.box, block.shell, owner), far))
        self.open += len(reaching)
        inside = np.setdiff1d(
            np.flatnonzero(_allowed(self.rule, block.size, block.marked)), reaching, assume_unique=True
        )
        self._settle(block.size[inside], block.origin[inside])

    def _touching(
        self, box: Box, voxels: Ints, owner: Ints, other: Box, theirs: Ints, other_owner: Ints
    ) -> Iterator[tuple[Ints, Ints]]:
        """Pairs of components of two blocks that touch, each pair once."""
        wide = other.grown((1, 1, 1))
        if wide.intersect(box).empty:
            return
        near = _within(voxels, wide)
        back = _within(theirs, box.grown((1, 1, 1)))
        if not near.any() or not back.any():
            return
        size = wide.grown((1, 1, 1)).shape
        keys = _flat(theirs[back] - wide.start + 1, size)
        ours = voxels[near] - wide.start + 1
        found: list[Ints] = []
        for step in self.steps:
            wanted = _flat(ours + step, size)
            at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
            hit = keys[at] == wanted
            found.append(np.stack([owner[near][hit], other_owner[back][at[hit]]], 1))
        pairs = np.unique(np.concatenate(found), axis=0)
        yield pairs[:, 0], pairs[:, 1]

    def _settle(self, size: Ints, origin: Ints) -> None:
        """Count components that are whole and may stay."""
        if self.listed:
            self.closed += zip(size.tolist(), (-origin).tolist(), strict=True)
            self.closed = nlargest(self.listed, self.closed)
        self.count += len(size)
        self.voxels += int(size.sum())
        self.largest = max(self.largest, int(size.max(initial=0)))
        self.sizes += by_size(size)

    def components(self) -> Components:
        """What the whole volume holds, once all blocks were added."""
        size, origin, marked = (np.concatenate(p) if p else np.empty(0, np.int64) for p in self._columns())
        parent = np.arange(self.open)
        for a, b in self.pairs:
            join_all(parent, a, b)
        of = roots(parent)
        total, start, any_mark = np.zeros_like(size), origin.copy(), np.zeros(self.open, np.bool_)
        np.add.at(total, of, size)
        np.minimum.at(start, of, origin)
        np.logical_or.at(any_mark, of, marked.astype(np.bool_))
        whole = np.flatnonzero(of == np.arange(self.open))
        stay = whole[_allowed(self.rule, total[whole], any_mark[whole])]
        self._settle(total[stay], start[stay])
        last = (0, 0)
        if self.rule.largest is not None:
            self.count, self.voxels = len(self.closed), sum(n for n, _ in self.closed)
            last = self.closed[-1] if self.closed else last
        listed = [(n, -first) for n, first in self.closed]
        return Components(
            self.count,
            self.voxels,
            self.largest,
            tuple(np.trim_zeros(self.sizes, "b").tolist()),
            listed,
            self.rule,
            last,
            self.first,
            total[of],
            start[of],
            any_mark[of],
        )

    def _columns(self) -> list[list[npt.NDArray[np.generic]]]:
        return [[part[n] for part in self.parts] for n in range(3)]


Shell = tuple[Box, Ints, Ints]
"""A block, voxels of its faces, and their components."""


def _where(shell: Shell, chosen: Mask) -> Shell:
    box, voxels, owner = shell
    return box, voxels[chosen], owner[chosen]


_FAR: dict[Connectivity, int] = {6: 1, 18: 2, 26: 3}


def _within(voxels: Ints, box: Box) -> Mask:
    return np.asarray(((voxels >= box.start) & (voxels < box.stop)).all(1))


def _allowed(rule: Rule, size: Ints, marked: Mask) -> Mask:
    allowed = size >= rule.min_voxels
    return allowed if rule.marked is None else allowed & (marked == rule.marked)


def _large_enough(size: Ints, origin: Ints, last: tuple[int, int]) -> Mask:
    return np.asarray((size > last[0]) | ((size == last[0]) & (-origin >= last[1])))
