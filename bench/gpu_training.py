""".venv/bin/python bench/gpu_training.py: pictures a second on a GPU, beside a bare loop over random tensors in its memory.

U-Nets on MaxViT-tiny and EfficientNetV2-S at 512², bf16, channels-last. The bare loop does forward, loss, backward and
optimiser. perfuse cuts its crops out of a scan that stays in the GPU's memory and augments them there: by fused warp and
pointwise changes, or as `sennet_3rd` does. The ways are taken by turns; medians of rounds. First: crops a second that are
only cut. Needs torch, timm and segmentation-models-pytorch, and no Ray. --tiny tries the script where there is no GPU.
"""

import argparse
import shutil
from collections.abc import Callable, Iterable, Iterator
from itertools import islice, repeat
from statistics import median
from time import perf_counter
from typing import Any

import torch
from feeder import job_of, scan, work_folder
from gpu_inference import ENCODERS, wait
from training import recipe_of

from perfuse.losses import combined
from perfuse.models import best_device, build, resolve_precision
from perfuse.recipes import RECIPES, Augmentation
from perfuse.sampling.resident import ResidentCutter
from perfuse.training import TrainingJob
from perfuse.training.engine import AUTOCAST, train

ROUNDS, UNCOUNTED = 3, 5
FUSED = Augmentation(warp=RECIPES["sennet_3rd"]().augmentation.warp)
"""And flips, turns, brightness, contrast, gamma and noise, as usual."""


def timed(batches: Iterable[Any], steps: int, device: str, seconds: list[float]) -> Iterator[Any]:
    """Some batches more than are counted; then the seconds that the counted ones took, once all work is done."""
    source = iter(batches)
    yield from islice(source, UNCOUNTED)
    wait(device)
    begin = perf_counter()
    yield from islice(source, steps)
    wait(device)
    seconds.append(perf_counter() - begin)


def bare(job: TrainingJob, batch: dict[str, Any], steps: int, device: str, seconds: list[float]) -> None:
    network = build(job.recipe.segmenter).train().to(device, memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(network.parameters(), 1e-3)
    precision = AUTOCAST[resolve_precision("auto", device)]
    image = batch["image"].contiguous(memory_format=torch.channels_last)
    for _ in timed(repeat(None), steps, device, seconds):
        with torch.autocast(device, precision, enabled=precision != torch.float32):
            logits = network(image)
        loss, _ = combined(job.recipe.losses, logits.float(), batch["target"], batch["known"])
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()


def fed(job: TrainingJob, cutter: ResidentCutter, steps: int, device: str, seconds: list[float]) -> None:
    shutil.rmtree(job.folder, ignore_errors=True)
    batches = (cutter.batch(step, range(job.recipe.batch)) for step in range(job.recipe.batches))
    train(job, lambda _: timed(batches, steps, device, seconds), report=lambda *_: None)


def cut_alone(cutter: ResidentCutter, batch: int, device: str) -> float:
    """Crops a second."""
    seconds: list[float] = []
    steps = 200 if device == "cuda" else 5
    for _ in timed((cutter.batch(step, range(batch)) for step in range(UNCOUNTED + steps)), steps, device, seconds):
        pass
    return steps * batch / seconds[0]


def race(ways: dict[str, Callable[[list[float]], None]], pictures: int) -> None:
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            way(found[name])
    rates = {name: pictures / median(seconds) for name, seconds in found.items()}
    floor = next(iter(rates.values()))
    for name, rate in rates.items():
        print(f"  {name:<34}{rate:10.1f} pictures/s, {rate / floor:6.3f} of the bare loop", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--tiny", action="store_true")
    given = parser.parse_args()
    device, third = best_device(), RECIPES["sennet_3rd"]()
    crop, encoders = (64, ("tu-test_resnet",)) if given.tiny else (512, ENCODERS)
    folder = work_folder("gpu")
    try:
        bench = scan(folder)
        for encoder in encoders:
            recipes = {
                "fed: warp and pointwise": recipe_of("warp", FUSED, encoder=encoder),
                "fed: all of sennet_3rd's": recipe_of(
                    "third", third.augmentation, encoder=encoder, standardise=third.network.standardise
                ),
            }
            jobs = {
                name: job_of(bench, recipe.changed(crop=crop, batch=given.batch)) for name, recipe in recipes.items()
            }
            first = next(iter(jobs.values()))
            cutter = ResidentCutter(first, device)
            batch = {n: v for n, v in cutter.batch(0, range(given.batch)).items() if isinstance(v, torch.Tensor)}
            batch["image"] = torch.rand_like(batch["image"])
            print(f"{encoder}, {given.batch} × {crop}², {resolve_precision('auto', device)} on {device}")
            print(f"  cut alone: {cut_alone(cutter, given.batch, device):.0f} crops/s")
            ways: dict[str, Callable[[list[float]], None]] = {
                "bare loop, random tensors": lambda s, b=batch, j=first: bare(j, b, given.steps, device, s)  # type: ignore[misc]
            }
            for name, job in jobs.items():
                ways[name] = lambda s, j=job, c=cutter: fed(j, c, given.steps, device, s)  # type: ignore[misc]
            race(ways, given.batch * given.steps)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
