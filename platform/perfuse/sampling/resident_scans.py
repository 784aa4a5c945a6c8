"""Scans in the memory of a GPU, and bricks of them: views, but for turned ones, which are made. Any device of PyTorch will do."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from perfuse.geometry import Box, runs
from perfuse.sampling.bricks import PlacedBrick
from perfuse.sampling.feeding import threads
from perfuse.sampling.places import Place
from perfuse.sampling.sources import Labelled, Opened

Tensor = torch.Tensor
SLAB = 64
"""Planes that are read at a time."""
TURNED_PLANES = 8
"""Planes of a turned brick that are made at a time."""


@dataclass(frozen=True)
class ResidentLabel:
    """The label of a class on a device, as of a `ResidentScan` or a `ResidentBrick`."""

    values: Tensor
    known: Tensor
    """As values, 0 or 1; of no voxel where all is known."""

    def __getitem__(self, where: Any) -> "ResidentLabel":
        return ResidentLabel(self.values[where], self.known[where] if self.known.numel() else self.known)

    def seen_along(self, axis: int) -> "ResidentLabel":
        """The same with this axis first."""
        return ResidentLabel(
            self.values.movedim(axis, 0), self.known.movedim(axis, 0) if self.known.numel() else self.known
        )

    @property
    def marked(self) -> Tensor:
        """Where it is known vessel."""
        return (self.values >= 128) & (self.known > 0) if self.known.numel() else self.values >= 128


ResidentLabels = tuple[ResidentLabel | None, ...]
"""By class; None where the scan has none."""


@dataclass(frozen=True)
class ResidentBrick(PlacedBrick):
    """A brick [planes, rows, columns] whose voxels are tensors, as those of a `ResidentScan`."""

    image: Tensor
    labels: ResidentLabels

    @property
    def _foreground(self) -> ResidentLabel:
        label = self.labels[self.place.class_number]
        assert label is not None
        return label

    @cached_property
    def vessel_sums(self) -> npt.NDArray[np.int64]:
        """See PlacedBrick."""
        counts = self._foreground.marked.sum(-1).flatten().cumsum(0)
        return np.concatenate([[0], counts.cpu().numpy()])

    def vessel_columns(self, plane: int, row: int) -> npt.NDArray[np.int64]:
        """See PlacedBrick."""
        return np.flatnonzero(self._foreground[plane, row].marked.cpu().numpy())


@dataclass(frozen=True)
class ResidentScan:
    """The extent of a scan on a device; uint16 is held as the int16 of the same bits."""

    source: Opened
    image: Tensor
    labels: ResidentLabels

    @classmethod
    def load(cls, source: Opened, device: str) -> "ResidentScan":
        """Read and decode a scan, by threads."""
        image = torch.empty(source.extent.shape, dtype=_dtype(source.image.dtype), device=device)

        def fill(box: Box, inside: slice) -> None:
            image[inside] = _tensor(source.scan.read_stored(source.image, box)).to(device)

        _by_slabs(source, fill)
        return cls(source, image, tuple(None if n is None else _load_label(source, n, device) for n in source.labels))

    def brick(self, place: Place) -> ResidentBrick:
        """A brick: a view, or made if it is turned."""
        if place.turn is not None:
            return _turned(self, place)
        inside = place.box.relative_to(self.source.extent.start).slices
        labels = tuple(None if n is None else n[inside].seen_along(place.axis) for n in self.labels)
        return ResidentBrick(place, self.image[inside].movedim(place.axis, 0), labels)


def _load_label(source: Opened, label: Labelled, device: str) -> ResidentLabel:
    everywhere, shape = label.is_known(source.extent), source.extent.shape
    values = torch.empty(shape, dtype=_dtype(label.form.dtype), device=device)
    known = torch.empty((0, 0, 0) if everywhere else shape, dtype=torch.uint8, device=device)

    def fill(box: Box, inside: slice) -> None:
        seen = source.scan.read_stored(label.form, box)
        values[inside] = _tensor(seen).to(device)
        if not everywhere:
            known[inside] = _tensor(label.read_known(box, seen)).to(device)

    _by_slabs(source, fill)
    return ResidentLabel(values, known)


def _by_slabs(source: Opened, fill: Callable[[Box, slice], None]) -> None:
    """Fill what is held of a scan's extent by threads, slab by slab: boxes of the scan, and which planes they are."""

    def one(planes: tuple[int, int]) -> None:
        box = Box((planes[0], 0, 0), (planes[1], *source.extent.shape[1:]))
        fill(box.shifted(source.extent.start), slice(*planes))

    with ThreadPoolExecutor(threads()) as pool:
        list(pool.map(one, runs(source.extent.shape[0], SLAB)))


def _turned(scan: ResidentScan, place: Place) -> ResidentBrick:
    """As `kernels.turned_image` and `kernels.turned_label` make it."""
    size = scan.source.scan.info.voxel_size_um
    device = scan.image.device
    steps = torch.as_tensor(place.steps(size), device=device)
    origin = torch.as_tensor(place.origin(size) - scan.source.extent.start, device=device)
    shape = torch.tensor(scan.image.shape, device=device)
    image = torch.empty(place.shape, dtype=scan.image.dtype, device=device)
    labels = tuple(
        None
        if n is None
        else ResidentLabel(*(torch.empty(place.shape, dtype=torch.uint8, device=device) for _ in "vk"))
        for n in scan.labels
    )
    for first, stop in runs(place.shape[0], TURNED_PLANES):
        axes = [
            torch.arange(a, b, device=device).double() for a, b in ((first, stop), *((0, n) for n in place.shape[1:]))
        ]
        at = origin + torch.stack(torch.meshgrid(*axes, indexing="ij"), -1) @ steps
        nearest = (at + 0.5).floor().long()
        inside = ((nearest >= 0) & (nearest < shape)).all(-1)
        z, y, x = nearest.clamp(torch.zeros_like(shape), shape - 1).unbind(-1)
        for label, turned in zip(scan.labels, labels, strict=True):
            if label is not None and turned is not None:
                turned.values[first:stop] = label.values[z, y, x] * inside
                turned.known[first:stop] = label.known[z, y, x] * inside if label.known.numel() else inside
        value = _trilinear(scan.image, at, shape)
        image[first:stop] = value if value.dtype == image.dtype else (value + 0.5).to(torch.int32).to(image.dtype)
    return ResidentBrick(place, image, labels)


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
        total += weight * as_float(voxels[z, y, x])
    return total.float() if voxels.dtype == torch.float32 else total


def as_float(voxels: Tensor) -> Tensor:
    """float32; int16 is read as uint16."""
    return (voxels.to(torch.int32) & 0xFFFF).float() if voxels.dtype == torch.int16 else voxels.float()


def _dtype(dtype: np.dtype[Any]) -> torch.dtype:
    return {"uint8": torch.uint8, "uint16": torch.int16, "float32": torch.float32}[dtype.name]


def _tensor(voxels: npt.NDArray[Any]) -> Tensor:
    return torch.from_numpy(voxels.view(np.int16) if voxels.dtype == np.uint16 else voxels)
