"""Scans that stay in the memory of a GPU, and crops that are cut there: the same crops as `feeding` cuts, as tensors.

Bricks are views of the scans; only turned ones are made. Any device of PyTorch will do.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from perfuse.geometry import Box, runs
from perfuse.sampling import cutting
from perfuse.sampling.bricks import PlacedBrick
from perfuse.sampling.cutting import CropShape, Line
from perfuse.sampling.feeding import order_of, positions, threads
from perfuse.sampling.places import Place, Window, bricks_at_once
from perfuse.sampling.sources import Opened, opened
from perfuse.shards import ShardFormat
from perfuse.training.job import TrainingJob

Tensor = torch.Tensor
SLAB = 64
"""Planes that are read at a time."""
TURNED_PLANES = 8
"""Planes of a turned brick that are made at a time."""


def resident_bytes(job: TrainingJob) -> int:
    """Memory of all scans of a job: image, label, and what is known of it where that differs from voxel to voxel."""
    sources = [opened(source, job.recipe.normalisation) for source in job.train]
    return sum(s.extent.size * (s.image.dtype.itemsize + 2 - s.is_known(s.extent)) for s in sources)


@dataclass(frozen=True)
class ResidentBrick(PlacedBrick):
    """A brick [planes, rows, columns] whose voxels are tensors, as those of a `ResidentScan`."""

    image: Tensor
    label: Tensor
    known: Tensor

    @cached_property
    def vessel_sums(self) -> npt.NDArray[np.int64]:
        """See PlacedBrick."""
        counts = self._marked(self.label, self.known).sum(-1).flatten().cumsum(0)
        return np.concatenate([[0], counts.cpu().numpy()])

    def vessel_columns(self, plane: int, row: int) -> npt.NDArray[np.int64]:
        """See PlacedBrick."""
        known = self.known[plane, row] if self.known.numel() else self.known
        return np.flatnonzero(self._marked(self.label[plane, row], known).cpu().numpy())

    @staticmethod
    def _marked(label: Tensor, known: Tensor) -> Tensor:
        return (label >= 128) & (known > 0) if known.numel() else label >= 128


@dataclass(frozen=True)
class ResidentScan:
    """The extent of a scan on a device; uint16 is held as the int16 of the same bits."""

    source: Opened
    image: Tensor
    label: Tensor
    known: Tensor
    """As label, 0 or 1; of no voxel where all is known."""

    @classmethod
    def load(cls, source: Opened, device: str) -> "ResidentScan":
        """Read and decode a scan, by threads."""
        image, label = (
            torch.empty(source.extent.shape, dtype=_dtype(f.dtype), device=device) for f in (source.image, source.label)
        )
        everywhere = source.is_known(source.extent)
        known = torch.empty((0, 0, 0) if everywhere else source.extent.shape, dtype=torch.uint8, device=device)

        def fill(planes: tuple[int, int]) -> None:
            box = Box((planes[0], 0, 0), (planes[1], *source.extent.shape[1:])).shifted(source.extent.start)
            inside = slice(*planes)
            image[inside] = _tensor(_read(source, source.image, box)).to(device)
            values = _read(source, source.label, box)
            label[inside] = _tensor(values).to(device)
            if not everywhere:
                stated = source.scan.read_known(source.source.label, box, values)
                known[inside] = torch.from_numpy(stated.view(np.uint8)).to(device)

        with ThreadPoolExecutor(threads()) as pool:
            list(pool.map(fill, runs(source.extent.shape[0], SLAB)))
        return cls(source, image, label, known)

    def brick(self, place: Place) -> ResidentBrick:
        """A brick: a view, or made if it is turned."""
        if place.turn is not None:
            return _turned(self, place)
        inside = place.box.relative_to(self.source.extent.start).slices
        image, label = (part[inside].movedim(place.axis, 0) for part in (self.image, self.label))
        known = self.known[inside].movedim(place.axis, 0) if self.known.numel() else self.known
        return ResidentBrick(place, image, label, known)


class ResidentCutter:
    """Cuts the batches of a job on a device that holds its scans."""

    def __init__(self, job: TrainingJob, device: str) -> None:
        self.job, self.device = job, device
        self.order = order_of(job)
        self._shape = CropShape.of(job.recipe)
        self._scans = [ResidentScan.load(opened(s, job.recipe.normalisation), device) for s in job.train]
        self._bricks = lru_cache(maxsize=2 * bricks_at_once((1, 1, 1)))(self._brick)

    def _brick(self, place: Place) -> ResidentBrick:
        return self._scans[place.source].brick(place)

    def batch(self, step: int, wanted: range) -> dict[str, Any]:
        """The crops at some positions of a step, as `perfuse.sampling.cut` gives them; image, target and known on the device."""
        normalisation = self.job.recipe.normalisation
        crops = []
        for position in wanted:
            brick = self._bricks(self.order.place(step, position))
            source = self._scans[brick.place.source].source
            window = self.order.window(step, position, brick)
            crops.append(_cut(brick, window, self._shape, cutting.scaling(source.low, source.high, normalisation)))
        image, target, known = (torch.stack(parts) for parts in zip(*crops, strict=True))
        about = {"step": np.asarray(step), "position": np.asarray(wanted)}
        return {**about, "image": image, "target": target, "known": known}


def feed_resident(job: TrainingJob, device: str, first_step: int = 0) -> Iterator[dict[str, Any]]:
    """All batches from `first_step` to the end, in order, cut on the device."""
    cutter = ResidentCutter(job, device)
    for step in range(first_step, job.recipe.batches):
        yield cutter.batch(step, positions(job.recipe, 0, 1))


def _cut(
    brick: ResidentBrick, window: Window, shape: CropShape, scale: tuple[float, float, float, float]
) -> tuple[Tensor, Tensor, Tensor]:
    """What `cutting.cut` cuts."""
    centres, nearest, rows, columns = cutting.lines(brick.image.shape, window, shape)
    planes = np.clip(nearest, 0, brick.image.shape[0] - 1)
    if window.scale == 1:
        part = brick.image[:, rows.span, columns.span]
        image = _values(torch.stack([part[int(p)] for p in planes]))
    else:
        image = _resampled(brick.image, centres, rows, columns, window.scale)
    low, factor, clip, knee = scale
    image = (image - low) * factor
    if knee:
        image = torch.arcsinh(image / knee) / float(np.arcsinh(np.float32(1 / knee)))
    image = _mirrored(image.clamp(-clip, 1 + clip), rows, columns)
    chosen, there = planes[shape.segmented], (planes == nearest)[shape.segmented]
    target = _mirrored(_labels(brick.label, chosen, rows, columns, window.scale).float() / 255, rows, columns)
    known = torch.zeros_like(target)
    inside = (slice(None), slice(rows.inside), slice(columns.inside))
    known[inside] = _labels(brick.known, chosen, rows, columns, window.scale).float() if brick.known.numel() else 1
    if not there.all():
        for part in (target, known):
            part[torch.as_tensor(~there, device=part.device)] = 0
    return image, target, known


def _labels(voxels: Tensor, planes: npt.NDArray[np.int64], rows: Line, columns: Line, scale: float) -> Tensor:
    """The voxels nearest to the pixels inside, [planes, rows, columns]."""
    part = torch.stack([voxels[int(p), rows.span, columns.span] for p in planes])
    if scale == 1:
        return part
    where = [
        torch.as_tensor(line.voxels[: line.inside] - line.span.start, device=part.device) for line in (rows, columns)
    ]
    return part[:, where[0][:, None], where[1]]


def _mirrored(planes: Tensor, rows: Line, columns: Line) -> Tensor:
    for dim, line in ((1, rows), (2, columns)):
        if line.inside < len(line.pixels):
            planes = planes.index_select(dim, torch.as_tensor(line.pixels, device=planes.device))
    return planes


def _resampled(voxels: Tensor, centres: npt.NDArray[np.float64], rows: Line, columns: Line, scale: float) -> Tensor:
    """As `cutting` resamples: a triangle as wide as the larger of pixel and voxel along each axis."""
    part = voxels[:, rows.span, columns.span]
    across = _triangle(torch.as_tensor(centres, device=voxels.device), voxels.shape[0], scale)
    used = across.sum(0).nonzero()[:, 0]
    panel = torch.einsum("pz,zrc->prc", across[:, used], _values(part[used]))
    sides = []
    for line, length in zip((rows, columns), part.shape[1:], strict=True):
        centre = (
            line.start
            - line.span.start
            + (torch.arange(line.inside, device=voxels.device) + 0.5).double() * scale
            - 0.5
        )
        sides.append(_triangle(centre, length, scale))
    return torch.einsum("yr,prc,xc->pyx", sides[0], panel, sides[1])


def _triangle(centres: Tensor, length: int, scale: float) -> Tensor:
    """Weights [centre, voxel], summing to 1; beyond the voxels the last one's."""
    inside = centres.clamp(0, length - 1)
    reach = torch.arange(length, device=centres.device) - centres[:, None]
    weights = (1 - reach.abs() / max(1.0, scale)).clamp(min=0)
    beyond = weights.sum(1) == 0
    weights[beyond, inside.round().long()[beyond]] = 1
    return (weights / weights.sum(1, keepdim=True)).float()


def _turned(scan: ResidentScan, place: Place) -> ResidentBrick:
    """As `kernels.turned_image` and `kernels.turned_label` make it."""
    size = scan.source.scan.info.voxel_size_um
    device = scan.image.device
    steps = torch.as_tensor(place.steps(size), device=device)
    origin = torch.as_tensor(place.origin(size) - scan.source.extent.start, device=device)
    shape = torch.tensor(scan.image.shape, device=device)
    image, label = (torch.empty(place.shape, dtype=v.dtype, device=device) for v in (scan.image, scan.label))
    known = torch.empty(place.shape, dtype=torch.uint8, device=device)
    for first, stop in runs(place.shape[0], TURNED_PLANES):
        axes = [
            torch.arange(a, b, device=device).double() for a, b in ((first, stop), *((0, n) for n in place.shape[1:]))
        ]
        at = origin + torch.stack(torch.meshgrid(*axes, indexing="ij"), -1) @ steps
        nearest = (at + 0.5).floor().long()
        inside = ((nearest >= 0) & (nearest < shape)).all(-1)
        z, y, x = nearest.clamp(torch.zeros_like(shape), shape - 1).unbind(-1)
        label[first:stop] = scan.label[z, y, x] * inside
        known[first:stop] = scan.known[z, y, x] * inside if scan.known.numel() else inside
        value = _trilinear(scan.image, at, shape)
        image[first:stop] = value if value.dtype == image.dtype else (value + 0.5).to(torch.int32).to(image.dtype)
    return ResidentBrick(place, image, label, known)


def _trilinear(voxels: Tensor, at: Tensor, shape: Tensor) -> Tensor:
    at = at.clamp(torch.zeros_like(shape), shape - 1)
    low = at.long()
    share = at - low
    high = torch.minimum(low + 1, shape - 1)
    total = torch.zeros(at.shape[:-1], dtype=torch.float64, device=at.device)
    for corner in range(8):
        bits = [(corner >> k) & 1 for k in range(3)]
        z, y, x = ((high if bit else low)[..., k] for k, bit in enumerate(bits))
        weight = torch.ones_like(total)
        for k, bit in enumerate(bits):
            weight = weight * (share[..., k] if bit else 1 - share[..., k])
        total += weight * _values(voxels[z, y, x])
    return total.float() if voxels.dtype == torch.float32 else total


def _values(voxels: Tensor) -> Tensor:
    """float32; int16 is read as uint16."""
    return (voxels.to(torch.int32) & 0xFFFF).float() if voxels.dtype == torch.int16 else voxels.float()


def _dtype(dtype: np.dtype[Any]) -> torch.dtype:
    return {"uint8": torch.uint8, "uint16": torch.int16, "float32": torch.float32}[dtype.name]


def _tensor(voxels: npt.NDArray[Any]) -> Tensor:
    return torch.from_numpy(voxels.view(np.int16) if voxels.dtype == np.uint16 else voxels)


def _read(source: Opened, form: ShardFormat, box: Box) -> npt.NDArray[Any]:
    with source.scan.decoding(form.url, box):
        return form.read_box(box)
