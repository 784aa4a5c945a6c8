""".venv/bin/python bench/augmentation.py: milliseconds to augment a batch of 8 × 512², as a share of a step of U-Net ResNet18."""

import time
from collections.abc import Callable
from functools import partial
from statistics import median

import torch

from perfuse.augmentation import augment
from perfuse.contract import Network
from perfuse.losses import combined
from perfuse.models import best_device, build, resolve_precision
from perfuse.recipes import RECIPES

BATCH, CROP = 8, 512
RUNS, STEPS = 9, 3


def seconds(work: Callable[[], object], device: str) -> float:
    begin = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def batch(planes: int, device: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    image = torch.rand(BATCH, planes, CROP, CROP, device=device)
    return image, (image[:, :1] > 0.9).float(), torch.ones(BATCH, 1, CROP, CROP, device=device)


def bare_step(planes: int, device: str) -> Callable[[], None]:
    network = build(Network(encoder_weights=None, planes=planes)).to(device, memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(network.parameters())
    image, target, known = batch(planes, device)
    image = image.contiguous(memory_format=torch.channels_last)
    bf16 = resolve_precision("auto", device) == "bf16"

    def step() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            logits = network(image)
        optimiser.zero_grad(set_to_none=True)
        combined(RECIPES["quickstart"]().losses, logits.float(), target, known)[0].backward()
        optimiser.step()

    return step


def main() -> None:
    device = best_device()
    print(f"{BATCH} × {CROP}², {device}, {torch.get_num_threads()} threads; medians")
    print(f"{'setting':<14}{'planes':>7}{'step ms':>10}{'augment ms':>12}{'share':>8}")
    for name, settings, planes in (
        ("quickstart", RECIPES["quickstart"]().augmentation, 3),
        ("sennet_3rd", RECIPES["sennet_3rd"]().augmentation, 1),
    ):
        crops, step = batch(planes, device), bare_step(planes, device)
        step()
        steps = median(seconds(step, device) for _ in range(STEPS))
        varied = [partial(augment, *crops, settings, 0, at, range(BATCH)) for at in range(RUNS + 1)]
        took = median(seconds(work, device) for work in varied)
        print(f"{name:<14}{planes:>7}{1000 * steps:>10.0f}{1000 * took:>12.0f}{took / steps:>8.1%}")


if __name__ == "__main__":
    main()
