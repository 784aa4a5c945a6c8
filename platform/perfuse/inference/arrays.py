"""Probabilities of volumes that fit in memory: a box of a scan, or an array that somebody sends."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from perfuse.catalog import Scan
from perfuse.contract import Forward
from perfuse.geometry import AXES, Box, Index3, index3, move_axis
from perfuse.inference.backends import usual
from perfuse.inference.engine import Engine
from perfuse.inference.grid import resized, shape_at
from perfuse.inference.logits import Logits, Seen, fuse
from perfuse.inference.slab import Read, rows_of_logits
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
    window, axes = bounds(scan, forward.normalisation), ["zyx".index(a) for a in forward.axes]
    voxels = scan.read_image(box)
    if forward.resample_um is None:
        return _fused(network, forward, normalise(voxels, window, forward.normalisation), axes)
    shape = shape_at(forward.resample_um, box.shape, scan.info.voxel_size_um)
    values = normalise(_resized(voxels, shape), window, forward.normalisation)
    return _fused(network, forward, values, axes, lambda part: np.rint(_resized(part, box.shape)).astype(np.int16))


def probability_of_array(
    network: "torch.nn.Module | Engine",
    forward: Forward,
    voxels: npt.NDArray[Any],
    *,
    window: tuple[float, float] | None = None,
) -> Probability:
    """Probability uint8 of an array [y, x] or [z, y, x], of the same shape behind the axis of classes; seen as it is.

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
    network: "torch.nn.Module | Engine",
    forward: Forward,
    values: npt.NDArray[np.float32],
    axes: list[int],
    back: Callable[[Logits], Logits] = lambda part: part,
) -> Probability:
    engine = network if isinstance(network, Engine) else engine_of(network, forward)
    shape = index3(values.shape)
    seen = forward.changed(axes=tuple(AXES[a] for a in axes), axis_weights=_weights(forward, axes))
    parts = [_along(engine, lambda box: values[box.slices], shape, axis) for axis in axes]
    return np.stack([fuse([Seen.of(seen, [back(part[k]) for part in parts])]) for k in range(len(parts[0]))])


def _resized(volume: npt.NDArray[Any], shape_zyx: Index3) -> npt.NDArray[np.float32]:
    given = index3(volume.shape)
    z, y, x = (n / m for n, m in zip(given, shape_zyx, strict=True))
    return resized(lambda box: volume[box.slices], given, shape_zyx, (z, y, x), Box.whole(shape_zyx))


def _weights(forward: Forward, axes: list[int]) -> tuple[int, ...]:
    """Of the axes that are seen; alike where only such are left that count for nothing."""
    weights = [forward.axis_weights[forward.axes.index(AXES[a])] for a in axes] if forward.axis_weights else []
    return tuple(weights) if any(weights) else ()


def _along(engine: Engine, read: Read, shape_zyx: Index3, axis: int) -> Logits:
    depth = shape_zyx[axis]
    rows = [part for _, part in rows_of_logits(engine, read, shape_zyx, axis, (0, depth))]
    return np.moveaxis(np.concatenate(rows, axis=2), 1, 1 + axis)
