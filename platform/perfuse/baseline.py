"""What a classical global threshold of the image reaches: what a prediction is worth more than."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from perfuse import intensity
from perfuse.catalog import Scan
from perfuse.counting import counted_mask, tally, truth_mask
from perfuse.geometry import Box
from perfuse.metrics import ConfusionCounts, otsu_threshold, otsu_upper_of_three
from perfuse.passes import cut, over_blocks


@dataclass(frozen=True)
class Baseline:
    """What a classical global threshold reaches on the same voxels."""

    method: str
    dice: float
    surface_dice: float


def baseline(scan: Scan, labels: Sequence[str]) -> Baseline:
    """Otsu's threshold, of two or of the outer of three classes, bright or dark: whichever has the highest Dice.

    labels: the truth, then others; what counts is where all of them were given.
    """
    bins = intensity.bins(np.dtype(scan.info.dtype))

    def count(box: Box) -> npt.NDArray[np.int64]:
        image, counted, marked = scan.read_image(box), counted_mask(scan, labels, box), truth_mask(scan, labels[0], box)
        return np.stack([np.bincount(image[counted & (marked == value)], minlength=bins) for value in (False, True)])

    counts = np.zeros((2, bins), np.int64)
    for part in over_blocks(cut(scan.shape_zyx), f"baseline {scan.info.id}", count):
        counts += part
    best, at, bright = max(
        _candidates(counts.sum(0)), key=lambda c: np.nan_to_num(_threshold_dice(counts, c[1], bright=c[2]))
    )
    counted = tally(scan, labels, lambda box, out: np.equal(scan.read_image(box) > at, bright, out=out))
    return Baseline(best, _threshold_dice(counts, at, bright=bright), counted.surface.surface_dice)


def _candidates(histogram: npt.NDArray[np.int64]) -> list[tuple[str, int, bool]]:
    two, upper = otsu_threshold(histogram), otsu_upper_of_three(histogram)
    last = len(histogram) - 1
    lower = last - 1 - otsu_upper_of_three(histogram[::-1])
    return [
        ("Otsu, bright", two, True),
        ("Otsu, dark", two, False),
        ("Otsu, brightest of three", upper, True),
        ("Otsu, darkest of three", lower, False),
    ]


def _threshold_dice(counts: npt.NDArray[np.int64], at: int, *, bright: bool) -> float:
    chosen = counts[:, at + 1 :] if bright else counts[:, : at + 1]
    background, vessel = (int(n) for n in chosen.sum(1))
    return ConfusionCounts(vessel, background, int(counts[1].sum()) - vessel).dice
