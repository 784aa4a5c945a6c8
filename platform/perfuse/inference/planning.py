"""What a prediction will take: pure functions of shapes that answer bytes and tasks before it begins."""

import os
from itertools import product

import numpy as np

from perfuse import volumes
from perfuse.catalog import Scan
from perfuse.contract import Forward, Frozen
from perfuse.geometry import Box, Index3, along_axis, index3, move_axis, runs, tile_starts
from perfuse.inference.engine import MOST_STREAMS
from perfuse.inference.grid import Grid
from perfuse.inference.pipeline import WRITERS
from perfuse.inference.region import Region, tiles
from perfuse.inference.scratch import BAND, SLAB
from perfuse.inference.slab import PLANES
from perfuse.inference.views import GROUPS


class PredictionPlan(Frozen):
    """What a prediction will take, before it begins."""

    slabs: int
    tiles: int
    """Pictures that the networks will see: planes of tiles, in all views."""
    skipped: int
    """Pictures that are left out, since they show nothing of the region or no organ."""
    shards: int
    input_bytes: int
    scratch_bytes: int
    output_bytes: int
    peak_bytes: int
    """Memory of one actor at its largest slab, besides the network."""


def plan(scan: Scan, *members: Forward, roi: Box | None = None) -> PredictionPlan:
    """Count the work, from metadata alone; that of several members as one prediction. roi: in voxels of the scan."""
    parts = [_plan(scan, forward, roi) for forward in members]
    return parts[0].model_copy(
        update={
            **{
                n: sum(getattr(p, n) for p in parts)
                for n in ("slabs", "tiles", "skipped", "input_bytes", "scratch_bytes")
            },
            "peak_bytes": max(p.peak_bytes for p in parts),
        }
    )


def _plan(scan: Scan, forward: Forward, roi: Box | None) -> PredictionPlan:
    grid = Grid.of(scan, forward)
    region = Region.of(grid, forward, roi)
    classes = len(forward.network.class_names)
    axes = ["zyx".index(a) for a in forward.axes]
    seen = [move_axis(grid.shape_zyx, axis) for axis in axes]
    pictures = sum(d * _along(h, forward) * _along(w, forward) for d, h, w in seen)
    wanted = pictures if region.everywhere else sum(_needed(region, forward, axis) for axis in axes)
    views = _views(forward)
    output = Box.whole(scan.shape_zyx) if roi is None else roi
    voxels = (region.interest or Box.whole(grid.shape_zyx)).size
    shard = volumes.shard_shape(scan.shape_zyx)
    return PredictionPlan(
        slabs=sum(len(slabs(region, axis)) for axis in axes),
        tiles=wanted * views,
        skipped=(pictures - wanted) * views,
        shards=classes * len(meeting(output, shard)),
        input_bytes=voxels * np.dtype(scan.info.dtype).itemsize * len(axes),
        scratch_bytes=2 * voxels * len(axes) * classes,
        output_bytes=output.size * classes,
        peak_bytes=max(_slab_bytes(grid, w, h, forward) for _, h, w in seen),
    )


def batches(scan: Scan, forward: Forward, roi: Box | None = None) -> int:
    """How often a network answers, `PLANES` planes of a tile in all views at a time."""
    return _plan(scan, forward, roi).tiles // (PLANES * _views(forward))


def _views(forward: Forward) -> int:
    return len(GROUPS[forward.turns]) * len(forward.scales)


def slabs(region: Region, axis: int) -> list[tuple[int, tuple[int, int]]]:
    """Number and planes of the slabs along an axis that the region reaches into."""
    depth, height, width = move_axis(region.grid.shape_zyx, axis)
    return [
        (number, planes)
        for number, planes in enumerate(runs(depth, SLAB))
        if region.interest is None
        or not along_axis(axis, planes, (0, height), (0, width)).intersect(region.interest).empty
    ]


def meeting(box: Box, size: Index3) -> list[Index3]:
    """Places of the cells of a regular grid that a box touches."""
    spans = [range(a // s, -(-b // s)) for a, b, s in zip(box.start, box.stop, size, strict=True)]
    return [index3(place) for place in product(*spans)]


def _needed(region: Region, forward: Forward, axis: int) -> int:
    boxes = tiles(region.grid.shape_zyx, forward, axis, PLANES)
    return sum(box.shape[axis] for box in boxes if region.needed(box))


def _along(length: int, forward: Forward) -> int:
    return len(tile_starts(length, forward.tile, forward.stride))


def _slab_bytes(grid: Grid, width: int, height: int, forward: Forward) -> int:
    columns = max(width, forward.tile) + forward.tile
    network = forward.network
    reach = network.shown[-1] - network.shown[0] + network.targets[-1] - network.targets[0]
    band = (SLAB + 2 * PLANES + reach) * forward.tile * columns
    voxel = np.dtype(grid.scan.info.dtype).itemsize if grid.is_stored else 4
    reading = band * (
        4 * voxel + (0 if grid.is_stored else 8)
    )  # what is being read, what waits, two rows of tiles in use
    streams = 2 * min(MOST_STREAMS, os.cpu_count() or 1)  # whose answers wait, and those under way
    pictures = len(network.shown) + 2 * len(network.class_names) * len(network.targets)
    computing = streams * PLANES * pictures * forward.tile**2 * 4
    adding = (SLAB * (2 if forward.window == "max" else 1) + SLAB // PLANES) * forward.tile * columns * 4
    gathering = SLAB * ((2 + WRITERS) * min(BAND, height) + forward.tile) * width * 2
    return reading + computing + len(network.class_names) * (adding + gathering)
