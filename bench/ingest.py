""".venv/bin/python bench/ingest.py: CPU and wall seconds and peak memory of ingest, beside its floor and its peers.

All read the same 512 slices of 1303 × 912 uint16 from a RAM disk and write to it, on two threads or processes, each run in a
process of its own, contenders by turns. The floor decodes all slices and compresses all levels, and does nothing else: no
histogram, no digests, no files; the stored floor writes files as well. Peers are run where their Python is given:
PERFUSE_PEER_NGFF_ZARR=…/bin/python, and PERFUSE_PEER_STACK_TO_CHUNK likewise; each in a virtual environment of its own, for
their pins differ.

    --runs N    runs of each (3)
    --quick     without JPEG 2000 and the long stack
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import psutil
from slices import folder

ONE = Path(__file__).with_name("ingest_one.py")
OUT = Path(os.environ.get("PERFUSE_BENCH", "/dev/shm/perfuse-bench")) / "out.ome.zarr"
PEERS = {
    "ome_zarr": sys.executable,
    "ngff_zarr": os.environ.get("PERFUSE_PEER_NGFF_ZARR"),
    "stack_to_chunk": os.environ.get("PERFUSE_PEER_STACK_TO_CHUNK"),
}


@dataclass(frozen=True)
class Run:
    """What one run took."""

    wall: float
    cpu: float
    mib: float


def measure(name: str, python: str, slices: Path, codec: str) -> Run:
    shutil.rmtree(OUT, ignore_errors=True)
    words = [python, str(ONE), name, str(slices), str(OUT), codec]
    child = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    tree, peak = psutil.Process(child.pid), 0
    while child.poll() is None:
        peak = max(peak, resident(tree))
        time.sleep(0.05)
    if child.returncode:
        raise SystemExit(f"{' '.join(words)} failed with {child.returncode}")
    told = json.loads(child.stdout.read().splitlines()[-1])
    return Run(told["wall"], told["cpu"], peak / 2**20)


def resident(tree: psutil.Process) -> int:
    total = 0
    for process in [tree, *tree.children(recursive=True)]:
        try:
            total += process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total


def compare(title: str, slices: Path, codec: str, contenders: dict[str, str], runs: int, base: str) -> None:
    """Runs by turns, and prints the medians and their ratios to `base`."""
    taken = {name: [] for name in contenders}
    for _ in range(runs):
        for name, python in contenders.items():
            taken[name].append(measure(name, python, slices, codec))
    print(f"\n{title}\n{'':<18}{'wall s':>9}{'CPU s':>9}{'MiB':>8}   ratio to {base}: wall, CPU", flush=True)
    middle = {
        name: Run(*(median(getattr(r, f) for r in rs) for f in ("wall", "cpu", "mib"))) for name, rs in taken.items()
    }
    for name, run in middle.items():
        ratios = f"{run.wall / middle[base].wall:.2f}, {run.cpu / middle[base].cpu:.2f}"
        print(f"{name:<18}{run.wall:>9.2f}{run.cpu:>9.2f}{run.mib:>8.0f}   {ratios}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--quick", action="store_true")
    asked = parser.parse_args()
    here = dict.fromkeys(("floor", "stored_floor", "perfuse"), sys.executable)
    peers = {name: python for name, python in PEERS.items() if python}
    kinds = ("tiff", "lzw") if asked.quick else ("tiff", "lzw", "jp2")
    for kind in kinds:
        slices = folder(kind, 512)
        for codec, words in (("own", "perfuse's default codec"), ("same", "Blosc zstd 3, shuffle, 128³")):
            compare(f"{kind}, {words}", slices, codec, here, asked.runs, "floor")
    perfuse = {"perfuse": sys.executable}
    for codec, words in (("same", "the same codec"), ("own", "each one's own default")):
        compare(f"peers, plain TIFF, {words}", folder("tiff", 512), codec, perfuse | peers, asked.runs, "perfuse")
    if not asked.quick:
        compare("4,096 slices, plain TIFF", folder("tiff", 4096), "own", perfuse, 1, "perfuse")
    shutil.rmtree(OUT, ignore_errors=True)


if __name__ == "__main__":
    main()
