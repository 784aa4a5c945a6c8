""".venv/bin/python bench/feeder.py: training crops a second, of 512² without augmentation, along mixed axes.

A scan of uint16 with a label, in shards of 64³ chunks as `perfuse ingest` makes them, on a RAM disk. naive: zarr-python reads
image and label of each crop. tensorstore: the same, with a cache of 2 GB. perfuse: `sampling.feed`, a thread a core.
"""

import os
import shutil
import time
from itertools import islice
from pathlib import Path
from statistics import median

import numpy as np
import tensorstore
from scipy import ndimage

from perfuse import sampling, storage, volumes
from perfuse.catalog import LabelInfo, Scan, ScanInfo
from perfuse.geometry import Box, along_axis, move_axis
from perfuse.labels import writer_for
from perfuse.recipes import Recipe, Sampling, load_recipe
from perfuse.training import TrainingJob
from perfuse.training.job import Source

SHAPE = (1024, 1024, 1024)
RUNS = 3
CROP, BATCH = 512, 8
NAIVE_CROPS, TENSORSTORE_CROPS, BATCHES = 30, 60, 192


def tile() -> tuple[np.ndarray, np.ndarray]:
    """A periodic cube of 256³: texture of organ with the noise of an instrument, and thin vessels."""
    rng = np.random.default_rng(0)
    size = (256, 256, 256)
    fields = [ndimage.gaussian_filter(rng.normal(size=size).astype(np.float32), s, mode="wrap") for s in (2, 6)]
    vessel = np.abs(fields[1] / fields[1].std()) < 0.05
    image = 25000 + sum(1500 * f / f.std() for f in fields) + rng.normal(0, 250, size) + 4000 * vessel
    return image.astype(np.uint16), vessel.astype(np.uint8) * np.uint8(255)


def scan(folder: Path) -> Scan:
    url = str(folder / "bench.ome.zarr")
    if folder.exists():
        return Scan.open(url)
    image, label = (np.tile(part, (1, 4, 4)) for part in tile())
    root = volumes.open_group(url, "a")
    levels = volumes.pyramid_levels(SHAPE, (20.0,) * 3)
    _, arrays = volumes.create_pyramid(root, "", levels, "uint16")
    for first in range(0, SHAPE[0], 64):
        box = Box((first, 0, 0), (first + 64, *SHAPE[1:]))
        volumes.write_shards(arrays[0], box, image[first % 256 : first % 256 + 64] + np.uint16(first))
    counts = np.bincount(image[:64].ravel(), minlength=1 << 16)
    root.require_group("perfuse").create_array("histogram", data=counts.astype(np.int64))
    info = {"id": "bench", "specimen": "bench", "donor": "bench", "organ": "kidney", "digest": "bench", "intensity": {}}
    root.attrs["perfuse"] = ScanInfo(voxel_size_um=(20.0,) * 3, shape_zyx=SHAPE, dtype="uint16", **info).model_dump(
        mode="json"
    )
    writer = writer_for(Scan.open(url), "human", storage.digest_bytes(b"bench"))
    for task in writer.todo():
        box = writer.tasks[task]
        writer.write(task, label[box.start[0] % 256 :][:64][(slice(None), *box.slices[1:])])
    writer.finish(lambda share, digest: LabelInfo(name="human", kind="dense", foreground=share, digest=digest))
    return Scan.open(url)


def boxes(count: int) -> list[Box]:
    """Crops at random, along the three axes by turns."""
    rng = np.random.default_rng(1)
    found = []
    for number in range(count):
        axis = number % 3
        starts = [int(rng.integers(n - m + 1)) for n, m in zip(move_axis(SHAPE, axis), (1, CROP, CROP), strict=True)]
        found.append(along_axis(axis, *((a, a + n) for a, n in zip(starts, (1, CROP, CROP), strict=True))))
    return found


def naive(bench: Scan) -> float:
    arrays = bench.image, bench.label("human")
    begin = time.perf_counter()
    for box in boxes(NAIVE_CROPS):
        for array in arrays:
            np.asarray(array[box.slices], np.float32)
    return NAIVE_CROPS / (time.perf_counter() - begin)


def with_tensorstore(bench: Scan) -> float:
    context = tensorstore.Context({"cache_pool": {"total_bytes_limit": 2 << 30}})
    stores = []
    for path in ("0", "labels/human/0"):
        spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{bench.url}/{path}/"}}
        stores.append(tensorstore.open(spec, context=context, open=True, recheck_cached_data=False).result())
    begin = time.perf_counter()
    for box in boxes(TENSORSTORE_CROPS):
        for store in stores:
            np.asarray(store[box.slices].read().result(), np.float32)
    return TENSORSTORE_CROPS / (time.perf_counter() - begin)


def with_perfuse(job: TrainingJob) -> float:
    batches = sampling.feed(job)
    next(batches)
    begin = time.perf_counter()
    for _ in islice(batches, BATCHES):
        pass
    took = time.perf_counter() - begin
    batches.close()
    return BATCHES * BATCH / took


def job_of(bench: Scan, recipe: Recipe) -> TrainingJob:
    """A training on the scan, with folder and checkpoints beside it."""
    source = Source(
        url=bench.url, specimen="bench", donor="bench", label="human", scan_digest="bench", label_digest="bench"
    )
    folder = str(Path(bench.url).parent / "runs" / recipe.name)
    about = {"folder": folder, "key": recipe.name, "pixel_um": (20.0, 20.0)}
    return TrainingJob(recipe=recipe, train=(source,), validation=(), **about)


def work_folder(name: str) -> Path:
    """Where a benchmark keeps what it makes: a RAM disk, if nothing else is said."""
    return Path(os.environ.get("PERFUSE_BENCH", "/dev/shm/perfuse-bench")) / name


def main() -> None:
    folder = work_folder("feeder")
    try:
        bench = scan(folder)
        recipe = load_recipe("quickstart", [f"crop={CROP}", f"batch={BATCH}", "steps=100000", "network.planes=1"])
        job = job_of(bench, recipe.changed(sampling=Sampling(foreground_share=0.5)))
        with_perfuse(job)
        readers = {
            "naive zarr": lambda: naive(bench),
            "tensorstore, cache of 2 GB": lambda: with_tensorstore(bench),
            "perfuse": lambda: with_perfuse(job),
        }
        speeds = {name: [] for name in readers}
        for _ in range(RUNS):
            for name, reader in readers.items():
                speeds[name].append(reader())
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"{SHAPE[0]}³ uint16, crops of {CROP}² along z, y, x; {os.cpu_count()} cores; medians of {RUNS}, in turns")
    for name, values in speeds.items():
        print(f"{name:<28}{median(values):8.1f} crops/s   ({', '.join(f'{v:.1f}' for v in values)})")
    print(f"perfuse / naive {median(speeds['perfuse']) / median(speeds['naive zarr']):.1f} ×")


if __name__ == "__main__":
    main()
