"""Where a prediction is good and where not: its scores slice by slice, chunk by chunk, and over the scan as seen from above."""

import csv
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from perfuse.counting import Part, Tally
from perfuse.geometry import AXES
from perfuse.metrics import ConfusionCounts, SurfaceCounts
from perfuse.metrics.areas import area
from perfuse.pictures import png
from perfuse.scoring import BETA, NAN

COUNTS = ("true_positive", "false_positive", "false_negative", "true_negative")
SCORES = ("dice", "iou", "precision", "recall")
SURFACES = ("surface_area", "shared_surface_area", "surface_dice")
"""Areas of both masks' surfaces, and of what of them is shared, in squared voxels."""
TOLD_BY_SPARSE = {"true_positive", "false_negative", "recall"}
"""What truth tells that does not mark all vessels."""
F_BETA = f"f{BETA:g}"
TOLD = (*COUNTS, *SCORES, F_BETA, *SURFACES)
Map = npt.NDArray[np.float64]


def told(voxels: ConfusionCounts, *, dense: bool) -> dict[str, float]:
    """Voxels by truth and prediction; NaN where sparse truth says none."""
    return {name: getattr(voxels, name) if dense or name in TOLD_BY_SPARSE else NAN for name in COUNTS}


def per_slice(counts: Tally, *, dense: bool) -> str:
    """A CSV with a row a slice along z: voxels counted and scores; empty where there is none, or where sparse truth says none.

    A slice's surface is that of the cubes between it and the slice before (the last slice has those at the far face, too): a
    share of the volume's surface, so that areas add up to those of the whole. It is not the outline of the slice.
    """
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["z", *TOLD])
    for z, (plane, layer) in enumerate(zip(counts.planes, counts.layers, strict=True)):
        rows.writerow([z, *_told(ConfusionCounts.of_planes(plane[None]), SurfaceCounts(*layer), dense=dense)])
    return text.getvalue()


@contextmanager
def per_chunk(path: Path | None, *, dense: bool) -> Iterator[Part | None]:
    """What makes, of the chunks that `tally` tells of, rows of a CSV file, which is there once the block ends; without a path None.

    A row says a chunk's first voxel, its voxels along each axis, and what stands in that of `per_slice`. A chunk's surface is that of
    the cubes between its voxels and those before; chunks at the far faces have those there, too.
    """
    if path is None:
        yield None
        return
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("w", newline="") as file:
            rows = csv.writer(file, lineterminator="\n")
            rows.writerow([*AXES, *(f"{axis}_voxels" for axis in AXES), *TOLD])
            yield lambda chunk, *counts: rows.writerow([*chunk.start, *chunk.shape, *_told(*counts, dense=dense)])
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _told(voxels: ConfusionCounts, surface: SurfaceCounts, *, dense: bool) -> list[Any]:
    """The values of the columns `TOLD`; empty where there is nothing to score, or where sparse truth says nothing."""
    values = [getattr(voxels, name) for name in (*COUNTS, *SCORES)]
    values += [voxels.fbeta(BETA), surface.area, surface.shared_area, surface.surface_dice]
    said = zip(TOLD, values, strict=True)
    return [value if (dense or name in TOLD_BY_SPARSE) and value == value else "" for name, value in said]


def maps(counts: Tally, *, dense: bool) -> dict[str, Map]:
    """Scores of the columns along z by name, float64[y, x]; NaN where neither mask has anything. Sparse truth tells recall alone."""
    hit, wrong, missed, _ = np.moveaxis(counts.columns, -1, 0)
    if not dense:
        return {"recall": _ratio(hit, hit + missed)}
    truth, predicted, truth_shared, predicted_shared = np.moveaxis(counts.surfaces, 2, 0)
    return {
        "Dice": _ratio(2 * hit, 2 * hit + wrong + missed),
        F_BETA: _ratio((1 + BETA**2) * hit, (1 + BETA**2) * hit + wrong + BETA**2 * missed),
        "surface dice": _ratio(area(truth_shared + predicted_shared), area(truth + predicted)),
    }


def _ratio(part: npt.NDArray[Any], whole: npt.NDArray[Any]) -> Map:
    scores: Map = np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)
    return scores


def heat_map(counts: Tally, title: str, *, dense: bool) -> bytes:
    """The `maps` side by side as a PNG, dark is bad; grey where there is nothing to score."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    found = maps(counts, dense=dense)
    colours = colormaps["magma"].with_extremes(bad="0.85")
    figure = Figure(figsize=(5.5 * len(found), 5), layout="compressed")
    figure.suptitle(title, fontsize=10)
    rows, columns = (n * width for n, width in zip(counts.columns.shape, counts.width, strict=False))
    for axes, (name, scores) in zip(figure.subplots(1, len(found), squeeze=False)[0], found.items(), strict=True):
        drawn = axes.imshow(scores, vmin=0, vmax=1, cmap=colours, extent=(0, columns, rows, 0), interpolation="nearest")
        axes.set(title=name, xlabel="x, voxels", ylabel="y, voxels")
        figure.colorbar(drawn, ax=axes, shrink=0.8)
    return png(figure)
