""".venv/bin/python bench/ray_share.py: a whole prediction by actors of Ray Data beside the same one in this process.

A U-Net on a ResNet18 along three axes over a phantom, tiles of 256², eagerly in the usual precision. Ray's start, and each
actor's, are left out: of both ways the time of a corner, one chunk deep, is taken off. They run by turns; medians of the rest.
The peak is of this process, Python and PyTorch with it.

    --size N    voxels along each edge (512)
    --actors N  which share this machine's cores (1)
    --rounds N  of each (1)
"""

import argparse
import resource
import time
from functools import partial
from statistics import median
from typing import get_args

from inference import FORWARD, prepare

from perfuse import storage
from perfuse.bundle import Bundle
from perfuse.catalog import Scan
from perfuse.geometry import Box
from perfuse.inference import Runner, choosing, predict
from perfuse.inference.backends import Backend, usual
from perfuse.inference.scratch import SLAB
from perfuse.inference.trial import Seconds
from perfuse_jobs.predict import on_ray
from perfuse_jobs.session import connect
from perfuse_jobs.workers import Workers

CORNER = Box((0, 0, 0), (SLAB, FORWARD.tile, FORWARD.tile))


def seconds(scan: Scan, bundle: Bundle, runner: Runner, roi: Box | None) -> float:
    begin = time.perf_counter()
    predict(scan.url, bundle, "soft", runner=runner, roi=roi)
    took = time.perf_counter() - begin
    storage.remove_tree(storage.join(scan.url, "labels/soft"))
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--actors", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=1)
    given = parser.parse_args()
    scan, bundle = prepare(given.size)
    backend = usual(FORWARD.precision, "cpu")
    others = {other: "not asked" for other in get_args(Backend) if other != backend}
    took = {backend: Seconds(first=1, batch=1)}
    choice = choosing.Choice(backend=backend, seconds=took, unused=others, largest_difference=0, swapped=0)
    choosing.remember(scan, bundle, "cpu", choice)
    workers = Workers(given.actors, given.actors)
    connect(workers.most)
    ways = {"in this process": Runner(), f"on Ray, actors: {given.actors}": on_ray(workers)}
    corner_box = CORNER.intersect(Box.whole(scan.shape_zyx))
    for runner in ways.values():
        seconds(scan, bundle, runner, corner_box)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(given.rounds):
        for name, runner in ways.items():
            of = partial(seconds, scan, bundle, runner)
            corner = of(corner_box)
            found[name].append((corner, of(None)))
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            print(
                f"{name:<20} {found[name][-1][1]:8.2f} s, one corner {corner:6.2f} s, {backend}, peak {peak:.0f} MiB",
                flush=True,
            )
    here, there = (median(whole - corner for corner, whole in runs) for runs in found.values())
    print(f"{given.size}³ on Ray takes {there / here:.3f} × the time in this process, start-up apart")


if __name__ == "__main__":
    main()
