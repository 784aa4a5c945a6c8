"""What a prediction will take: pure functions of shapes that answer bytes and tasks before it begins."""

import os
from collections.abc import Sequence
from itertools import product
from math import prod

import numpy as np

from perfuse import volumes
from perfuse.catalog import Scan
from perfuse.contract import Forward, Frozen
from perfuse.errors import PlanError
from perfuse.geometry import Box, Index3, along_axis, index3, move_axis, runs, tile_starts
from perfuse.inference.engine import MOST_STREAMS
from perfuse.inference.grid import Grid
from perfuse.inference.pipeline import WRITERS
from perfuse.inference.region import Region
from perfuse.inference.scratch import BAND, SLAB
from perfuse.inference.slab import PLANES, Tiles, planes_shown
from perfuse.inference.views import GROUPS

HELD = 1.1
"""Times what is in use: the allocator holds freed pieces between. Seen on a busy machine was 1.01, on an idle one 0.87."""
THICKNESSES = (SLAB, 32, 16, PLANES)
"""Planes that a slab may have. Thinner ones decode the scan's chunks more often."""
ENOUGH = 192 * 2**20
"""Bytes of a slab that is not made thinner. On CPUs slabs that would take more have 32 or 16 planes: what is decoded more often
takes a twenty-fifth of the network's time there, so that memory hardly grows with the volume. Not so on GPUs, which would wait for
it, nor where chunks come from another machine, more often too."""


class PredictionPlan(Frozen):
    """What a prediction will take, before it begins."""

    slabs: int
    slab_planes: int
    """Planes of a slab, of the member with the thinnest."""
    tiles: int
    """Pictures that the networks will see: planes of tiles, in all views."""
    skipped: int
    """Pictures that are left out, since they show nothing of the region or no organ."""
    shards: int
    input_bytes: int
    """That are read, what several tiles, slabs or axes show as often as they do."""
    scratch_bytes: int
    output_bytes: int
    peak_bytes: int
    """Memory of one actor at its largest slab, besides the network."""


def plan(scan: Scan, *members: Forward, roi: Box | None = None, slab_planes: Sequence[int] = ()) -> PredictionPlan:
    """Count the work, from metadata alone; that of several members as one prediction.

    roi: in voxels of the scan. slab_planes: of each member's slabs; `SLAB` where nothing is said.
    """
    thick = slab_planes or [SLAB] * len(members)
    parts = [_plan(scan, forward, roi, planes) for forward, planes in zip(members, thick, strict=True)]
    return parts[0].model_copy(
        update={
            **{
                n: sum(getattr(p, n) for p in parts)
                for n in ("slabs", "tiles", "skipped", "input_bytes", "scratch_bytes")
            },
            "slab_planes": min(p.slab_planes for p in parts),
            "peak_bytes": max(p.peak_bytes for p in parts),
        }
    )


def thickest(
    scan: Scan, forward: Forward, memory_bytes: int, there: int | None = None, enough: int | None = None
) -> int:
    """Planes of the slabs of a member: as many as those that are `there` already, if they fit, else as many as fit in memory.

    memory_bytes: what an actor may use besides the network. enough: slabs that take more are thinner, but not the thinnest for its
    sake. Raises PlanError where not even the thinnest slab fits.
    """
    needed = {planes: slab_bytes(scan, forward, planes) for planes in (*([there] if there else []), *THICKNESSES)}
    fitting = [planes for planes, size in needed.items() if size <= memory_bytes]
    if not fitting:
        grid = Grid.of(scan, forward)
        rows, columns = max((move_axis(grid.shape_zyx, axis)[1:] for axis in _axes(forward)), key=prod)
        raise PlanError(
            f"{PLANES} planes of {rows:,} × {columns:,} in tiles of {forward.tile} need {_gib(needed[PLANES])} of memory "
            f"besides the network; a process may use {_gib(memory_bytes)}. Use smaller tiles (--set tile=…), fewer --workers "
            "on each machine, or machines with more memory."
        )
    if enough is None or fitting[0] == there:
        return fitting[0]
    frugal = [planes for planes in fitting if planes > PLANES] or fitting
    return next((planes for planes in frugal if needed[planes] <= enough), frugal[-1])


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"


def _plan(scan: Scan, forward: Forward, roi: Box | None, planes: int) -> PredictionPlan:
    grid = Grid.of(scan, forward)
    region = Region.of(grid, forward, roi)
    classes, axes = len(forward.network.class_names), _axes(forward)
    seen = [move_axis(grid.shape_zyx, axis) for axis in axes]
    pictures = sum(d * _along(h, forward) * _along(w, forward) for d, h, w in seen)
    todo = [(axis, span) for axis in axes for _, span in slabs(region, axis, planes)]
    wanted, read = pictures if region.everywhere else 0, 0
    for slab in todo:
        tiles = _tiles(region, forward, *slab)
        read += sum(grid.source(box).size for box in tiles.boxes())
        if not region.everywhere:
            wanted += tiles.pictures
    views = len(GROUPS[forward.turns]) * len(forward.scales)
    output = Box.whole(scan.shape_zyx) if roi is None else roi
    voxels = (region.interest or Box.whole(grid.shape_zyx)).size
    shard = volumes.shard_shape(scan.shape_zyx)
    return PredictionPlan(
        slabs=len(todo),
        slab_planes=planes,
        tiles=wanted * views,
        skipped=(pictures - wanted) * views,
        shards=classes * len(meeting(output, shard)),
        input_bytes=read * np.dtype(scan.info.dtype).itemsize,
        scratch_bytes=2 * voxels * len(axes) * classes,
        output_bytes=output.size * classes,
        peak_bytes=slab_bytes(scan, forward, planes),
    )


def batches(region: Region, forward: Forward, planes: int = SLAB) -> int:
    """How often a network answers, `PLANES` panels of a tile in all views at a time, in slabs of so many planes."""
    return sum(
        batches_of(region, forward, axis, slab) for axis in _axes(forward) for _, slab in slabs(region, axis, planes)
    )


def batches_of(region: Region, forward: Forward, axis: int, planes: tuple[int, int]) -> int:
    """How often a network answers for a slab."""
    return _tiles(region, forward, axis, planes).count


def _tiles(region: Region, forward: Forward, axis: int, planes: tuple[int, int]) -> Tiles:
    return Tiles(forward, region.grid.shape_zyx, axis, planes, None if region.everywhere else region.needed)


def _axes(forward: Forward) -> list[int]:
    return ["zyx".index(a) for a in forward.axes]


def slabs(region: Region, axis: int, thickness: int = SLAB) -> list[tuple[int, tuple[int, int]]]:
    """Number and planes of the slabs along an axis that the region reaches into."""
    depth, height, width = move_axis(region.grid.shape_zyx, axis)
    return [
        (number, planes)
        for number, planes in enumerate(runs(depth, thickness))
        if region.interest is None
        or not along_axis(axis, planes, (0, height), (0, width)).intersect(region.interest).empty
    ]


def meeting(box: Box, size: Index3) -> list[Index3]:
    """Places of the cells of a regular grid that a box touches."""
    spans = [range(a // s, -(-b // s)) for a, b, s in zip(box.start, box.stop, size, strict=True)]
    return [index3(place) for place in product(*spans)]


def _along(length: int, forward: Forward) -> int:
    return len(tile_starts(length, forward.tile, forward.stride))


def slab_bytes(scan: Scan, forward: Forward, planes: int) -> int:
    """Memory of an actor that works a slab of so many planes, along the axis that needs most; without the network."""
    grid = Grid.of(scan, forward)
    return int(HELD * max(_in_use(grid, *move_axis(grid.shape_zyx, axis), forward, planes) for axis in _axes(forward)))


def _in_use(grid: Grid, depth: int, height: int, width: int, forward: Forward, planes: int) -> int:
    columns, planes = max(width, forward.tile) + forward.tile, min(planes, depth)
    network = forward.network
    first, last = planes_shown(network, (0, planes))
    band = (last - first) * forward.tile * columns
    voxel = np.dtype(grid.scan.info.dtype).itemsize if grid.is_stored else 4
    # what is being read, what waits, two rows of tiles in use, one of them with planes repeated beyond the scan
    reading = band * (5 * voxel + (0 if grid.is_stored else 8))
    streams = 2 * min(MOST_STREAMS, os.cpu_count() or 1)  # whose answers wait, and those under way
    pictures = len(network.shown) + 2 * len(network.class_names) * len(network.targets)
    computing = streams * PLANES * pictures * forward.tile**2 * 4
    runs_of_planes = -(-planes // PLANES)
    adding = (planes * (2 if forward.window == "max" else 1) + runs_of_planes) * forward.tile * columns * 4
    gathering = planes * ((2 + WRITERS) * min(BAND, height) + forward.tile) * width * 2
    return reading + computing + len(network.class_names) * (adding + gathering)
