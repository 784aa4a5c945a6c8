""".venv/bin/python bench/metrics.py: all 255 thresholds in one pass, against one evaluation a threshold."""

import time
from statistics import median

import numpy as np

from perfuse.metrics import confusion_counts, curve_counts, surface_counts

SHAPE = (128, 256, 256)
RUNS = 3


def seconds(work) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def main() -> None:
    rng = np.random.default_rng(0)
    truth = rng.random(SHAPE) < 0.05
    soft = np.clip(truth * 160 + rng.normal(40, 30, SHAPE), 0, 255).astype(np.uint8)

    def single() -> None:
        surface_counts(truth, soft >= 128)
        confusion_counts(truth, soft >= 128)

    def curve() -> None:
        curve_counts(truth, soft)

    single(), curve()  # compile
    one = median(seconds(single) for _ in range(RUNS))
    whole = median(seconds(curve) for _ in range(RUNS))
    voxels = truth.size / 1e6
    print(f"{'what':<28}{'s':>8}{'Mvoxel/s':>12}   ({' × '.join(map(str, SHAPE))}, median of {RUNS}, one thread)")
    print(f"{'one threshold':<28}{one:>8.3f}{voxels / one:>12.1f}")
    print(f"{'255 thresholds, one pass':<28}{whole:>8.3f}{voxels / whole:>12.1f}")
    print(f"one pass is {255 * one / whole:.0f} × faster than 255 single evaluations (255 × the median of one)")


if __name__ == "__main__":
    main()
