""".venv/bin/python bench/allocation.py: what it brings that a process keeps the memory that activations leave.

A U-Net on a ResNet18, bf16, channels-last: batches of inference, one a core, and steps of training, as the engines compute
them. Each run is a process of its own, with glibc's usual ways and without by turns; medians.

    --rounds N  of each (3)
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from statistics import median

import torch

from perfuse.contract import Network
from perfuse.models import build, keep_freed_memory
from perfuse.parallel import in_order

WAYS = ("usual", "kept")
BATCH = 8
TILE, BATCHES = 256, 24
CROP, STEPS = 512, 6


def inference() -> Callable[[], None]:
    network = build(Network(encoder_weights=None, planes=1)).eval().to(memory_format=torch.channels_last)
    images = torch.rand(BATCH, 1, TILE, TILE).contiguous(memory_format=torch.channels_last)
    threads = torch.get_num_threads()

    def answer(_: int) -> None:
        torch.set_num_threads(1)
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            network(images)

    def run() -> None:
        for _ in in_order(answer, range(BATCHES), threads=threads):
            pass

    return run


def training() -> Callable[[], None]:
    network = build(Network(encoder_weights=None, planes=3)).to(memory_format=torch.channels_last)
    images = torch.rand(BATCH, 3, CROP, CROP).contiguous(memory_format=torch.channels_last)
    target = torch.rand(BATCH, 1, CROP, CROP)
    optimizer = torch.optim.AdamW(network.parameters())

    def run() -> None:
        for _ in range(STEPS):
            with torch.autocast("cpu", torch.bfloat16):
                logits = network(images)
            loss = torch.nn.functional.binary_cross_entropy_with_logits(logits.float(), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return run


WORK = {"inference": (inference, BATCHES), "training": (training, STEPS)}


def measured(work: str, way: str) -> dict[str, float]:
    if way == "kept":
        keep_freed_memory()
    make, count = WORK[work]
    run = make()
    run()
    before, begin = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    run()
    wall, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_SELF)
    return {
        "wall": wall / count,
        "user": (after.ru_utime - before.ru_utime) / count,
        "kernel": (after.ru_stime - before.ru_stime) / count,
        "faults": (after.ru_minflt - before.ru_minflt) / count,
        "peak": after.ru_maxrss / 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--run", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.run:
        print(json.dumps(measured(*given.run)))
        return
    print(f"{'':<20}{'wall':>9}{'user':>9}{'kernel':>9}{'faults':>10}{'peak':>11}")
    for work in WORK:
        found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
        for _ in range(given.rounds):
            for way in WAYS:
                words = [sys.executable, __file__, "--run", work, way]
                found[way].append(json.loads(subprocess.run(words, check=True, capture_output=True).stdout))
        for way, runs in found.items():
            it = {what: median(run[what] for run in runs) for what in runs[0]}
            seconds = "".join(f"{it[what]:>7.3f} s" for what in ("wall", "user", "kernel"))
            print(f"{work + ', ' + way:<20}{seconds}{it['faults']:>10.0f}{it['peak']:>7.0f} MiB")


if __name__ == "__main__":
    main()
