"""Metrics and components on this machine, against what else there is; each table from one run, medians, the ways taken by turns.

    python bench/metrics.py                                   # all four, five minutes on two cores
    python bench/metrics.py --only curve                      # memory, curve, stored or components
    python bench/metrics.py --mask rat_kidney/pred_raw_1.nii.gz

memory: surface dice at one threshold, both masks in memory: perfuse on all cores, a table of cube codes in numpy, DeepMind's
surface-distance and MONAI, these on smaller volumes. curve: all 255 thresholds against one, one thread. stored: scoring two labels
of a scan against decompressing them. components: 26 neighbours, blocks of a label on disk against cc3d with the volume in memory,
each in a process of its own; peak memory above that of the process when it begins. Without --mask the volume is drawn.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil
from scipy import ndimage

from perfuse import passes, scoring, storage, volumes
from perfuse.catalog import LabelInfo, Scan, ScanInfo
from perfuse.components import find_components, label_block
from perfuse.geometry import Box
from perfuse.labels import writer_for
from perfuse.metrics import SurfaceCounts, curve_counts, surface_counts
from perfuse.metrics.changes import count_changes
from perfuse.parallel import in_order

PERIOD = 128
RAT_KIDNEY = (750, 571, 903)
FOREGROUND = 0.1


def field(shape: tuple[int, int, int], sigma: float = 3) -> np.ndarray:
    """Smooth, periodic, of mean 0 and variance 1: float32[z, y, x]."""
    tile = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(PERIOD,) * 3), sigma, mode="wrap")
    tile = (tile / tile.std()).astype(np.float32)
    return np.tile(tile, [-(-n // PERIOD) for n in shape])[tuple(slice(n) for n in shape)]


def soft_prediction(shape: tuple[int, int, int], noise: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """A mask with 10 % foreground, and uint8 probabilities of it in which no two neighbours are equal."""
    rng, base = np.random.default_rng(1), field(shape)
    limit = float(np.quantile(base[:PERIOD], 1 - FOREGROUND))
    logits = 2 * (base - limit) + noise * rng.normal(size=shape).astype(np.float32)
    return base > limit, np.rint(255 / (1 + np.exp(-logits))).astype(np.uint8)


def by_turns(ways: dict[str, Callable[[], Any]], clock: Callable[[], float], runs: int = 5) -> dict[str, float]:
    """Median seconds of each way; compiled and warm before."""
    took: dict[str, list[float]] = {name: [] for name in ways}
    for work in ways.values():
        work()
    for _ in range(runs):
        for name, work in ways.items():
            began = clock()
            work()
            took[name].append(clock() - began)
    return {name: median(seconds) for name, seconds in took.items()}


def table(title: str, rows: dict[str, float], sizes: dict[str, int], first: str) -> None:
    """Rates in Mvoxel/s, and how many times the seconds a voxel of the first row."""
    print(f"\n{title}\n{'':<44}{'s':>9}{'Mvoxel/s':>11}{'ratio':>8}")
    unit = rows[first] / sizes[first]
    for name, seconds in rows.items():
        print(f"{name:<44}{seconds:>9.3f}{sizes[name] / 1e6 / seconds:>11.1f}{seconds / sizes[name] / unit:>8.2f}")


def in_memory() -> None:
    from surface_distance.lookup_tables import create_table_neighbour_code_to_surface_area

    areas = create_table_neighbour_code_to_surface_area((1, 1, 1))
    shapes = {"perfuse": (512, 512, 512), "table": (64, 256, 256), "DeepMind": (64, 64, 96), "MONAI": (64, 64, 96)}
    names = {"perfuse": f"perfuse, {os.cpu_count()} cores", "table": "numpy, a table of codes"}
    masks = {}
    for name, shape in shapes.items():
        truth, soft = soft_prediction(shape)
        masks[name] = np.pad(truth, 1), np.pad(soft >= 128, 1)
    ways = {"perfuse": whole_surface, "table": with_table, "DeepMind": deepmind, "MONAI": monai}
    calls: dict[str, Callable[[], float]] = {
        names.get(name, name): lambda way=way, pair=masks[name]: way(*pair, areas) for name, way in ways.items()
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for (name, pair), call in zip(masks.items(), calls.values(), strict=True):
            if not np.isclose(call(), surface_counts(*pair).surface_dice, atol=1e-9):
                raise AssertionError(f"{name} gives another surface dice")
        took = by_turns(calls, time.perf_counter, 3)
    sizes = {names.get(name, name): int(np.prod(shape)) for name, shape in shapes.items()}
    table("Surface dice at tolerance 0, one threshold, in memory", took, sizes, names["perfuse"])


def whole_surface(truth: np.ndarray, predicted: np.ndarray, _: np.ndarray, planes: int = 16) -> float:
    parts = [slice(z, z + planes + 1) for z in range(0, len(truth) - 1, planes)]
    return sum(in_order(lambda s: surface_counts(truth[s], predicted[s]), parts), SurfaceCounts()).surface_dice


def with_table(truth: np.ndarray, predicted: np.ndarray, areas: np.ndarray) -> float:
    found = []
    for mask in (truth.astype(np.uint8), predicted.astype(np.uint8)):
        code = np.zeros([n - 1 for n in mask.shape], np.uint8)
        for n in range(8):
            corner = tuple(
                slice(b, size - 1 + b) for b, size in zip((n >> 2, n >> 1 & 1, n & 1), mask.shape, strict=True)
            )
            code |= mask[corner] << (7 - n)
        found.append(areas[code])
    a, b = found
    return float((a[b > 0].sum() + b[a > 0].sum()) / (a.sum() + b.sum()))


def deepmind(truth: np.ndarray, predicted: np.ndarray, _: np.ndarray) -> float:
    from surface_distance import compute_surface_dice_at_tolerance, compute_surface_distances

    return compute_surface_dice_at_tolerance(compute_surface_distances(truth, predicted, (1, 1, 1)), 0)


def monai(truth: np.ndarray, predicted: np.ndarray, _: np.ndarray) -> float:
    import torch
    from monai.metrics import compute_surface_dice

    one, other = (torch.from_numpy(mask)[None, None] for mask in (predicted, truth))
    return compute_surface_dice(
        one, other, [0.0], include_background=True, spacing=(1, 1, 1), use_subvoxels=True
    ).item()


def curve() -> None:
    truth, soft = soft_prediction((128, 256, 256))
    noise = np.random.default_rng(2).integers(0, 256, soft.shape, np.uint8)
    known = np.ones(truth.shape, np.uint8)
    marked = truth.view(np.uint8)
    for title, values in (
        ("10 % foreground, noise everywhere", soft),
        ("10 % foreground in the truth, nothing but noise predicted", noise),
        ("10 % foreground, smooth", soft_prediction(truth.shape, 0.0)[1]),
    ):
        at_half = values >= 128
        one, counts = "one threshold", "255 thresholds, one pass"
        took = by_turns(
            {
                one: lambda mask=at_half: surface_counts(truth, mask, known.view(bool)),
                counts: lambda v=values: count_changes(marked, v, known),
                f"{counts}, Dice too": lambda v=values: curve_counts(truth, v, known=known.view(bool)),
            },
            time.thread_time,
        )
        table(f"Surface dice, {title}, one thread", took, dict.fromkeys(took, truth.size), one)


def stored_scan(folder: Path, labels: dict[str, np.ndarray]) -> Scan:
    """A scan without an image, with labels as perfuse stores them."""
    shape = next(iter(labels.values())).shape
    url, size = str(folder / "bench.ome.zarr"), (20.0,) * 3
    root = volumes.open_group(url, "a")
    volumes.create_pyramid(root, "", volumes.pyramid_levels(shape, size), "uint8")
    about = {
        "id": "bench",
        "specimen": "bench",
        "donor": "bench",
        "organ": "kidney",
        "digest": "bench",
        "intensity": {},
    }
    info = ScanInfo(voxel_size_um=size, shape_zyx=shape, dtype="uint8", **about)
    root.attrs["perfuse"] = info.model_dump(mode="json")
    for name, values in labels.items():
        writer = writer_for(Scan.open(url), name, storage.digest_bytes(name.encode()))
        for task in writer.todo():
            writer.write(task, values[writer.tasks[task].slices])
        writer.finish(lambda share, digest, n=name: LabelInfo(name=n, foreground=share, digest=digest, kind="dense"))
    return Scan.open(url)


def stored(folder: Path) -> None:
    truth, soft = soft_prediction((512, 512, 512), 0.02)
    scan = stored_scan(folder, {"human": truth.astype(np.uint8) * np.uint8(255), "soft": soft})
    del truth, soft

    def decode() -> None:
        for _ in in_order(lambda box: [scan.read_label(name, box).size for name in ("human", "soft")], cuts):
            pass

    cuts = passes.cut(scan.shape_zyx)
    took = by_turns(
        {
            "both labels decompressed": decode,
            "Dice and surface dice, one threshold": lambda: scoring.count(scan, "soft", "human", 128),
            "the same, by column for a heat map": lambda: scoring.count(scan, "soft", "human", 128, (64, 64)),
            "255 thresholds": lambda: scoring.tune([scan], "soft", "human"),
        },
        time.perf_counter,
        3,
    )
    size = int(np.prod(scan.shape_zyx))
    table(f"Two labels on disk, {os.cpu_count()} cores", took, dict.fromkeys(took, size), "both labels decompressed")


def drawn_mask() -> np.ndarray:
    """As many voxels, as much foreground and about as many components as a rat's kidney."""
    base = field(RAT_KIDNEY)
    return base > np.quantile(base[:PERIOD], 0.987)


def components(folder: Path, given: Path | None) -> None:
    if given is None:
        mask = drawn_mask()
    else:
        import nibabel

        mask = np.asarray(nibabel.load(given).dataobj) > 0
    np.save(folder / "mask.npy", mask)
    stored_scan(folder, {"mask": mask.astype(np.uint8) * np.uint8(255)})
    size = mask.size
    print(f"\n26-connected components, {' × '.join(map(str, mask.shape))}, {mask.mean():.1%} foreground")
    del mask
    print(f"{'':<44}{'s':>9}{'ratio':>8}{'peak MB':>11}{'ratio':>8}{'components':>13}")
    one: dict[str, float] = {}
    for name, title in CHILDREN.items():
        words = [sys.executable, __file__, "--child", name, str(folder)]
        ran = [json.loads(subprocess.run(words, capture_output=True, check=True, text=True).stdout) for _ in range(3)]
        took = {key: median(run[key] for run in ran) for key in ran[0]}
        one = one or took
        print(
            f"{title:<44}{took['seconds']:>9.2f}{took['seconds'] / one['seconds']:>8.2f}{took['bytes'] / 1e6:>11.0f}"
            f"{took['bytes'] / one['bytes']:>8.2f}{took['count']:>13,.0f}"
        )
    print(
        f"{size / 1e6:.0f} Mvoxel; the seconds of cc3d are without reading the volume, those of perfuse with it where on disk"
    )


CHILDREN = {
    "cc3d": "cc3d, volume in memory, one core",
    "memory": "perfuse, volume in memory",
    "disk": "perfuse, label on disk",
}


def child(name: str, folder: Path) -> dict[str, float]:
    """Components in this process alone: seconds, bytes above what the process began with, and their number."""
    import cc3d

    small = np.zeros((8, 8, 8), np.bool_)
    find_components([label_block(small, Box.whole(small.shape), small.shape)])  # compiled
    scan = Scan.open(str(folder / "bench.ome.zarr"))
    before = psutil.Process().memory_info().rss
    mask = np.load(folder / "mask.npy") if name in ("cc3d", "memory") else np.empty(0)
    began = time.perf_counter()
    if name == "cc3d":
        count = cc3d.connected_components(mask, connectivity=26, return_N=True)[1]
    else:
        read = (lambda box: mask[box.slices]) if name == "memory" else (lambda box: scan.read_label("mask", box) >= 128)
        cuts = passes.cut(scan.shape_zyx)
        count = find_components(in_order(lambda box: label_block(read(box), box, scan.shape_zyx), cuts)).count
    seconds = time.perf_counter() - began
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    peak = int(status["VmHWM"].split()[0]) * 1024  # getrusage tells the parent's, where that was larger
    return {"seconds": seconds, "bytes": peak - before, "count": count}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["memory", "curve", "stored", "components"])
    parser.add_argument("--mask", type=Path, help="a NIfTI file whose components are counted")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(child(given.child[0], Path(given.child[1]))))
        return
    wanted = {"memory", "curve", "stored", "components"} if given.only is None else {given.only}
    if "memory" in wanted:
        in_memory()
    if "curve" in wanted:
        curve()
    for name in ("stored", "components"):
        if name in wanted:
            with tempfile.TemporaryDirectory() as folder:
                stored(Path(folder)) if name == "stored" else components(Path(folder), given.mask)


if __name__ == "__main__":
    main()
