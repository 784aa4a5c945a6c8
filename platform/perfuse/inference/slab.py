"""One slab along one axis: tiles through the network into rows of finished logits.

    rows of tiles        ┌────────┐ tile row r     a band of T rows is open at a time;
    roll down the slab   │▒▒▒▒▒▒▒▒│                when tile row r + 1 begins at its row r + stride,
                         ├────────┤ tile row r + 1 all rows above are final and leave the band
                         └────────┘

A panel stands at the plane in its middle. Batches are the panels at `PLANES` consecutive planes of one tile, beginning at
absolute multiples of `PLANES`; beyond the scan its last plane is repeated. So a batch holds the same pixels however the
slabs are cut, and a plane's logits the same bits.

A network that segments all planes of its panels sees each plane in as many panels; those that stand outside a slab, but show
planes of it, are computed too, and the integer mean is over all of them.

Tiles that nobody needs are left out, `PLANES` planes at a time, again counted from the scan's first: what no tile showed is background.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cache, cached_property, partial
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from perfuse.contract import Forward, Network
from perfuse.geometry import Box, Index3, along_axis, move_axis, tile_starts
from perfuse.inference import blending
from perfuse.inference.engine import Engine, Fixed, Images
from perfuse.inference.logits import BACKGROUND, LIMIT, ONE, P_ONE, Logits, divide, window

PLANES = 8
"""Planes in a batch; slabs are multiples of it."""

Voxels = npt.NDArray[Any]
Read = Callable[[Box], Voxels]
Needed = Callable[[Box], bool]
"""Whether the network has to see what lies in a box of the volume."""


@dataclass(frozen=True)
class Tiles:
    """The tiles of a slab: what a network is shown of them, and the rows that its answers add up to."""

    forward: Forward
    shape_zyx: Index3
    axis: int
    planes: tuple[int, int]
    """First and last + 1; the first a multiple of `PLANES`."""
    needed: Needed | None = None
    """Of the part of a tile that is inside the volume; None: of all. What no tile shows is background."""

    @cached_property
    def wanted(self) -> dict[int, dict[int, list[int]]]:
        """Of the tiles that begin at a row: the first column of each that is needed, and in which runs of `PLANES` planes."""
        _, height, _ = move_axis(self.shape_zyx, self.axis)
        return {top: self._wanted(top) for top in tile_starts(height, self.forward.tile, self.forward.stride)}

    def _wanted(self, top: int) -> dict[int, list[int]]:
        tile = self.forward.tile
        _, height, width = move_axis(self.shape_zyx, self.axis)
        runs = list(enumerate(range(*self.planes, PLANES)))
        lefts = tile_starts(width, tile, self.forward.stride)
        if self.needed is None:
            every = [run for run, _ in runs]
            return dict.fromkeys(lefts, every)
        found: dict[int, list[int]] = {}
        for left in lefts:
            rows, columns = (top, min(top + tile, height)), (left, min(left + tile, width))
            for run, start in runs:
                if self.needed(along_axis(self.axis, (start, min(start + PLANES, self.planes[1])), rows, columns)):
                    found.setdefault(left, []).append(run)
        return found

    @property
    def pictures(self) -> int:
        """Planes of tiles that are needed, once however many views there are."""
        thick = [min(start + PLANES, self.planes[1]) - start for start in range(*self.planes, PLANES)]
        return sum(thick[run] for tiles in self.wanted.values() for runs in tiles.values() for run in runs)

    @property
    def count(self) -> int:
        """How many `batches` there are."""
        lasting = cache(lambda runs: len(_places_of(self.forward.network, self.planes, runs)))
        return sum(lasting(tuple(runs)) for tiles in self.wanted.values() for runs in tiles.values())

    def boxes(self) -> list[Box]:
        """What is read for them, in order: a box for each row of tiles of which one is needed."""
        return [self._box(top, tiles) for top, tiles in self.wanted.items() if tiles]

    def _box(self, top: int, tiles: dict[int, list[int]]) -> Box:
        tile, shown = self.forward.tile, planes_shown(self.forward.network, self.planes)
        return _box_read(self.shape_zyx, self.axis, shown, (top, top + tile), (min(tiles), max(tiles) + tile))

    def batches(self, read: Read) -> Iterator[Callable[[], Voxels]]:
        """What the network is shown, tile by tile: [PLANES, planes, tile, tile]. read: voxels of one of `boxes`."""
        network, tile = self.forward.network, self.forward.tile
        first, _ = shown = planes_shown(network, self.planes)
        for top, tiles in self.wanted.items():
            if not tiles:
                continue
            voxels = np.moveaxis(read(self._box(top, tiles)), self.axis, 0)
            pixels = _beyond(voxels, shown, self.shape_zyx[self.axis])
            for left, runs in tiles.items():
                at = left - min(tiles)
                part = _pad_to(pixels[:, :, at : at + tile], tile)
                for place in _places_of(network, self.planes, runs):
                    yield partial(_panels, part, [place - first + n for n in network.shown])

    def rows(self, answers: Iterator[Fixed]) -> Iterator[tuple[int, Logits]]:
        """Finished rows, in order, as seen along the axis: (first row, int16[classes, planes, rows, columns]).

        answers: to `batches`, of which no more are taken than there are.
        """
        _, height, width = move_axis(self.shape_zyx, self.axis)
        band = _Band(self.forward, width, self.planes)
        for top, bottom in pairwise([*self.wanted, height]):
            for left, runs in self.wanted[top].items():
                band.add(left, runs, answers)
            done = min(bottom, height) - top
            yield top, band.finished(done)[..., :width]
            if bottom < height:
                band.roll(done)


def rows_of_logits(
    engine: Engine,
    read: Read,
    shape_zyx: Index3,
    axis: int,
    planes: tuple[int, int],
    needed: Needed | None = None,
) -> Iterator[tuple[int, Logits]]:
    """`Tiles.rows` of one slab, from the engine's answers. read: normalised voxels, float32."""
    tiles = Tiles(engine.forward, shape_zyx, axis, planes, needed)
    with closing(engine.all_logits(tiles.batches(read))) as answers:
        yield from tiles.rows(answers)


class _Band:
    """The rows of a slab that tiles are being added to."""

    def __init__(self, forward: Forward, width: int, planes: tuple[int, int]) -> None:
        self.network, self.planes = forward.network, planes
        self.tile, self.largest = forward.tile, forward.window == "max"
        self.pixels = window(forward.window, self.tile)
        self.background = BACKGROUND[forward.blend]
        columns = max(width, self.tile + tile_starts(width, self.tile, forward.stride)[-1])
        depth, runs_of_planes = planes[1] - planes[0], -(-(planes[1] - planes[0]) // PLANES)
        self.empty = self.background if self.largest else 0
        shape = (len(forward.network.class_names), depth, self.tile, columns)
        self.total = np.full(shape, self.empty, _sums(forward))
        self.weight = np.zeros((runs_of_planes, self.tile, columns), np.int32)

    def add(self, left: int, runs: list[int], answers: Iterator[Fixed]) -> None:
        """Add a tile that begins at a column: of each plane the sum over the panels that show it, whose answers come next."""
        into, at_column = (np.zeros_like(self.total[..., : self.tile]), 0) if self.largest else (self.total, left)
        classes, depth = self.total.shape[:2]
        for place in _places_of(self.network, self.planes, runs):
            panels = next(answers).reshape(PLANES, classes, -1, self.tile, self.tile)
            for number, at in _lands(self.network, self.planes, place):
                for run in runs:
                    low, high = max(at, PLANES * run), min(at + PLANES, PLANES * (run + 1), depth)
                    if low < high:
                        blending.add(into, panels, self.pixels, number, (low - at, high - at), low, at_column)
        across = slice(left, left + self.tile)
        for run in runs:
            planes, panels_of_each = slice(PLANES * run, PLANES * (run + 1)), len(self.network.targets)
            if self.largest:
                there = self.total[:, planes, :, across]
                np.maximum(there, divide(into[:, planes], panels_of_each), out=there)
                self.weight[run, :, across] = 1
            else:
                self.weight[run, :, across] += panels_of_each * self.pixels

    def finished(self, rows: int) -> Logits:
        """The first rows, to which no further tile adds: int16[classes, planes, rows, columns]."""
        out = np.empty((*self.total.shape[:2], rows, self.total.shape[3]), np.int16)
        blending.divide(self.total, self.weight, PLANES, self.background, out)
        return out

    def roll(self, rows: int) -> None:
        """Drop the first rows; as many empty ones follow."""
        for band, empty in ((self.total, self.empty), (self.weight, 0)):
            band[..., : self.tile - rows, :] = band[..., rows:, :].copy()
            band[..., self.tile - rows :, :] = empty


def _sums(forward: Forward) -> type[np.int32 | np.int64]:
    """Numbers that hold the sum of all tiles over a pixel, in all panels that show it."""
    overlapping = -(-forward.tile // forward.stride) + 1  # along a row: the last tile may stand nearer than the stride
    heaviest = int(window(forward.window, forward.tile).max())
    largest = overlapping**2 * heaviest * len(forward.network.targets) * max(LIMIT * ONE, 255 * P_ONE)
    return np.int32 if largest < 2**31 else np.int64


def _places(network: Network, planes: tuple[int, int]) -> range:
    """Where the panels stand that show planes of a slab: whole batches, which may begin before the scan."""
    first, last = planes[0] - network.targets[-1], planes[1] - network.targets[0]
    return range(first // PLANES * PLANES, -(-last // PLANES) * PLANES)


def _places_of(network: Network, planes: tuple[int, int], runs: Sequence[int]) -> list[int]:
    """Those batches of `_places` that show a plane of some runs of the slab."""
    return [
        place
        for place in _places(network, planes)[::PLANES]
        if any(
            at < PLANES * (run + 1) and at + PLANES > PLANES * run
            for _, at in _lands(network, planes, place)
            for run in runs
        )
    ]


def _lands(network: Network, planes: tuple[int, int], place: int) -> list[tuple[int, int]]:
    """Number of each target of the panels of a batch, and which plane of the slab that of the first panel is."""
    return [(number, place + offset - planes[0]) for number, offset in enumerate(network.targets)]


def planes_shown(network: Network, planes: tuple[int, int]) -> tuple[int, int]:
    """First and last + 1 of the planes in those panels; they may lie beyond the scan."""
    places = _places(network, planes)
    return places.start + network.shown[0], places.stop + network.shown[-1]


def _box_read(
    shape_zyx: Index3, axis: int, planes: tuple[int, int], rows: tuple[int, int], columns: tuple[int, int]
) -> Box:
    """What lies inside the volume."""
    return along_axis(axis, planes, rows, columns).intersect(Box.whole(shape_zyx))


def _beyond(voxels: Voxels, planes: tuple[int, int], depth: int) -> Voxels:
    """Planes that lie beyond the volume: its first and last repeated."""
    beyond = max(-planes[0], 0), max(planes[1] - depth, 0)
    return np.pad(voxels, [beyond, (0, 0), (0, 0)], mode="edge") if any(beyond) else voxels


def _pad_to(part: Voxels, tile: int) -> Voxels:
    missing = [(0, 0), *((0, tile - n) for n in part.shape[1:])]
    return np.pad(part, missing, mode="symmetric") if any(after for _, after in missing) else part


def _panels(part: Voxels, shown: list[int]) -> Voxels:
    if len(shown) == 1:
        return part[shown[0] : shown[0] + PLANES, None]
    return np.stack([part[n : n + PLANES] for n in shown], axis=1)


def middle_batch(forward: Forward, read: Read, shape_zyx: Index3) -> Images:
    """Images [PLANES, planes, tile, tile] that an engine is shown of the middle of a volume, along its first axis."""
    axis, network, tile = "zyx".index(forward.axes[0]), forward.network, forward.tile
    depth, *size = move_axis(shape_zyx, axis)
    place = depth // 2 // PLANES * PLANES
    top, left = (starts[len(starts) // 2] for starts in (tile_starts(n, tile, forward.stride) for n in size))
    first = place + network.shown[0]
    shown = (first, place + PLANES + network.shown[-1])
    box = _box_read(shape_zyx, axis, shown, (top, top + tile), (left, left + tile))
    part = _pad_to(_beyond(np.moveaxis(read(box), axis, 0), shown, depth), tile)
    return _panels(part, [place - first + n for n in network.shown])
