"""A quick look at a scan: three planes through the middle of the organ with the labels over them, and the histogram.

It lies in the scan as `perfuse/quicklook.png`; readers of Zarr and OME-Zarr do not look there. It is made from coarse levels and
single planes, so it costs the same for any scan, and the same scan gives the same bytes.
"""

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from perfuse import __version__, intensity, measured, storage
from perfuse.catalog import ORGAN, Scan
from perfuse.geometry import Index3, along_axis, index3, move_axis
from perfuse.pictures import Plane, png, round_length

MOST_PIXELS = 900
"""Along rows and columns of a plane: of the pyramid, the finest level that has no more is read."""
INCHES, THINNEST = 6.4, 0.6
"""Size of the longer side of the three planes together; below THINNEST a thin volume is stretched, and says so."""
SIDE = 4.6
"""Inches for histogram and words."""
ORGAN_COLOUR = "#2bd9e8"
COLOURS = ("#ff4433", "#ffb000", "#e35bff", "#5cff6e", "#5b8cff", "#ffffff")
"""Of the other labels, by turns."""
SHOWS = "shows"
"""Keyword of the PNG text with the digest of what was drawn."""


@dataclass(frozen=True)
class Look:
    """One plane of the scan, along an axis."""

    axis: int
    index: int
    """In voxels of level 0."""
    image: Plane
    labels: dict[str, Plane]
    """bool, by name."""


def path(scan_url: str) -> str:
    """Where the picture of a scan lies."""
    return storage.join(scan_url, "perfuse", "quicklook.png")


def write(scan: Scan) -> str:
    """Make the picture, unless that in the scan shows what the scan is now; returns its URL."""
    url = path(scan.url)
    if not storage.exists(url) or _shown_by(storage.read_bytes(url)) != _shown(scan):
        storage.write_bytes(url, render(scan))
    return url


def _shown(scan: Scan) -> str:
    """Digest of all that a picture of the scan depends on."""
    labels = {name: info.model_dump(mode="json") for name, info in scan.labels().items()}
    current = measured.is_current(scan.group, scan.organ_identity)
    return storage.digest_json([__version__, scan.info.model_dump(mode="json"), labels, current])


def _shown_by(picture: bytes) -> str | None:
    try:
        with Image.open(io.BytesIO(picture), formats=["PNG"]) as opened:
            return opened.info.get(SHOWS)
    except (OSError, SyntaxError):
        return None


def render(scan: Scan) -> bytes:
    """The picture, as PNG."""
    from matplotlib import style
    from matplotlib.figure import Figure

    looks = [_look(scan, axis, at) for axis, at in enumerate(_middle(scan))]
    with style.context("default", after_reset=True):  # whatever the user's own settings are
        sizes, stretch = _inches(scan)
        width, height = sizes[2] + sizes[0], sizes[1] + sizes[0]
        tall = max(height + 1.0, 6.2)
        figure = Figure(figsize=(width + SIDE + 1.0, tall))
        figure.suptitle(
            scan.info.id, x=0.35 / (width + SIDE + 1.0), y=1 - 0.15 / tall, ha="left", va="top", fontsize=13
        )
        _draw_planes(figure, scan, looks, sizes, stretch)
        _draw_histogram(figure, scan, width + 1.15, tall)
        _write_words(figure, scan, width + 1.15, looks)
        return png(figure, {SHOWS: _shown(scan)})


def _middle(scan: Scan) -> Index3:
    """The voxel in the middle of the organ, from a coarse level; of the scan, where no organ is marked."""
    if scan.organ is None:
        return index3([n // 2 for n in scan.shape_zyx])
    coarse = np.asarray(scan.label_level(ORGAN, scan.levels - 1)[:]) >= 128
    places = np.argwhere(coarse).mean(axis=0) + 0.5
    return index3([int(p * n / c) for p, n, c in zip(places, scan.shape_zyx, coarse.shape, strict=True)])


def _look(scan: Scan, axis: int, at: int) -> Look:
    level = next(
        (k for k in range(scan.levels) if max(move_axis(index3(scan.level(k).shape), axis)[1:]) <= MOST_PIXELS),
        scan.levels - 1,
    )
    labels = {name: _plane(scan, scan.label_level(name, level), axis, at) >= 128 for name in scan.labels()}
    return Look(axis, at, _plane(scan, scan.level(level), axis, at), labels)


def _plane(scan: Scan, array: Any, axis: int, at: int) -> Plane:
    depth, rows, columns = move_axis(index3(array.shape), axis)
    plane = min(at * depth // scan.shape_zyx[axis], depth - 1)
    box = along_axis(axis, (plane, plane + 1), (0, rows), (0, columns))
    return np.asarray(array[box.slices]).squeeze(axis)


def _inches(scan: Scan) -> tuple[list[float], list[float]]:
    """Sizes of the scan on paper along z, y, x, and how much each is stretched."""
    extent = np.multiply(scan.shape_zyx, scan.info.voxel_size_um)
    scale = INCHES / max(extent[0] + extent[1], extent[0] + extent[2])
    true = extent * scale
    shown = np.maximum(true, THINNEST)
    return shown.tolist(), (shown / true).tolist()


def _draw_planes(figure: Any, scan: Scan, looks: list[Look], sizes: list[float], stretch: list[float]) -> None:
    """The plane along z in the middle, y below it, x on its right: what is one axis for two of them is as long in both."""
    window = _window(looks)
    tall = figure.get_figheight()
    depth, height, width = sizes
    places = {
        0: (0.35, width, height, 0.55),
        1: (0.35, width, depth, 0.65 + height),
        2: (0.45 + width, depth, height, 0.55),
    }
    for look in looks:
        left, wide, high, top = places[look.axis]
        axes = figure.add_axes(_frame(figure, left, tall - top - high, wide, high))
        turned = look.axis == 2
        _draw(axes, look, window, turned=turned)
        words = f"{'zyx'[look.axis]} = {look.index}"
        axes.text(0.01, 0.99, words, transform=axes.transAxes, color="white", fontsize=8, va="top", bbox=_BACKDROP)
    _scale_bar(figure.axes[0], scan)
    notes = [f"{a} is stretched {s:.3g} times" for a, s in zip("zyx", stretch, strict=True) if s > 1.01]
    if notes:
        figure.text(0.35 / figure.get_figwidth(), 0.1 / tall, ", ".join(notes), fontsize=8, style="italic")


_BACKDROP = {"facecolor": "black", "alpha": 0.5, "edgecolor": "none", "pad": 1.5}


def _frame(figure: Any, left: float, bottom: float, width: float, height: float) -> tuple[float, float, float, float]:
    wide, tall = figure.get_figwidth(), figure.get_figheight()
    return left / wide, bottom / tall, width / wide, height / tall


def _window(looks: list[Look]) -> tuple[float, float]:
    """Between which intensities the grey levels go: those of the organ in these planes, but for the outermost."""
    inside = np.concatenate([k.image[k.labels.get(ORGAN, np.ones_like(k.image, np.bool_))] for k in looks])
    values = inside if inside.size else np.concatenate([k.image.ravel() for k in looks])
    low, high = np.percentile(values, [0.5, 99.5])
    return float(low), float(max(high, low + 1e-6))


def _draw(axes: Any, look: Look, window: tuple[float, float], *, turned: bool) -> None:
    from matplotlib.colors import to_rgba

    def seen(plane: Plane) -> Plane:
        return plane.T if turned else plane

    rows, columns = seen(look.image).shape
    place = (-0.5, columns - 0.5, rows - 0.5, -0.5)
    low, high = window
    axes.imshow(
        seen(look.image), cmap="gray", vmin=low, vmax=high, aspect="auto", interpolation="nearest", extent=place
    )
    for number, marked in enumerate(m for name, m in look.labels.items() if name != ORGAN):
        tint = np.zeros((rows, columns, 4))
        tint[seen(marked)] = to_rgba(_colour(number), 0.55)
        axes.imshow(tint, aspect="auto", interpolation="nearest", extent=place)
    organ = look.labels.get(ORGAN)
    if organ is not None and organ.any() and not organ.all() and min(rows, columns) > 1:
        axes.contour(seen(organ), [0.5], colors=[ORGAN_COLOUR], linewidths=1.2)
    axes.set_axis_off()


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def _scale_bar(axes: Any, scan: Scan) -> None:
    """On the plane along z, whose columns are x."""
    width = scan.shape_zyx[2] * scan.info.voxel_size_um[2]
    length, label = round_length(width / 4)
    right = 0.02 + length / width
    axes.plot([0.02, right], [0.03, 0.03], color="white", linewidth=3, solid_capstyle="butt", transform=axes.transAxes)
    axes.text(0.02, 0.045, label, color="white", fontsize=8, transform=axes.transAxes, va="bottom", bbox=_BACKDROP)


def _draw_histogram(figure: Any, scan: Scan, left: float, tall: float) -> None:
    axes = figure.add_axes(_frame(figure, left, tall - 3.0, SIDE - 0.4, 2.3))
    dtype = np.dtype(scan.info.dtype)
    whole = measured.everywhere(scan.group)
    current = measured.is_current(scan.group, scan.organ_identity)
    counts = scan.histogram() if current else whole
    edges = _edges(counts, dtype)
    heights = _heights(whole, dtype, edges)
    axes.stairs(heights, edges, fill=True, color="0.75", label="all voxels")
    if current:
        axes.stairs(_heights(counts, dtype, edges), edges, color="#0a7f8c", linewidth=1.3, label="organ")
    for percent, side, row in ((0.5, "right", 1.015), (50.0, "center", 1.075), (99.5, "left", 1.015)):
        at = intensity.percentile(counts, dtype, percent)
        axes.axvline(at, color="0.2", linewidth=0.8, linestyle=":")
        words = f"p{percent:g} {at:g}"
        axes.text(at, row, words, transform=axes.get_xaxis_transform(), fontsize=7, ha=side)
    axes.set_yscale("log")
    axes.set_ylim(bottom=0.7)
    axes.set_xlim(edges[0], edges[-1])
    axes.tick_params(labelsize=7)
    axes.set_xlabel("intensity", fontsize=8)
    axes.set_ylabel("voxels", fontsize=8)
    axes.legend(fontsize=7, loc="upper right", framealpha=0.8)
    outside = 1 - heights.sum() / whole.sum()
    if outside >= 0.0005:
        axes.text(0.01, 0.97, f"{outside:.1%} lie beyond", transform=axes.transAxes, fontsize=7, va="top")


def _edges(counts: measured.Counts, dtype: np.dtype[Any]) -> npt.NDArray[np.float64]:
    """At most 200 bins around nearly all that was counted; of integers, each as many whole numbers wide."""
    low, high = (intensity.percentile(counts, dtype, p) for p in (0.01, 99.99))
    low, high = low - 0.3 * (high - low), high + 0.3 * (high - low)
    if dtype.kind == "f":
        return np.linspace(low, max(high, low + 1e-6), 201)
    low, high = max(np.floor(low), 0), min(np.ceil(high), len(counts) - 1)
    step = max(-(-(high - low + 1) // 200), 1)
    return np.arange(low, high + 1 + step, step) - 0.5


def _heights(counts: measured.Counts, dtype: np.dtype[Any], edges: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    used = np.flatnonzero(counts)
    return np.histogram(intensity.values_of_bins(dtype)[used], edges, weights=counts[used].astype(float))[0]


def _write_words(figure: Any, scan: Scan, left: float, looks: list[Look]) -> None:
    from matplotlib.patches import Patch

    info, tall = scan.info, figure.get_figheight()
    lines = [
        f"{info.organ} {info.specimen}, of donor {info.donor}",
        f"{' × '.join(map(str, info.shape_zyx))} voxels (z, y, x), {info.dtype}",
        f"voxel {' × '.join(f'{v:g}' for v in info.voxel_size_um)} µm",
        "size "
        + " × ".join(f"{n * v / 1000:.3g}" for n, v in zip(info.shape_zyx, info.voxel_size_um, strict=True))
        + " mm",
        "grey from {:g} to {:g}".format(*_window(looks)),
    ]
    figure.text(
        left / figure.get_figwidth(), (tall - 3.6) / tall, "\n".join(lines), fontsize=8.5, va="top", linespacing=1.4
    )
    labels = scan.labels()
    names = [name for name in labels if name != ORGAN]
    handles = [
        Patch(color=_colour(k), label=f"{n}: {labels[n].kind}, {labels[n].foreground:.2%}") for k, n in enumerate(names)
    ]
    if ORGAN in labels:
        share = f"organ: {labels[ORGAN].foreground:.1%} of the scan"
        handles.insert(0, Patch(facecolor="none", edgecolor=ORGAN_COLOUR, linewidth=1.5, label=share))
    if handles:
        corner = (left / figure.get_figwidth(), (tall - 4.6) / tall)
        figure.legend(
            handles=handles[:8], loc="upper left", bbox_to_anchor=corner, fontsize=8.5, frameon=False, borderpad=0
        )
