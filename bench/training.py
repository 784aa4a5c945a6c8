""".venv/bin/python bench/training.py: what a training step costs beside the network's own work, at 512², batch 8.

U-Net with ResNet18 and three planes, the precision that perfuse takes here. bare: forward, loss, backward and optimiser over
tensors in memory. engine: perfuse's loop over the same batch, without augmentation. fed: the whole training, crops cut from a
sharded scan and augmented as the recipe says. Medians of steps; the ways are taken by turns.
"""

import shutil
from collections.abc import Iterable, Iterator
from itertools import islice, repeat
from statistics import median
from time import perf_counter
from typing import Any

import torch
from feeder import BATCH, CROP, job_of, scan, work_folder

from perfuse import sampling
from perfuse.contract import Network
from perfuse.losses import combined
from perfuse.models import best_device, build, resolve_precision
from perfuse.recipes import RECIPES, Augmentation, Recipe
from perfuse.training import TrainingJob
from perfuse.training.engine import train

ROUNDS, STEPS, UNCOUNTED = 3, 5, 1
STILL = Augmentation(flips=0, quarter_turns=0, brightness=0, contrast=0, gamma=0, noise=0)


class Clock:
    """Seconds that were waited for each batch, and that were worked until the next was asked for."""

    def __init__(self) -> None:
        self.waited: list[float] = []
        self.worked: list[float] = []

    def over(self, batches: Iterable[Any]) -> Iterator[Any]:
        """The first batches of some, timed."""
        source = islice(batches, UNCOUNTED + STEPS)
        for number in range(UNCOUNTED + STEPS):
            begin = perf_counter()
            batch = next(source)
            ready = perf_counter()
            yield batch
            if number >= UNCOUNTED:
                self.waited.append(ready - begin)
                self.worked.append(perf_counter() - ready)


def recipe_of(name: str, augmentation: Augmentation, **network: Any) -> Recipe:
    return RECIPES["quickstart"]().changed(
        name=name,
        network=Network(**{"encoder": "resnet18", "encoder_weights": None, "planes": 3, **network}),
        augmentation=augmentation,
        crop=CROP,
        batch=BATCH,
        steps=10_000,
        validate_every=10_000,
        checkpoint_every=10_000,
    )


def bare(job: TrainingJob, batch: dict[str, Any], clock: Clock) -> None:
    device = best_device()
    network = build(job.recipe.segmenter).train().to(device, memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(network.parameters(), 1e-3)
    image, target, known = (torch.from_numpy(batch[name]).to(device) for name in ("image", "target", "known"))
    image = image.contiguous(memory_format=torch.channels_last)
    bf16 = resolve_precision("auto", device) == "bf16"
    for _ in clock.over(repeat(None)):
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            logits = network(image)
        loss, _ = combined(job.recipe.losses, logits.float(), target, known)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()


def engine(job: TrainingJob, batches: Iterable[Any], clock: Clock) -> None:
    shutil.rmtree(job.folder, ignore_errors=True)
    train(job, lambda _: clock.over(batches), report=lambda *_: None)


def main() -> None:
    folder = work_folder("training")
    try:
        bench = scan(folder)
        still = job_of(bench, recipe_of("still", STILL))
        third = RECIPES["sennet_3rd"]()
        fed = {
            "fed, quickstart's augmentation": job_of(bench, recipe_of("fed", RECIPES["quickstart"]().augmentation)),
            "fed, sennet_3rd's": job_of(
                bench, recipe_of("third", third.augmentation, standardise=third.network.standardise)
            ),
        }
        batch = next(sampling.feed(still))
        clocks = {name: Clock() for name in ("bare loop", "engine, same batch", *fed)}
        for _ in range(ROUNDS):
            bare(still, batch, clocks["bare loop"])
            engine(still, repeat(batch), clocks["engine, same batch"])
            for name, job in fed.items():
                engine(job, sampling.feed(job), clocks[name])
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    floor = median(clocks["bare loop"].worked)
    print(f"U-Net ResNet18, {BATCH} × {CROP}², {resolve_precision('auto', best_device())} on {best_device()}, ", end="")
    print(f"{torch.get_num_threads()} threads; medians of {ROUNDS} × {STEPS} steps, in turns")
    for name, clock in clocks.items():
        waits = sum(clock.waited) / sum(clock.waited + clock.worked)
        work = median(clock.worked)
        print(f"{name:<32}{work:7.3f} s a step, {work / floor:5.2f} × bare; waits for data {waits:6.2%} of the time")


if __name__ == "__main__":
    main()
