""".venv/bin/python bench/inference.py: a whole prediction beside its network alone, and beside MONAI's SliceInferer.

A U-Net on a ResNet18 along three axes over a phantom, tiles of 256², no overlap where the volume is as wide as a tile. Each
contender is a process of its own that is warm before the clock starts, compiled where it is to be. They run by turns;
medians of wall and of CPU seconds are compared, for a busy machine disturbs the latter less. perfuse reads Zarr and writes
the label with its pyramid, digests and picture; MONAI, with the same weights, reads Zarr into memory, averages the axes'
logits and leaves the probabilities there. Memory is what a process holds at its peak, and how much that is above what it held
when the network had answered once. MONAI, where it is missing: uv pip install monai.

    --size N    voxels along each edge (256)
    --rounds N  of each (3; MONAI at its defaults 1)
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil
import torch

from perfuse import storage
from perfuse.bundle import Bundle
from perfuse.catalog import Scan
from perfuse.contract import Contract, Forward, Network
from perfuse.geometry import Box
from perfuse.inference import choosing, predict, prediction
from perfuse.inference.backends import Backend, why_not_compiled
from perfuse.inference.engine import Engine
from perfuse.inference.running import network_on
from perfuse.inference.slab import PLANES, middle_batch
from perfuse.inference.trial import Task, trial_elsewhere
from perfuse.models import build
from perfuse.normalisation import bounds, normalise
from perfuse.parallel import in_order

OUT = Path(os.environ.get("PERFUSE_BENCH", "/dev/shm/perfuse-bench")) / "inference"
FORWARD = Forward(network=Network(encoder_weights=None, planes=1), voxel_size_um=(10, 100), tile=256)
TILE = FORWARD.tile
TASK = "task.json"
Run = Callable[[], object]


def prepare(size: int) -> tuple[Scan, Bundle]:
    from perfuse_ingest.ingest import ingest
    from perfuse_ingest.phantom import write_phantom

    shutil.rmtree(OUT, ignore_errors=True)
    write_phantom(str(OUT / "slices"), shape_zyx=(size, size, size), seed=0)
    url = str(OUT / "p.ome.zarr")
    ingest(str(OUT / "slices" / "images"), url, voxel_size_um=(50, 50, 50), specimen="p", organ="phantom")
    torch.manual_seed(0)
    network = build(FORWARD.network)
    bundle = Bundle(Contract(forward=FORWARD), network.state_dict(), {}, "a U-Net")
    bundle.save(OUT / "bundle")
    return Scan.open(url), bundle


def voxels(scan: Scan, box: Box) -> Any:
    return normalise(scan.read_image(box), bounds(scan, FORWARD.normalisation), FORWARD.normalisation)


def fastest(scan: Scan, bundle: Bundle) -> Backend:
    """Of all backends that this machine has, whatever compiling takes; it is remembered in the scan."""
    images = middle_batch(FORWARD, lambda box: voxels(scan, box), scan.shape_zyx)
    candidates: list[Backend] = ["eager-fp32", "eager-bf16", "compiled-fp32", "compiled-bf16"]
    seconds = {}
    for backend in candidates:
        lacking = why_not_compiled("cpu") if backend.startswith("compiled") else None
        task = Task(backend=backend, device="cpu", threads=torch.get_num_threads())
        found = lacking or trial_elsewhere(bundle, images, task, 300)
        if isinstance(found, str):
            print(f"{backend:<16} {found}")
            continue
        seconds[backend] = found[0]
        print(f"{backend:<16} {found[0].batch:8.3f} s a batch of {PLANES}, {found[0].first:6.1f} s for the first")
    best = min(seconds, key=lambda backend: seconds[backend].batch)
    choice = choosing.Choice(backend=best, seconds=seconds, unused={}, largest_difference=0, swapped=0)
    choosing.remember(scan, bundle, "cpu", choice)
    return best


def network_alone(scan: Scan, bundle: Bundle, backend: Backend) -> Run:
    """As many pictures as the prediction has, of numbers that are there, as many at once."""
    engine = Engine.of(loaded(bundle), FORWARD, "cpu", backend)
    batch = torch.rand(engine.pictures, 1, TILE, TILE).contiguous(memory_format=torch.channels_last)
    batches = prediction.plan(scan, FORWARD).tiles // engine.pictures
    torch.set_num_threads(1)

    def answer(_: int) -> None:
        with torch.inference_mode():
            engine.network(batch)

    def run(count: int = batches) -> None:
        for _ in in_order(answer, range(count), threads=engine.streams):
            pass

    run(1)
    return run


def whole_job(scan: Scan, bundle: Bundle, backend: Backend) -> Run:
    """What `perfuse predict --local` does, after start-up and compilation."""

    def run() -> None:
        predict(scan.url, bundle, "soft")
        storage.remove_tree(storage.join(scan.url, "labels/soft"))

    def by(engine: Engine) -> None:
        prediction.Worker._engine = lambda *_: engine  # type: ignore[method-assign]

    by(Engine(torch.nn.Identity(), FORWARD, "cpu", backend))
    run()
    engine = Engine.of(loaded(bundle), FORWARD, "cpu", backend)
    engine.logits(middle_batch(FORWARD, lambda box: voxels(scan, box), scan.shape_zyx))
    by(engine)
    return run


def monai(scan: Scan, bundle: Bundle, network: Any, batch: int, layout: torch.memory_format, half: bool) -> Run:
    from monai.inferers import SliceInferer

    def answer(images: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            return network(images.contiguous(memory_format=layout)).float()

    @torch.inference_mode()
    def run() -> np.ndarray:
        volume = torch.from_numpy(voxels(scan, Box.whole(scan.shape_zyx)))[None, None]
        total = torch.zeros_like(volume)
        for axis in range(3):
            total += SliceInferer(spatial_dim=axis, roi_size=(TILE, TILE), sw_batch_size=batch)(volume, answer)
        return (255 * (total / 3).sigmoid()).round().to(torch.uint8).numpy()

    with torch.inference_mode():
        answer(torch.rand(batch, 1, TILE, TILE))
    return run


def monai_tuned(scan: Scan, bundle: Bundle, backend: Backend) -> Run:
    network = loaded(bundle).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return monai(scan, bundle, network, PLANES, torch.channels_last, half=True)


def monai_with_ours(scan: Scan, bundle: Bundle, backend: Backend) -> Run:
    return monai(scan, bundle, network_on(loaded(bundle), backend, "cpu"), PLANES, torch.channels_last, half=False)


def monai_defaults(scan: Scan, bundle: Bundle, backend: Backend) -> Run:
    return monai(scan, bundle, loaded(bundle), 1, torch.contiguous_format, half=False)


def loaded(bundle: Bundle) -> Any:
    network = build(FORWARD.network).eval()
    network.load_state_dict(bundle.weights)
    return network


CONTENDERS = {
    "network alone": network_alone,
    "perfuse": whole_job,
    "MONAI, bf16, channels-last": monai_tuned,
    "MONAI, our network": monai_with_ours,
    "MONAI, its defaults": monai_defaults,
}


def contend(name: str, backend: Backend) -> None:
    """A contender's own process: a line in, a run, its seconds and MiB out."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    scan, bundle = Scan.open(str(OUT / "p.ome.zarr")), Bundle.load(OUT / "bundle", "a U-Net")
    run = CONTENDERS[name](scan, bundle, backend)
    process = psutil.Process()
    before = process.memory_info().rss
    print("ready", file=answers, flush=True)
    for _ in sys.stdin:
        peak, over = [0], threading.Event()

        def watch(peak: list[int] = peak, over: threading.Event = over) -> None:
            while not over.wait(0.02):
                peak[0] = max(peak[0], process.memory_info().rss)

        watcher = threading.Thread(target=watch)
        watcher.start()
        begin, spent = time.perf_counter(), time.process_time()
        run()
        wall, cpu = time.perf_counter() - begin, time.process_time() - spent
        over.set()
        watcher.join()
        print(
            json.dumps({"wall": wall, "cpu": cpu, "above": peak[0] - before, "peak": peak[0]}), file=answers, flush=True
        )


def race(names: list[str], backend: Backend, rounds: int) -> dict[str, list[dict[str, float]]]:
    children = {}
    for name in names:
        words = [sys.executable, __file__, "--contender", name, "--backend", backend]
        children[name] = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        ask(children[name], name)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for number in range(rounds):
        for name, child in children.items():
            if number == 0 or name != "MONAI, its defaults":
                child.stdin.write("go\n")
                found[name].append(json.loads(ask(child, name)))
    for child in children.values():
        child.stdin.close()
        child.wait()
    return found


def ask(child: Any, name: str) -> str:
    line = child.stdout.readline()
    if not line:
        raise SystemExit(f"{name} failed with {child.wait()}")
    return line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    parser.add_argument("--backend", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.contender:
        contend(given.contender, given.backend)
        return
    names = list(CONTENDERS)
    if find_spec("monai") is None:
        print("MONAI is not installed, and left out: uv pip install monai")
        names = names[:2]
    try:
        scan, bundle = prepare(given.size)
        backend = fastest(scan, bundle)
        tiles = prediction.plan(scan, FORWARD).tiles
        print(f"{given.size}³, {tiles} tiles, {backend}, {torch.get_num_threads()} threads")
        found = race(names, backend, given.rounds)
    finally:
        shutil.rmtree(OUT, ignore_errors=True)
    middle = {name: {what: median(run[what] for run in runs) for what in runs[0]} for name, runs in found.items()}
    ours = middle["perfuse"]
    print(f"{'':<28}{'wall':>10}{'CPU':>10}{'of perfuse: wall':>18}{'CPU':>7}{'above the network':>20}{'peak':>14}")
    for name, it in middle.items():
        ratios = f"{it['wall'] / ours['wall']:>16.2f} ×{it['cpu'] / ours['cpu']:>5.2f} ×"
        memory = f"{it['above'] / 2**20:>16.0f} MiB{it['peak'] / 2**20:>10.0f} MiB"
        print(f"{name:<28}{it['wall']:>8.2f} s{it['cpu']:>8.2f} s{ratios}{memory}")
    alone = middle["network alone"]
    asked = "asked, on two idle cores: at most 1.10"
    print(
        f"perfuse ÷ its network alone: wall {ours['wall'] / alone['wall']:.3f}, CPU {ours['cpu'] / alone['cpu']:.3f} ({asked})"
    )


if __name__ == "__main__":
    main()
