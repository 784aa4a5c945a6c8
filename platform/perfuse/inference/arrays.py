"""Probabilities of volumes that fit in memory: a box of a scan, or an array that somebody sends."""

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from perfuse.catalog import Scan
from perfuse.contract import Forward
from perfuse.geometry import Box, Index3, index3, move_axis
from perfuse.inference.backends import usual
from perfuse.inference.logits import Logits, fuse
from perfuse.inference.slab import Engine, Read, rows_of_logits
from perfuse.models import best_device
from perfuse.normalisation import bounds, bounds_of, normalise

if TYPE_CHECKING:
    import torch

Probability = npt.NDArray[np.uint8]


def engine_of(network: "torch.nn.Module", forward: Forward) -> Engine:
    """What answers many arrays: a copy of a network, prepared once for this machine's device."""
    device = best_device()
    return Engine.of(network, forward, device, usual(forward.precision, device))


def probability(network: "torch.nn.Module", forward: Forward, scan: Scan, box: Box) -> Probability:
    """Probability uint8[classes, z, y, x] inside a box of a scan that fits in memory, the axes of the contract fused.

    The box is taken as a volume of its own: near its faces the network sees edges that the scan has not.
    """
    voxels = normalise(scan.read_image(box), bounds(scan, forward.normalisation), forward.normalisation)
    return _fused(network, forward, voxels, ["zyx".index(a) for a in forward.axes])


def probability_of_array(
    network: "torch.nn.Module | Engine",
    forward: Forward,
    voxels: npt.NDArray[Any],
    *,
    window: tuple[float, float] | None = None,
) -> Probability:
    """Probability uint8 of an array [y, x] or [z, y, x], of the same shape behind the axis of classes.

    network: or the `engine_of` it, where there are several arrays.
    window: the intensities that become 0 and 1; None: the contract's percentiles of the array itself. Axes along which
    the planes would be narrower than 32 pixels are left out; a slice is seen along z alone.
    """
    volume = voxels[None] if voxels.ndim == 2 else voxels
    values = normalise(volume, window or bounds_of(volume, forward.normalisation), forward.normalisation)
    shape = index3(volume.shape)
    wide = [a for a in ("zyx".index(name) for name in forward.axes) if min(move_axis(shape, a)[1:]) >= 32]
    return _fused(network, forward, values, wide or [0]).reshape(-1, *voxels.shape)


def _fused(
    network: "torch.nn.Module | Engine", forward: Forward, values: npt.NDArray[np.float32], axes: list[int]
) -> Probability:
    engine = network if isinstance(network, Engine) else engine_of(network, forward)
    shape = index3(values.shape)
    return fuse([[_along(engine, lambda box: values[box.slices], shape, axis) for axis in axes]])


def _along(engine: Engine, read: Read, shape_zyx: Index3, axis: int) -> Logits:
    depth = shape_zyx[axis]
    rows = [part for _, part in rows_of_logits(engine, read, shape_zyx, axis, (0, depth))]
    return np.moveaxis(np.concatenate(rows, axis=2), 1, 1 + axis)
