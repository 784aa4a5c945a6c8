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
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from perfuse.contract import Forward, Network
from perfuse.errors import ContractError
from perfuse.geometry import Box, Index3, along_axis, move_axis, tile_starts
from perfuse.inference.backends import Backend
from perfuse.inference.logits import LIMIT, ONE, Logits, divide, window

if TYPE_CHECKING:
    import torch

PLANES = 8
"""Planes in a batch; slabs are multiples of it."""

Read = Callable[[Box], npt.NDArray[np.float32]]


@dataclass(frozen=True)
class Engine:
    """A network that is ready to answer: on its device, by its backend."""

    network: "torch.nn.Module"
    forward: Forward
    device: str
    backend: Backend

    @classmethod
    def of(cls, network: "torch.nn.Module", forward: Forward, device: str, backend: Backend) -> "Engine":
        """Of a copy of a network, which stays as it is."""
        from perfuse.inference.running import network_on

        return cls(network_on(network, backend, device), forward, device, backend)

    def logits(self, images: npt.NDArray[np.float32]) -> npt.NDArray[np.int32]:
        """Fixed-point logits [n, classes · targets, h, w] of float32 images [n, planes, h, w].

        Raises ContractError where the network answers with something that is no number.
        """
        import torch

        with torch.inference_mode():
            batch = torch.from_numpy(images).to(self.device).contiguous(memory_format=torch.channels_last)
            answer = self.network(batch)
            if answer.isnan().any():
                raise ContractError(
                    f"The network's logits are no numbers (NaN), computed by {self.backend}. Its weights do not suit that "
                    "precision, or are damaged: write precision: fp32 into its contract, or train it anew."
                )
            return np.asarray((answer.clamp(-LIMIT, LIMIT) * ONE).round().to(torch.int32).cpu().numpy())


def rows_of_logits(
    engine: Engine, read: Read, shape_zyx: Index3, axis: int, planes: tuple[int, int]
) -> Iterator[tuple[int, Logits]]:
    """Finished rows of a slab, in order: (first row, int16[classes, planes, rows, columns]), as seen along `axis`.

    read: normalised voxels of a box inside the volume. planes: first and last + 1; the first a multiple of `PLANES`.
    """
    forward = engine.forward
    _, height, width = move_axis(shape_zyx, axis)
    starts = tile_starts(height, forward.tile, forward.stride)
    shown = (len(forward.network.class_names), planes[1] - planes[0])
    columns = max(width, forward.tile + tile_starts(width, forward.tile, forward.stride)[-1])
    total = np.zeros((*shown, forward.tile, columns), np.int32)
    weight = np.zeros((forward.tile, columns), np.int32)
    for number, top in enumerate(starts):
        _add_row_of_tiles(engine, read, shape_zyx, axis, planes, top, total, weight)
        bottom = starts[number + 1] if number + 1 < len(starts) else height
        done = min(bottom, height) - top
        yield top, divide(total[..., :done, :width], weight[:done, :width]).astype(np.int16)
        if bottom < height:
            total, weight = _roll(total, done), _roll(weight, done)


def boxes_read(forward: Forward, shape_zyx: Index3, axis: int, planes: tuple[int, int]) -> list[Box]:
    """What `rows_of_logits` reads for a slab, in its order: a box for each row of tiles."""
    height = move_axis(shape_zyx, axis)[1]
    shown = _planes_shown(forward.network, planes)
    tops = tile_starts(height, forward.tile, forward.stride)
    return [_box_read(shape_zyx, axis, shown, (top, top + forward.tile)) for top in tops]


def _roll(band: npt.NDArray[np.int32], rows: int) -> npt.NDArray[np.int32]:
    """Without its first rows [.., rows, columns], and as many empty ones at the end."""
    fresh = np.zeros_like(band[..., :rows, :])
    return np.concatenate([band[..., rows:, :], fresh], axis=-2)


def _add_row_of_tiles(
    engine: Engine,
    read: Read,
    shape_zyx: Index3,
    axis: int,
    planes: tuple[int, int],
    top: int,
    total: npt.NDArray[np.int32],
    weight: npt.NDArray[np.int32],
) -> None:
    tile = engine.forward.tile
    _, _, width = move_axis(shape_zyx, axis)
    network = engine.forward.network
    pixels = window(engine.forward.window, tile)
    places = _places(network, planes)
    first, _ = shown = _planes_shown(network, planes)
    band = _read_band(read, shape_zyx, axis, shown, (top, top + tile))
    for left in tile_starts(width, tile, engine.forward.stride):
        part = _pad_to(band[:, :, left : left + tile], tile)
        weight[:, left : left + tile] += len(network.targets) * pixels
        for place in places[::PLANES]:
            answer = engine.logits(_panels(part, [place - first + n for n in network.shown]))
            volumes = np.moveaxis(answer.reshape(PLANES, len(total), -1, tile, tile), 0, 2)
            for number, offset in enumerate(network.targets):
                at = place + offset - planes[0]
                low, high = max(at, 0), min(at + PLANES, total.shape[1])
                if low < high:
                    total[:, low:high, :, left : left + tile] += volumes[:, number, low - at : high - at] * pixels


def _places(network: Network, planes: tuple[int, int]) -> range:
    """Where the panels stand that show planes of a slab: whole batches, which may begin before the scan."""
    first, last = planes[0] - network.targets[-1], planes[1] - network.targets[0]
    return range(first // PLANES * PLANES, -(-last // PLANES) * PLANES)


def _planes_shown(network: Network, planes: tuple[int, int]) -> tuple[int, int]:
    """First and last + 1 of the planes in those panels; they may lie beyond the scan."""
    places = _places(network, planes)
    return places.start + network.shown[0], places.stop + network.shown[-1]


def _box_read(shape_zyx: Index3, axis: int, planes: tuple[int, int], rows: tuple[int, int]) -> Box:
    """Whole rows inside the volume."""
    depth, height, width = move_axis(shape_zyx, axis)
    return along_axis(axis, (max(planes[0], 0), min(planes[1], depth)), (rows[0], min(rows[1], height)), (0, width))


def _read_band(
    read: Read, shape_zyx: Index3, axis: int, planes: tuple[int, int], rows: tuple[int, int]
) -> npt.NDArray[np.float32]:
    """Planes, beyond the volume its first and last repeated; rows inside the volume."""
    voxels = np.moveaxis(read(_box_read(shape_zyx, axis, planes, rows)), axis, 0)
    beyond = max(-planes[0], 0), max(planes[1] - shape_zyx[axis], 0)
    return np.pad(voxels, [beyond, (0, 0), (0, 0)], mode="edge") if any(beyond) else voxels


def _pad_to(part: npt.NDArray[np.float32], tile: int) -> npt.NDArray[np.float32]:
    missing = [(0, 0), *((0, tile - n) for n in part.shape[1:])]
    return np.pad(part, missing, mode="symmetric") if any(after for _, after in missing) else part


def _panels(part: npt.NDArray[np.float32], shown: list[int]) -> npt.NDArray[np.float32]:
    return np.ascontiguousarray(np.stack([part[n : n + PLANES] for n in shown], axis=1))


def middle_batch(forward: Forward, read: Read, shape_zyx: Index3) -> npt.NDArray[np.float32]:
    """Images [PLANES, planes, tile, tile] that an engine is shown of the middle of a volume, along its first axis."""
    axis, network, tile = "zyx".index(forward.axes[0]), forward.network, forward.tile
    depth, *size = move_axis(shape_zyx, axis)
    place = depth // 2 // PLANES * PLANES
    top, left = (starts[len(starts) // 2] for starts in (tile_starts(n, tile, forward.stride) for n in size))
    first = place + network.shown[0]
    band = _read_band(read, shape_zyx, axis, (first, place + PLANES + network.shown[-1]), (top, top + tile))
    return _panels(_pad_to(band[:, :, left : left + tile], tile), [place - first + n for n in network.shown])
