"""Pictures: slices with truth and prediction, as PNG."""

import io
from typing import Any

import numpy as np
import numpy.typing as npt

from perfuse.catalog import Scan
from perfuse.geometry import Box, along_axis, move_axis

HIT, FALSE, MISSED = (0.10, 0.75, 0.35), (0.95, 0.25, 0.20), (0.20, 0.50, 1.0)
"""Colours: found, wrongly found, missed."""
COLOURS = "green: found, blue: missed, red: wrongly found"

Plane = npt.NDArray[Any]


def _grey(plane: Plane) -> Plane:
    low, high = np.percentile(plane, [0.5, 99.5])
    return np.asarray(np.clip((plane.astype(float) - low) / max(high - low, 1e-6), 0, 1))


def _errors(image: Plane, truth: Plane, found: Plane) -> Plane:
    colours = np.repeat(_grey(image)[..., None], 3, axis=2) * 0.8
    for where, colour in ((truth & found, HIT), (found & ~truth, FALSE), (truth & ~found, MISSED)):
        colours[where] = colour
    return colours


def png(figure: Any, texts: dict[str, str] | None = None) -> bytes:
    """A matplotlib figure as PNG, with texts by keyword: the same bytes for the same figure."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None, **(texts or {})})
    return buffer.getvalue()


def _show(axes: Any, picture: Plane, title: str, pixel_um: tuple[float, float] = (1.0, 1.0)) -> None:
    axes.imshow(picture, cmap="gray", vmin=0, vmax=1, aspect=pixel_um[0] / pixel_um[1], interpolation="nearest")
    axes.set_title(title, fontsize=9)
    axes.set_axis_off()


def one_slice(image: Plane, truth: Plane, soft: Plane, threshold: int) -> bytes:
    """A slice [y, x], its truth (bool), its probability (uint8), and what is found, missed and wrongly found at a threshold.

    threshold: integer of 255.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.4), layout="constrained")
    figure.supxlabel(COLOURS, fontsize=8, x=1, ha="right")
    pictures = (_grey(image), truth, soft / 255, _errors(image, truth, soft >= threshold))
    titles = ("slice", "truth", "probability", f"errors at {threshold / 255:.2f}")
    for axes, picture, title in zip(figure.subplots(1, 4), pictures, titles, strict=True):
        _show(axes, picture, title)
    return png(figure)


def three_axes(scan: Scan, prediction: str, truth: str, threshold: int) -> bytes:
    """Three rows, one an axis: the plane with most truth, the truth, the probability, and what was found or missed.

    threshold: integer of 255. Reads one plane an axis and a coarse level of the truth.
    """
    from matplotlib.figure import Figure

    sizes = np.array([move_axis(scan.shape_zyx, axis)[1:] * _pixel(scan, axis) for axis in range(3)])
    shares = sizes[:, 0] / sizes[:, 1]
    figure = Figure(figsize=(13, 1 + 3.3 * shares.sum()), layout="constrained")
    figure.suptitle(
        f"{scan.info.id}: {prediction} against {truth} at threshold {threshold / 255:.3f}   ({COLOURS})",
        fontsize=11,
    )
    for axis, row in enumerate(figure.subplots(3, 4, height_ratios=shares)):
        plane = _busiest(scan, truth, axis)
        depth, height, width = move_axis(scan.shape_zyx, axis)
        box = along_axis(axis, (plane, plane + 1), (0, height), (0, width))
        image, marked, soft = (_plane(a, box, axis) for a in (scan.image, scan.label(truth), scan.label(prediction)))
        pixel = _pixel(scan, axis)
        known, found = marked >= 128, soft >= threshold
        titles = (f"{'zyx'[axis]} = {plane} of {depth}", "truth", "probability", "found and missed")
        for axes, picture, title in zip(
            row, (_grey(image), known, soft / 255, _errors(image, known, found)), titles, strict=True
        ):
            _show(axes, picture, title, (pixel[0], pixel[1]))
        _scale_bar(row[0], width, pixel[1])
    return png(figure)


def _pixel(scan: Scan, axis: int) -> npt.NDArray[np.float64]:
    """Rows and columns of a plane's pixels, in µm."""
    return np.delete(np.asarray(scan.info.voxel_size_um, np.float64), axis)


def _plane(array: Any, box: Box, axis: int) -> Plane:
    return np.asarray(array[box.slices]).squeeze(axis)


def _busiest(scan: Scan, label: str, axis: int) -> int:
    group = scan.group[f"labels/{label}"]
    last = len(group.attrs["ome"]["multiscales"][0]["datasets"]) - 1  # type: ignore[index,call-overload,arg-type]
    coarse = np.asarray(group[str(last)][:]) >= 128  # type: ignore[index]
    others = tuple(a for a in range(3) if a != axis)
    at = int(np.argmax(coarse.sum(axis=others)))
    return int(min(round((at + 0.5) * scan.shape_zyx[axis] / coarse.shape[axis]), scan.shape_zyx[axis] - 1))


def _scale_bar(axes: Any, width: int, pixel_um: float) -> None:
    length, label = round_length(width * pixel_um / 4)
    axes.plot([5, 5 + length / pixel_um], [-4, -4], color="black", linewidth=3, clip_on=False)
    axes.text(5, -8, label, fontsize=8, va="bottom", clip_on=False)


def round_length(most_um: float) -> tuple[float, str]:
    """The longest of 1, 2 and 5 times a power of ten that is not longer, in µm, and how it is written."""
    step = 10 ** np.floor(np.log10(most_um))
    length = float(step * max(m for m in (1, 2, 5) if m * step <= most_um))
    return length, f"{length / 1000:g} mm" if length >= 1000 else f"{length:g} µm"
