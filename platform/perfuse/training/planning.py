"""What a training would take: counted from shapes, and from a few steps on random crops. Nothing is written."""

import math
import time
from statistics import median

from perfuse.catalog import Scan
from perfuse.contract import Frozen
from perfuse.models.operations import LEARNING, gpu_hours, operations
from perfuse.recipes import Recipe
from perfuse.sampling import feeding
from perfuse.sampling.grid_order import GridOrder
from perfuse.training.job import Source, TrainingJob

PROBE_CROPS = 2
PROBE_STEPS = 3
"""Of which the first, that also prepares, does not count."""


class TrainingPlan(Frozen):
    """What a training would take, before it begins."""

    train: tuple[str, ...]
    """Scans with donor and label."""
    validation: tuple[str, ...]
    steps: int
    """At most, where `converged` may end it."""
    crops: int
    epoch_crops: int | None
    """Crops of an epoch, where the order has epochs."""
    bricks: int
    read_bytes: int
    """Voxels that are decoded, image and label."""
    feeder_bytes: int
    """Memory of bricks and batches, at most, for each worker."""
    device: str
    """cuda or cpu; a worker has one."""
    device_name: str
    step_seconds: float
    """Of a step on one such device, measured on few crops; without waiting for data."""
    device_hours: float
    """Of all steps on that device, without validation."""
    gpu_hours: float
    """The same on a GPU: as measured where the device is one, else as counted from the network's operations."""


def plan_training(job: TrainingJob, workers: int = 0) -> TrainingPlan:
    """Count crops and bricks, and measure a step here. Raises RecipeError or PlanError for what cannot be trained.

    workers: of Ray, each of whose rows is cut by whoever is free, and counts as if he held no bricks; 0: by this process.
    """
    from perfuse.models import best_device, device_name

    recipe, device = job.recipe, best_device()
    with feeding.Cutter(job) as cutter:
        whole = range(recipe.batch)
        shares = [feeding.positions(recipe, rank, workers) for rank in range(workers)]
        cutter.check(0, whole)
        bricks = [cutter.bytes_of(place) for place in cutter.order.read(recipe.batches, shares)]
        epoch = cutter.order.length if isinstance(cutter.order, GridOrder) else None
    seconds, crops = step_seconds(recipe, device), recipe.batches * recipe.batch
    hours, work = seconds * recipe.steps / 3600, LEARNING * crops * operations(recipe.network, recipe.crop)
    batches = feeding.batch_bytes(recipe, recipe.batch) * (
        feeding.batches_ahead(recipe, recipe.batch) + feeding.threads()
    )
    return TrainingPlan(
        train=tuple(_said(source) for source in job.train),
        validation=tuple(_said(source) for source in job.validation),
        steps=recipe.steps,
        crops=crops,
        epoch_crops=epoch,
        bricks=len(bricks),
        read_bytes=sum(bricks),
        feeder_bytes=min(sum(bricks), feeding.BRICK_BYTES) + batches,
        device=device,
        device_name=device_name(device),
        step_seconds=seconds,
        device_hours=hours,
        gpu_hours=hours if device == "cuda" else gpu_hours(work),
    )


def _said(source: Source) -> str:
    scan = Scan.open(source.url)
    info = scan.label_info(source.label)
    known = f"{info.kind}, {info.coverage:.0%}" if info.kind == "sparse" else info.kind
    part = f", voxels {source.box[0]} to {source.box[1]}" if source.box else ""
    of_class = f"{source.class_name} by " if source.class_name else ""
    return f"{scan.info.id} of donor {scan.info.donor}: {of_class}{source.label} ({known}{part})"


def step_seconds(recipe: Recipe, device: str) -> float:
    """The time of a step of the recipe: forward, losses, backward and optimiser, on random crops; median of a few."""
    import torch

    from perfuse.losses import combined
    from perfuse.models import build, resolve_precision
    from perfuse.sampling.cutting import CropShape
    from perfuse.training.optimisation import optimiser

    precision = resolve_precision(recipe.precision, device)
    network = build(recipe.segmenter).to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    update = optimiser(recipe, network.parameters())
    crops = min(recipe.batch, PROBE_CROPS)
    image, target, known = (torch.rand(p.shape, device=device) for p in CropShape.of(recipe).empty(crops))
    half = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    times = []
    for _ in range(PROBE_STEPS):
        begin = time.perf_counter()
        with torch.autocast(device, half, enabled=precision != "fp32"):
            logits = network(image.contiguous(memory_format=torch.channels_last))
        loss, _ = combined(recipe.losses, logits.float(), target.round(), (known > 0).float(), len(recipe.classes))
        update.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        update.step()
        loss.item()
        times.append(time.perf_counter() - begin)
    return median(times[1:]) * math.ceil(recipe.batch / crops) * recipe.accumulate
