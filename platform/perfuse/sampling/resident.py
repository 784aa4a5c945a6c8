"""Crops that are cut on a GPU, of scans that stay in its memory: the same crops as `feeding` cuts, as tensors."""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from perfuse.sampling import cutting
from perfuse.sampling.cutting import CropShape, Line
from perfuse.sampling.feeding import order_of, positions
from perfuse.sampling.places import Place, Window, bricks_at_once
from perfuse.sampling.resident_scans import ResidentBrick, ResidentLabel, ResidentScan, as_float
from perfuse.sampling.sources import opened
from perfuse.training.job import TrainingJob

Tensor = torch.Tensor


def resident_bytes(job: TrainingJob) -> int:
    """Memory of all scans of a job: image, labels, and what is known of them where that differs from voxel to voxel."""
    sources = [opened(sources, job.recipe.normalisation) for sources in job.scans()]
    everywhere = [sum(label.is_known(s.extent) for label in s.labels if label is not None) for s in sources]
    return sum(s.extent.size * (s.voxel_bytes() - known) for s, known in zip(sources, everywhere, strict=True))


def fits(job: TrainingJob) -> bool:
    """Whether this process has a GPU, and all scans of a job fit in half of its memory."""
    return torch.cuda.is_available() and resident_bytes(job) <= torch.cuda.mem_get_info()[1] // 2


class ResidentCutter:
    """Cuts the batches of a job on a device that holds its scans."""

    def __init__(self, job: TrainingJob, device: str) -> None:
        self.job, self.device = job, device
        self.order = order_of(job)
        self._shape = CropShape.of(job.recipe)
        self._scans = [ResidentScan.load(opened(s, job.recipe.normalisation), device) for s in job.scans()]
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


def feed_resident(
    job: TrainingJob, device: str, rank: int = 0, world: int = 1, first_step: int = 0
) -> Iterator[dict[str, Any]]:
    """A rank's batches from `first_step` to the end, in order, cut on the device."""
    cutter, wanted = ResidentCutter(job, device), positions(job.recipe, rank, world)
    for step in range(first_step, job.recipe.batches):
        yield cutter.batch(step, wanted)


def _cut(
    brick: ResidentBrick, window: Window, shape: CropShape, scale: tuple[float, float, float, float]
) -> tuple[Tensor, Tensor, Tensor]:
    """What `cutting.cut` cuts."""
    centres, nearest, rows, columns = cutting.lines(brick.image.shape, window, shape)
    planes = np.clip(nearest, 0, brick.image.shape[0] - 1)
    if window.scale == 1:
        part = brick.image[:, rows.span, columns.span]
        image = as_float(torch.stack([part[int(p)] for p in planes]))
    else:
        image = _resampled(brick.image, centres, rows, columns, window.scale)
    low, factor, clip, knee = scale
    image = (image - low) * factor
    if knee:
        image = torch.arcsinh(image / knee) / float(np.arcsinh(np.float32(1 / knee)))
    image = _mirrored(image.clamp(-clip, 1 + clip), rows, columns)
    chosen, there = planes[shape.segmented], (planes == nearest)[shape.segmented]
    nothing = torch.zeros((len(chosen), shape.crop, shape.crop), device=image.device)
    volumes = [
        (nothing, nothing) if label is None else _cut_label(label, chosen, there, rows, columns, window.scale)
        for label in brick.labels
    ]
    target, known = (torch.cat(parts) for parts in zip(*volumes, strict=True))
    return image, target, known


def _cut_label(
    label: ResidentLabel,
    planes: npt.NDArray[np.int64],
    there: npt.NDArray[np.bool_],
    rows: Line,
    columns: Line,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Target and known of a class; planes that are not there are 0 in both."""
    target = _mirrored(_labels(label.values, planes, rows, columns, scale).float() / 255, rows, columns)
    known = torch.zeros_like(target)
    inside = (slice(None), slice(rows.inside), slice(columns.inside))
    known[inside] = _labels(label.known, planes, rows, columns, scale).float() if label.known.numel() else 1
    if not there.all():
        for part in (target, known):
            part[torch.as_tensor(~there, device=part.device)] = 0
    return target, known


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
    panel = torch.einsum("pz,zrc->prc", across[:, used], as_float(part[used]))
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
