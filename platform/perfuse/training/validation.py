"""What a network scores on held-out donors while it trains: a box of each one's label that holds vessels, all thresholds at once."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from perfuse.catalog import Scan
from perfuse.contract import of_class
from perfuse.counting import counted_mask
from perfuse.geometry import Box, index3
from perfuse.inference import probability
from perfuse.metrics import CurveCounts, curve_counts
from perfuse.pictures import one_slice
from perfuse.recipes.schema import Criterion
from perfuse.sampling.sources import Labelled
from perfuse.training.job import Source, TrainingJob

SCORES = ("val_dice", "val_surface_dice", "val_threshold", "val_score")
VOXELS = 2_400_000
"""Of each validation scan, scored while training; the final scores are of whole scans."""

Slice = tuple[npt.NDArray[Any], npt.NDArray[np.bool_], npt.NDArray[np.uint8]]
"""Of one plane: image, truth, probability."""


def validate(job: TrainingJob, network: torch.nn.Module) -> tuple[dict[str, float], dict[str, bytes]]:
    """Scores of all scans together at their best threshold, `val_score` by the recipe's criterion, and a picture of each.

    Of several classes each by its name, as `val_dice.vessel`, at a threshold of its own; those without are means over them.
    """
    network.eval()
    probabilities = _Probabilities(job, network)
    by_class = {
        name: _validate([s for s in job.validation if s.class_name == name], probabilities, name, job.recipe.criterion)
        for name in probabilities.class_names
    }
    means = {name: float(np.mean([scores[name] for scores, _ in by_class.values()])) for name in SCORES}
    each = {
        f"{score}.{name}": value
        for name, (scores, _) in by_class.items()
        if name
        for score, value in scores.items()
        if score != "val_score"
    }
    return means | each, {title: png for _, pictures in by_class.values() for title, png in pictures.items()}


def _validate(
    sources: Sequence[Source], probabilities: "_Probabilities", class_name: str, criterion: Criterion
) -> tuple[dict[str, float], dict[str, bytes]]:
    """What `validate` answers, of one class."""
    scans, slices = [], {}
    for source in sources:
        counts, slices[of_class(source.specimen, class_name)] = _score(source, probabilities)
        scans.append(counts)
    curve = sum(scans, CurveCounts()).curve()
    at = curve.best - 1
    values = (curve.dice[at], np.nan_to_num(curve.surface_dice[at]), curve.best / 255, score(scans, criterion))
    scores = {name: float(value) for name, value in zip(SCORES, values, strict=True)}
    return scores, {title: one_slice(*planes, curve.best) for title, planes in slices.items()}


class _Probabilities:
    """What a network answers on boxes of scans, all classes at once: asked once, kept for other classes that are scored there."""

    def __init__(self, job: TrainingJob, network: torch.nn.Module) -> None:
        self.forward, self.network = job.forward(), network
        self.class_names = self.forward.network.class_names
        self._of = lru_cache(maxsize=len(job.validation))(self._answer)

    def _answer(self, url: str, box: Box) -> npt.NDArray[np.uint8]:
        return probability(self.network, self.forward, Scan.open(url), box)

    def __call__(self, source: Source, box: Box) -> npt.NDArray[np.uint8]:
        """uint8[z, y, x] of the source's class."""
        return np.asarray(self._of(source.url, box)[self.class_names.index(source.class_name)])


def score(scans: Sequence[CurveCounts], criterion: Criterion) -> float:
    """What a checkpoint is chosen by; a curve without surface counts as 0.

    The best Dice or surface dice of all scans together at any threshold, or the mean surface dice over the thresholds
    0.025, 0.050 … 0.975 and over scans, each alike: what a checkpoint scores when nobody finds its best threshold.
    """
    if criterion == "mean_surface_dice":
        return float(np.mean([counts.curve().mean_surface_dice for counts in scans]))
    curve = sum(scans, CurveCounts()).curve()
    values = curve.dice if criterion == "best_dice" else curve.surface_dice
    return float(np.nan_to_num(values).max())


def _score(source: Source, probabilities: _Probabilities) -> tuple[CurveCounts, Slice]:
    scan, box = Scan.open(source.url), scored_box(source)
    soft = probabilities(source, box)
    truth, known = _truth(scan, source.label, box)
    counts = curve_counts(np.pad(truth, 1), np.pad(soft, 1), known=np.pad(known, 1, constant_values=True))
    k = soft.shape[0] // 2
    image = scan.read_image(box)[k]
    return counts, (image, truth[k], soft[k])


def _truth(scan: Scan, label: str, box: Box) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Where a label is vessel, and where that is counted: where it is known, inside the organ."""
    values = scan.read_label(label, box)
    return values >= 128, scan.read_known(label, box, values) & counted_mask(scan, (label,), box)


@lru_cache(maxsize=64)
def scored_box(source: Source) -> Box:
    """The box of a scan that is scored while training, found by its label alone: the same whenever it is asked for.

    Boxes of one size tile the largest box of the label. Of those that hold vessel inside the organ it is the median, by how
    many voxels of the label's level that says where vessels are; the middle of all where nothing is marked.
    """
    scan = Scan.open(source.url)
    extent = source.extent(scan.shape_zyx)
    whole = max((b.box.intersect(extent) for b in scan.label_boxes(source.label)), key=lambda b: b.size)
    size = middle(whole).shape
    starts = [
        np.linspace(a, b - n, -(-(b - a) // n)).astype(np.int64)
        for a, b, n in zip(whole.start, whole.stop, size, strict=True)
    ]
    found, factor = Labelled(source, scan, whole).vessels
    voxels, organ = np.maximum(found * factor, whole.start), scan.organ_share()
    if organ is not None:
        voxels = voxels[organ[tuple((voxels // scan.image.chunks).T)] > 0]
    tiling = [len(s) for s in starts]
    tiles = [np.searchsorted(s, v, side="right") - 1 for s, v in zip(starts, voxels.T, strict=True)]
    counts = np.bincount(np.ravel_multi_index(tiles, tiling))
    order = np.argsort(counts, kind="stable")[np.count_nonzero(counts == 0) :]
    for rank in sorted(range(len(order)), key=lambda k: abs(k - (len(order) - 1) // 2)):
        at = np.unravel_index(order[rank], tiling)
        start = index3([int(s[k]) for s, k in zip(starts, at, strict=True)])
        box = Box(start, index3([a + n for a, n in zip(start, size, strict=True)]))
        if np.logical_and(*_truth(scan, source.label, box)).any():
            return box
    return middle(whole)


def middle(whole: Box) -> Box:
    """A box of at most `VOXELS` in the middle of another: its longest axis is halved until it fits."""
    size = list(whole.shape)
    while np.prod(size) > VOXELS:
        longest = int(np.argmax(size))
        size[longest] = -(-size[longest] // 2)
    start = index3([a + (n - b) // 2 for a, n, b in zip(whole.start, whole.shape, size, strict=True)])
    return Box(start, index3([a + b for a, b in zip(start, size, strict=True)]))
