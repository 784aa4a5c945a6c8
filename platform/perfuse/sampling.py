"""Training crops as a pure function: crop = f(seed, step, position in the global batch).

A *brick* is a box of a scan that is read once and gives many crops. Positions of the batch share bricks four by four, and keep
them for a group of steps; so a rank reads only the bricks of its own positions, and the crops of a step are the same
for any number of workers.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from perfuse.augmentation import augment
from perfuse.catalog import Scan
from perfuse.contract import Normalisation
from perfuse.errors import RecipeError
from perfuse.geometry import Box, Index3, along_axis
from perfuse.normalisation import bounds, normalise
from perfuse.training.job import Source, TrainingJob

GROUP_STEPS = 8
"""Steps for which bricks are kept."""
CROPS_PER_BRICK = 4
"""Positions of the batch that share a brick."""
BRICK_PLANES = 24
"""Planes of a brick, along its axis."""
BRICK_CROPS = 2
"""Edge of a brick in the plane, in crops."""

Row = dict[str, int]
Crops = dict[str, npt.NDArray[Any]]


def rows(job: TrainingJob, rank: int, world: int, first_step: int) -> Iterator[Row]:
    """Descriptors of what a rank feeds itself with, one per group of steps, from `first_step` to the end.

    A step here is one batch; with `accumulate`, several are a step of the optimiser. Raises RecipeError when the batch
    cannot be divided by the number of workers.
    """
    if job.recipe.batch % world:
        raise RecipeError(f"batch = {job.recipe.batch} cannot be divided among {world} workers. Choose a multiple.")
    step = first_step
    while step < job.recipe.batches:
        stop = min((step // GROUP_STEPS + 1) * GROUP_STEPS, job.recipe.batches)
        yield {"first_step": step, "stop_step": stop, "rank": rank, "world": world}
        step = stop


def cut(job: TrainingJob, row: Row) -> Iterator[Crops]:
    """Read the bricks of a row and cut its crops: one dict a step.

    step: int64; image: float32[b, planes, h, w], normalised; target: float32[b, 1, h, w], 0 … 1; known: float32, 0 or 1.
    """
    share = job.recipe.batch // row["world"]
    positions = range(row["rank"] * share, (row["rank"] + 1) * share)
    group = row["first_step"] // GROUP_STEPS
    bricks = {slot: _brick(job, group, slot) for slot in sorted({p // CROPS_PER_BRICK for p in positions})}
    for step in range(row["first_step"], row["stop_step"]):
        crops = [_crop(job, bricks[p // CROPS_PER_BRICK], step, p) for p in positions]
        image, target, known = (np.stack(parts) for parts in zip(*crops, strict=True))
        yield {"step": np.asarray(step), "image": image, "target": target, "known": known}


@dataclass(frozen=True)
class Brick:
    """A box of a scan seen along one axis, with the axis first."""

    image: npt.NDArray[np.float32]
    """[planes + 2 · halo, rows, columns], normalised; the halo serves the panels of the first and last planes."""
    target: npt.NDArray[np.float32]
    known: npt.NDArray[np.float32]
    vessel: npt.NDArray[np.int64]
    """Indices [n, 3] of known vessel voxels in `target`."""


@lru_cache(maxsize=64)
def _opened(source: Source) -> tuple[Scan, npt.NDArray[np.int64], Index3]:
    """A scan, where its coarsest label level holds vessel, and that level's shape."""
    scan = Scan.open(source.url)
    group = scan.group[f"labels/{source.label}"]
    last = len(group.attrs["ome"]["multiscales"][0]["datasets"]) - 1  # type: ignore[index,call-overload,arg-type]
    coarse = np.asarray(group[str(last)][:])  # type: ignore[index]
    return scan, np.argwhere(coarse >= 128), (coarse.shape[0], coarse.shape[1], coarse.shape[2])


@lru_cache(maxsize=64)
def _window(source: Source, normalisation: Normalisation) -> tuple[float, float]:
    return bounds(_opened(source)[0], normalisation)


def _brick(job: TrainingJob, group: int, slot: int) -> Brick:
    recipe = job.recipe
    rng = np.random.default_rng([recipe.seed, 1, group, slot])
    source = job.train[rng.integers(len(job.train))]
    axis = "zyx".index(recipe.axes[rng.integers(len(recipe.axes))])
    scan, vessel, coarse_shape = _opened(source)
    centre = _somewhere(source, rng)
    if len(vessel) and rng.random() < max(recipe.sampling.foreground_share, 0.5):
        centre = (vessel[rng.integers(len(vessel))] + rng.random(3)) / coarse_shape
    return _read(job, source, scan, axis, _brick_box(recipe.crop, scan.shape_zyx, axis, centre))


@lru_cache(maxsize=64)
def _organ(source: Source) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]] | None:
    """The chunks that hold organ, [n, 3], and organ voxels up to and with each of them; None where it is not marked."""
    share = _opened(source)[0].organ_share()
    if share is None:
        return None
    chunks = np.argwhere(share)
    return chunks, np.cumsum(share[tuple(chunks.T)])


def _somewhere(source: Source, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """A point of the scan, each coordinate 0 … 1: anywhere, or in a chunk that holds organ, the likelier the more it holds."""
    place, organ = rng.random(3), _organ(source)
    if organ is None:
        return place
    chunks, voxels = organ
    scan = _opened(source)[0]
    chunk = chunks[np.searchsorted(voxels, rng.random() * voxels[-1], side="right")]
    start = chunk * scan.image.chunks
    stop = np.minimum(start + scan.image.chunks, scan.shape_zyx)
    return np.asarray((start + place * (stop - start)) / scan.shape_zyx)


def _brick_box(crop: int, shape: Index3, axis: int, centre: npt.NDArray[np.float64]) -> Box:
    sizes = [BRICK_CROPS * crop] * 3
    sizes[axis] = BRICK_PLANES
    spans = []
    for place, size, length in zip(centre, sizes, shape, strict=True):
        start = int(np.clip(round(place * length - size / 2), 0, max(length - size, 0)))
        spans.append((start, min(start + size, length)))
    return Box(*zip(*spans, strict=True))


def _read(job: TrainingJob, source: Source, scan: Scan, axis: int, box: Box) -> Brick:
    halo = job.recipe.network.planes // 2
    depth = scan.shape_zyx[axis]
    start, stop = box.start[axis], box.stop[axis]
    spans = [(a, b) for i, (a, b) in enumerate(zip(box.start, box.stop, strict=True)) if i != axis]
    wide = along_axis(axis, (max(start - halo, 0), min(stop + halo, depth)), spans[0], spans[1])
    raw = scan.read_image(wide)
    image = normalise(raw, _window(source, job.recipe.normalisation), job.recipe.normalisation)
    missing = [(halo - (start - wide.start[axis]), halo - (wide.stop[axis] - stop)), (0, 0), (0, 0)]
    label = scan.read_label(source.label, box)
    known = np.moveaxis(scan.read_known(source.label, box, label), axis, 0)
    target = np.moveaxis(label, axis, 0)
    return Brick(
        np.pad(np.moveaxis(image, axis, 0), missing, mode="edge"),
        np.divide(target, 255, dtype=np.float32),
        known.astype(np.float32),
        np.argwhere((target >= 128) & known),
    )


def _crop(job: TrainingJob, brick: Brick, step: int, position: int) -> tuple[npt.NDArray[np.float32], ...]:
    recipe = job.recipe
    rng = np.random.default_rng([recipe.seed, 2, step, position])
    planes, *plane_shape = brick.target.shape
    plane = int(rng.integers(planes))
    at = rng.random(2) * np.maximum(np.subtract(plane_shape, recipe.crop), 0)
    if len(brick.vessel) and rng.random() < recipe.sampling.foreground_share:
        plane, *pixel = brick.vessel[rng.integers(len(brick.vessel))]
        at = pixel - rng.integers(recipe.crop, size=2)
    start = np.clip(np.round(at), 0, np.maximum(np.subtract(plane_shape, recipe.crop), 0)).astype(int)
    window = tuple(slice(s, s + recipe.crop) for s in start)
    panel = slice(plane, plane + recipe.network.planes)
    image = _fill(brick.image[(panel, *window)], recipe.crop, "symmetric")
    target = _fill(brick.target[(slice(plane, plane + 1), *window)], recipe.crop, "symmetric")
    known = _fill(brick.known[(slice(plane, plane + 1), *window)], recipe.crop, "constant")
    return augment(image, target, known, recipe.augmentation, rng)


def _fill(part: npt.NDArray[np.float32], crop: int, mode: Any) -> npt.NDArray[np.float32]:
    missing = [(0, 0), *((0, crop - n) for n in part.shape[1:])]
    return np.pad(part, missing, mode=mode) if any(after for _, after in missing) else part
