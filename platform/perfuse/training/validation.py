"""What a network scores on held-out donors while it trains: a box in the middle of each one's largest label, all thresholds at once."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from perfuse.catalog import Scan
from perfuse.geometry import Box, index3
from perfuse.inference import probability
from perfuse.metrics import CurveCounts, curve_counts
from perfuse.pictures import one_slice
from perfuse.recipes.schema import Criterion
from perfuse.training.job import Source, TrainingJob

STEADY = [-(-255 * k // 40) - 1 for k in range(1, 40)]
"""Indices in a curve of the thresholds 0.025, 0.050 … 0.975."""
VOXELS = 2_400_000
"""Of each validation scan, scored while training; the final scores are of whole scans."""

Slice = tuple[npt.NDArray[Any], npt.NDArray[np.bool_], npt.NDArray[np.uint8]]
"""Of one plane: image, truth, probability."""


def validate(job: TrainingJob, network: torch.nn.Module) -> tuple[dict[str, float], dict[str, bytes]]:
    """Scores of all scans together at their best threshold, `val_score` by the recipe's criterion, and a picture of each."""
    network.eval()
    scans, slices = [], {}
    for source in job.validation:
        counts, slices[source.specimen] = _score(job, network, source)
        scans.append(counts)
    curve = sum(scans, CurveCounts()).curve()
    at = curve.best - 1
    scores = {
        "val_dice": float(curve.dice[at]),
        "val_surface_dice": float(np.nan_to_num(curve.surface_dice[at])),
        "val_threshold": curve.best / 255,
        "val_score": score(scans, job.recipe.criterion),
    }
    return scores, {specimen: one_slice(*planes, curve.best) for specimen, planes in slices.items()}


def score(scans: Sequence[CurveCounts], criterion: Criterion) -> float:
    """What a checkpoint is chosen by; a curve without surface counts as 0.

    The best Dice or surface dice of all scans together at any threshold, or the mean surface dice over the thresholds
    0.025, 0.050 … 0.975 and over scans, each alike: what a checkpoint scores when nobody finds its best threshold.
    """
    if criterion == "mean_surface_dice":
        return float(np.mean([np.nan_to_num(counts.curve().surface_dice[STEADY]).mean() for counts in scans]))
    curve = sum(scans, CurveCounts()).curve()
    values = curve.dice if criterion == "best_dice" else curve.surface_dice
    return float(np.nan_to_num(values).max())


def _score(job: TrainingJob, network: torch.nn.Module, source: Source) -> tuple[CurveCounts, Slice]:
    scan = Scan.open(source.url)
    box = middle(max((b.box for b in scan.label_boxes(source.label)), key=lambda b: b.size))
    soft = probability(network, job.forward(), scan, box)
    values = scan.read_label(source.label, box)
    truth, known = values >= 128, scan.read_known(source.label, box, values)
    counts = curve_counts(np.pad(truth, 1), np.pad(soft, 1), known=np.pad(known, 1, constant_values=True))
    k = soft.shape[0] // 2
    image = scan.read_image(box)[k]
    return counts, (image, truth[k], soft[k])


def middle(whole: Box) -> Box:
    """A box of at most `VOXELS` in the middle of another: its longest axis is halved until it fits."""
    size = list(whole.shape)
    while np.prod(size) > VOXELS:
        longest = int(np.argmax(size))
        size[longest] = -(-size[longest] // 2)
    start = index3([a + (n - b) // 2 for a, n, b in zip(whole.start, whole.shape, size, strict=True)])
    return Box(start, index3([a + b for a, b in zip(start, size, strict=True)]))
