"""Finds the organ: what is neither corner, nor jar, nor the calm that surrounds it. In doubt it keeps more.

Agar may be as bright as tissue, but at the scale of a hundredth of the volume it holds nothing but noise. The logarithm
of the local variance of mere noise, taken over a window, has a spread that follows from the window alone, so calm is known
when it is seen, whatever the scan's scale, noise and contrast. Where there is none (the organ fills the field of view, or lies
in crushed agar, which has edges as tissue has) nothing can be told apart, and all of the field of view is kept.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from perfuse.geometry import Spacing
from perfuse_ingest.organ.coarse import Coarse, Mask, Values, radius_in

GRAIN = 1 / 110
"""Finest scale that is looked at, in extents: noise is smoothed by it."""
BAND = 2.5
"""Coarser scale, in grains: local variance is that of what lies between the two."""
WINDOW = 2.0
"""Sigma of the window of the local variance, in grains."""
CALM_SPREAD = 0.32
"""Calm has a log variance of spread 0.2 to 0.28 (white and slightly correlated noise, these scales); tissue 0.36 and more."""
CALM_REACH = 1.5
"""Up to how many spreads above its mode a log variance is calm."""
EDGE_CAP = 5.0
"""What one voxel may add to the variance, in variances of calm: an edge must not look rough from afar."""
MARGIN = 1.3
"""What is added around the organ, in grains."""
TRIM, PLAIN, CLOSE = 3.0, 5.0, 8.0
"""Surroundings are cut off the surface this deep, in grains, where intensities differ by so many spreads of calm; the ball that
closes what that opens has this radius, in grains."""
FLATTEST = 1 / 8
"""A volume thinner than this, against its width, shows no whole organ."""
SMALLEST, MOST_RIM, ROUNDEST = 0.03, 0.5, 0.33
"""An organ: share of the field of view at least, of its rim at most; radius of its largest ball, in those of its volume."""


@dataclass(frozen=True)
class Found:
    """Where the organ is, and how that was found."""

    mask: Mask
    how: str


def find_organ(voxels: npt.NDArray[Any], spacing: Spacing) -> Found:
    """The organ in a coarse volume of any dtype, [z, y, x], of 10⁴ to 10⁷ voxels; spacing in any unit. Never empty."""
    coarse = Coarse(voxels, spacing)
    what = "all of the field of view" if coarse.field.all() else "all but the empty corners"
    if coarse.sizes[0] < FLATTEST * coarse.sizes[1:].max():
        return Found(coarse.field, f"{what}: the volume is too thin to show a whole organ")
    calm = _calm(coarse)
    if calm is None:
        return Found(coarse.field, f"{what}: nothing around the organ is as calm as agar")
    body = _body(coarse, calm)
    if body is None:
        return Found(coarse.field, f"{what}: what is not calm is no solid body")
    return Found(_trimmed(coarse, body, calm), "by texture, against calm surroundings")


def _calm(coarse: Coarse) -> Mask | None:
    """Large regions with nothing but noise, and what is like them and next to them. None when there are none."""
    grain = GRAIN * coarse.extent
    base = coarse.blur(coarse.voxels, coarse.field, grain)
    detail = (base - coarse.blur(coarse.voxels, coarse.field, BAND * grain)) ** 2
    mode, spread = _calmest(_rough(coarse, detail, grain)[coarse.field])
    if spread > CALM_SPREAD:
        return None
    rough = _rough(coarse, np.minimum(detail, np.float32(EDGE_CAP * np.exp(mode))), grain)
    calm = _large(coarse.field & (rough < mode + CALM_REACH * spread))
    deep = coarse.field & (coarse.depth(~calm) > coarse.extent / 20)
    if not deep.any() or not calm.any():
        return None
    return _grown(coarse, calm, deep, base, rough)


def _rough(coarse: Coarse, detail: Values, grain: float) -> Values:
    """Logarithm of the local variance."""
    return np.asarray(np.log(coarse.blur(detail, coarse.field, WINDOW * grain) + np.float32(1e-20)))


def _calmest(rough: npt.NDArray[Any]) -> tuple[float, float]:
    """The lowest of the main modes of the log variance, and the spread of what lies below it."""
    low, high = np.percentile(rough, [0.5, 99.5])
    counts, edges = np.histogram(rough, 128, (low, max(high, low + 1e-6)))
    counts = ndimage.gaussian_filter(counts.astype(float), 2.0)
    middle = counts[1:-1]
    peaks = np.flatnonzero((middle >= counts[:-2]) & (middle > counts[2:]) & (middle >= counts.max() / 4)) + 1
    at = peaks[0] if len(peaks) else int(counts.argmax())
    mode = float(edges[at] + edges[at + 1]) / 2
    below = rough[rough <= mode].astype(np.float64) - mode
    return mode, float(np.sqrt((below**2).mean()))


def _large(mask: Mask) -> Mask:
    """The connected parts that are at least a twentieth of the largest."""
    parts, sizes = _parts(mask)
    return np.asarray((sizes >= max(sizes.max() / 20, 1))[parts])


def _parts(mask: Mask) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    parts, _ = ndimage.label(mask)
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    return parts, sizes


def _grown(coarse: Coarse, calm: Mask, deep: Mask, base: Values, rough: Values) -> Mask:
    """Calm and what joins it, near by: more like calm than like the deep, in intensity and roughness together.

    A window that holds an edge is rough on both of its sides; there the intensity says where calm ends.
    """
    grain = GRAIN * coarse.extent
    level = coarse.blur(base, calm, coarse.extent / 20)
    away = base - level
    spread = np.sqrt(coarse.blur(away**2, calm, coarse.extent / 10)) + np.float32(1e-9)
    of_deep = np.float32(np.sqrt((away[deep] ** 2).mean()) + 1e-9)
    likely = np.clip(_more_likely(away, spread, of_deep), -6, 6)
    centred = rough - rough[calm].mean()
    by_roughness = _more_likely(centred, rough[calm].std(), rough[deep].std(), rough[deep].mean() - rough[calm].mean())
    likely += np.where(centred < 0, 3, np.clip(by_roughness, -3, 3))
    near = coarse.field & (coarse.depth(~calm) <= 6 * grain)
    joined = calm | (near & (coarse.blur(likely, coarse.field, 1.2 * grain) > 0))
    parts, count = ndimage.label(coarse.opened(joined, grain) & coarse.field)
    held = np.bincount(parts[calm], minlength=count + 1)
    held[0] = 0
    return np.asarray((held >= max(held.max() / 20, 1))[parts])


def _more_likely(away: Values, calm: Any, deep: Any, deep_mean: Any = 0.0) -> Values:
    """Log likelihood of a normal distribution of mean 0 and spread `calm`, less that of one of `deep_mean` and `deep`."""
    here = np.clip(away / calm, -8, 8)
    there = (away - deep_mean) / deep
    return np.asarray(np.log(deep / calm) + (there**2 - here**2) / 2, np.float32)


def _body(coarse: Coarse, calm: Mask) -> Mask | None:
    """The largest solid body that is not calm, within the jar; None when it is too small, too thin, or all along the rim."""
    extent = coarse.extent
    plane = coarse.plane & _within_wall(coarse, calm)
    parts, sizes = _parts(coarse.opened(plane & coarse.field & ~calm, 3 * GRAIN * extent) & plane)
    if not sizes.any():
        return None
    body = np.asarray(ndimage.binary_fill_holes(coarse.closed(parts == sizes.argmax(), extent / 12))) & plane
    body = _smooth(coarse, body) & plane
    voxels = np.count_nonzero(body)
    ball = (3 * voxels / np.prod(coarse.per_unit) / (4 * np.pi)) ** (1 / 3)
    solid = coarse.depth(body).max() >= ROUNDEST * ball
    clear = body[coarse.rim(plane, extent / 40)].mean() <= MOST_RIM
    return body if solid and clear and voxels >= SMALLEST * np.count_nonzero(coarse.field) else None


def _smooth(coarse: Coarse, body: Mask) -> Mask:
    """Without bridges to bubbles and wall, and with a margin: tissue at the surface may be calm."""
    solid = coarse.opened(body, coarse.extent / 12)
    return np.asarray(coarse.depth(~solid) <= MARGIN * GRAIN * coarse.extent)


def _trimmed(coarse: Coarse, body: Mask, calm: Mask) -> Mask:
    """Without the surroundings at its surface, where they differ so much in intensity that half-way is plainly between.

    Vessels that open at the surface look like them, but no ball of radius `CLOSE` comes in there: they stay.
    """
    grain = GRAIN * coarse.extent
    base = coarse.blur(coarse.voxels, coarse.field, grain)
    around = coarse.blur(base, calm, coarse.extent / 20)
    spread = np.sqrt(coarse.blur((base - around) ** 2, calm, coarse.extent / 10))
    depth = coarse.depth(body)
    contrast = coarse.blur(base, depth > 2 * TRIM * grain, coarse.extent / 20) - around
    outer = (np.abs(contrast) > PLAIN * spread) & ((base - around) * np.sign(contrast) < np.abs(contrast) / 2)
    parts, _ = ndimage.label(~body | (outer & (depth <= TRIM * grain)))
    beyond = np.zeros(parts.max() + 1, np.bool_)
    beyond[np.unique(parts[~body])] = True
    beyond[0] = False
    return coarse.closed(~beyond[parts], CLOSE * grain) & body


def _within_wall(coarse: Coarse, calm: Mask) -> Mask:
    """What lies within the jar's wall, bool[y, x]: inside the first circle that is nowhere calm, out from the calmest."""
    rings = 64
    ring = np.minimum((radius_in(coarse.plane) * rings).astype(int), 2 * rings)
    voxels = np.bincount(ring.ravel(), coarse.field.sum(axis=0).ravel(), 2 * rings + 1)
    share = np.bincount(ring.ravel(), calm.sum(axis=0).ravel(), 2 * rings + 1) / np.maximum(voxels, 1)
    calmest = int(share[:rings].argmax())
    walls = np.flatnonzero((share <= 0.02) & (voxels > 0) & (np.arange(2 * rings + 1) > calmest))
    if share[calmest] < 0.3 or not len(walls):
        return np.ones_like(coarse.plane)
    return np.asarray(ring < walls[0])
