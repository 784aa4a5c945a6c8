"""What a network scores on held-out donors while it trains: a box in the middle of each one's largest label, all thresholds at once."""

import numpy as np
import torch

from perfuse.catalog import Scan
from perfuse.geometry import Box, index3
from perfuse.inference import probability
from perfuse.metrics import CurveCounts, curve_counts
from perfuse.pictures import one_slice
from perfuse.training.job import Source, TrainingJob

VOXELS = 2_400_000
"""Of each validation scan, scored while training; the final scores are of whole scans."""


def validate(job: TrainingJob, network: torch.nn.Module) -> tuple[dict[str, float], dict[str, bytes]]:
    """Dice and surface dice at the threshold that is best for all scans together, and a picture of each scan."""
    network.eval()
    total = CurveCounts()
    pictures = {}
    for source in job.validation:
        counts, picture = _score(job, network, source)
        total += counts
        pictures[source.specimen] = picture
    curve = total.curve()
    at = curve.best - 1
    scores = {
        "val_dice": float(curve.dice[at]),
        "val_surface_dice": float(np.nan_to_num(curve.surface_dice[at])),
        "val_threshold": curve.best / 255,
    }
    return scores, pictures


def _score(job: TrainingJob, network: torch.nn.Module, source: Source) -> tuple[CurveCounts, bytes]:
    scan = Scan.open(source.url)
    extent = source.extent(scan.shape_zyx)
    box = middle(max((b.box.intersect(extent) for b in scan.label_boxes(source.label)), key=lambda b: b.size))
    soft = probability(network, job.forward(), scan, box)
    values = scan.read_label(source.label, box)
    truth, known = values >= 128, scan.read_known(source.label, box, values)
    counts = curve_counts(np.pad(truth, 1), np.pad(soft, 1), known=np.pad(known, 1, constant_values=True))
    k = soft.shape[0] // 2
    image = scan.read_image(box)[k]
    return counts, one_slice(image, truth[k], soft[k])


def middle(whole: Box) -> Box:
    """A box of at most `VOXELS` in the middle of another: its longest axis is halved until it fits."""
    size = list(whole.shape)
    while np.prod(size) > VOXELS:
        longest = int(np.argmax(size))
        size[longest] = -(-size[longest] // 2)
    start = index3([a + (n - b) // 2 for a, n, b in zip(whole.start, whole.shape, size, strict=True)])
    return Box(start, index3([a + b for a, b in zip(start, size, strict=True)]))
