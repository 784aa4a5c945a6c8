""".venv/bin/python bench/ingest_s3.py s3://BUCKET/PREFIX: ingest into an object store, against ingest to a RAM disk and bare PUTs.

The floor is the sum of two runs: `perfuse ingest` to the RAM disk, and a parallel PUT of the very objects that it made,
eight at a time by the same client. AWS_ENDPOINT_URL and credentials as for every s3:// URL. Medians of three, by turns.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

from slices import folder

from perfuse import storage

LOCAL = Path(os.environ.get("PERFUSE_BENCH", "/dev/shm/perfuse-bench")) / "local.ome.zarr"
ONE = Path(__file__).with_name("ingest_one.py")
RUNS, AT_ONCE = 3, 8


def ingest(out: str) -> float:
    words = [sys.executable, str(ONE), "perfuse", str(folder("tiff", 512)), out, "own"]
    told = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    return float(json.loads(told.splitlines()[-1])["wall"])


def put(url: str) -> float:
    objects = {str(p.relative_to(LOCAL)): p.read_bytes() for p in LOCAL.rglob("*") if p.is_file()}
    files = storage.filesystem(url)
    begun = time.perf_counter()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(lambda item: files.pipe_file(f"{url}/{item[0]}", item[1]), objects.items()))
    return time.perf_counter() - begun


def main() -> None:
    root = sys.argv[1].rstrip("/")
    taken: dict[str, list[float]] = {"local": [], "bare PUT": [], "to the store": []}
    for _ in range(RUNS):
        shutil.rmtree(LOCAL, ignore_errors=True)
        taken["local"].append(ingest(str(LOCAL)))
        taken["bare PUT"].append(put(f"{root}/put.ome.zarr"))
        taken["to the store"].append(ingest(f"{root}/scan.ome.zarr"))
        for name in ("put", "scan"):
            storage.remove_tree(f"{root}/{name}.ome.zarr")
    middle = {name: median(seconds) for name, seconds in taken.items()}
    for name, seconds in middle.items():
        print(f"{name:<14}{seconds:>8.2f} s")
    print(f"ratio {middle['to the store'] / (middle['local'] + middle['bare PUT']):.2f} (to the store over the sum)")
    shutil.rmtree(LOCAL, ignore_errors=True)


if __name__ == "__main__":
    main()
