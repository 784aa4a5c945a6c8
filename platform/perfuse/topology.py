"""How a mask hangs together: components, tunnels and cavities, counted in one pass, exactly as of the whole volume."""

from dataclasses import dataclass
from math import prod

import numpy as np

from perfuse.catalog import Scan
from perfuse.components import Block, Gathering, label_block
from perfuse.contract import threshold_of
from perfuse.geometry import Box, Index3, blocks, index3
from perfuse.labels import own_threshold
from perfuse.metrics import euler_eighths
from perfuse.passes import Arrays, inside, over_cubes
from perfuse.postprocessing import HOLE, faces


@dataclass(frozen=True)
class Component:
    """One component of a mask."""

    voxels: int
    mm3: float
    first_zyx: Index3
    """Its first voxel, slice by slice, row by row."""


@dataclass(frozen=True)
class Topology:
    """Counts of a mask whose foreground has 26 neighbours and its background 6."""

    euler: int
    betti: tuple[int, int, int]
    """Components, tunnels, cavities: b0, b1, b2."""
    components: int
    largest: int
    """Voxels of the largest component."""
    voxels: int
    sizes: tuple[int, ...]
    """How many components have 2ᵏ to 2ᵏ⁺¹ − 1 voxels, at place k; ends with the largest."""
    listed: tuple[Component, ...]
    """The largest, in falling order."""


def topology(scan_url: str, label: str, threshold: float | None = None, listed: int = 10) -> Topology:
    """Euler number, Betti numbers and components of a label, at a threshold or at its own; memory stays flat.

    listed: how many components are named. Raises ScanError when there is no such label.
    """
    scan = Scan.open(scan_url)
    info = scan.label_info(label)
    at = np.uint8(own_threshold(info) if threshold is None else threshold_of(threshold))
    stored, shape = scan.label(label), scan.shape_zyx

    def read(box: Box, into: Arrays) -> None:
        np.greater_equal(scan.read_label(label, box), at, out=into[0])

    def work(box: Box, arrays: Arrays) -> tuple[Block, Block, int]:
        around = arrays[0]
        mask = around[inside(box)]
        cavities = label_block(~mask, box, shape, 6, faces(box, shape))
        return label_block(mask, box, shape, 26), cavities, euler_eighths(around)

    vessels, cavities, eighths = Gathering(26, listed=listed), Gathering(6, HOLE), 0
    cuts = list(blocks(shape, index3(stored.shards or stored.chunks)))
    for vessel, cavity, part in over_cubes(cuts, shape, f"topology of {label}, shards", read, (np.bool_(False),), work):
        vessels.add(vessel)
        cavities.add(cavity)
        eighths += part
    found, holes, euler = vessels.components(), cavities.components(), eighths // 8
    voxel_mm3 = prod(scan.info.voxel_size_um) * 1e-9
    return Topology(
        euler=euler,
        betti=(found.count, found.count + holes.count - euler, holes.count),
        components=found.count,
        largest=found.largest,
        voxels=found.voxels,
        sizes=found.sizes,
        listed=tuple(
            Component(size, size * voxel_mm3, index3([int(n) for n in np.unravel_index(first, shape)]))
            for size, first in found.listed
        ),
    )
