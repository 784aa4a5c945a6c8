""".venv/bin/python bench/metrics.py: all 255 thresholds in one pass, against one evaluation a threshold."""

import time
from statistics import median

import numpy as np
from scipy import ndimage

from perfuse.metrics import confusion_counts, curve_counts, surface_counts

SHAPE = (96, 256, 256)
RUNS = 5
SINGLES = (32, 96, 128, 160, 224)


def seconds(work, *arguments) -> float:
    begin = time.thread_time()
    work(*arguments)
    return time.thread_time() - begin


def soft_predictions() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """A smooth one as networks make them, and noise, where no two neighbours are equal: the worst case."""
    rng = np.random.default_rng(0)
    field = ndimage.gaussian_filter(rng.normal(size=SHAPE), 4)
    logits = 8 * (field / field.std() - 1.5)
    smooth = np.rint(255 / (1 + np.exp(-logits))).astype(np.uint8)
    noise = rng.integers(0, 256, SHAPE, np.uint8)
    return {"smooth": (logits > 0.5, smooth), "noise": (noise > 220, noise)}


def one_threshold(truth: np.ndarray, soft: np.ndarray, v: int) -> None:
    surface_counts(truth, soft >= v)
    confusion_counts(truth, soft >= v)


def main() -> None:
    print(f"{' × '.join(map(str, SHAPE))} voxels; seconds of one thread, medians of {RUNS}")
    print(f"{'prediction':<12}{'what':<28}{'s':>8}{'Mvoxel/s':>12}")
    for name, (truth, soft) in soft_predictions().items():
        one_threshold(truth, soft, 128)
        curve_counts(truth, soft)  # both compiled now
        single = median(seconds(one_threshold, truth, soft, v) for v in SINGLES)
        curve = median(seconds(curve_counts, truth, soft) for _ in range(RUNS))
        for what, took in (("one threshold", single), ("255 thresholds, one pass", curve)):
            print(f"{name:<12}{what:<28}{took:>8.3f}{truth.size / 1e6 / took:>12.1f}")
        print(
            f"{name:<12}ratio {255 * single / curve:.0f} × (255 single evaluations, extrapolated from {len(SINGLES)})"
        )


if __name__ == "__main__":
    main()
