"""One normalisation for training, inference and serving: between two percentiles of the organ, or by a divisor."""

from typing import Any

import numpy as np
import numpy.typing as npt

from perfuse.catalog import Scan
from perfuse.contract import Normalisation


def bounds(scan: Scan, normalisation: Normalisation) -> tuple[float, float]:
    """The intensities of a scan that become 0 and 1: from its exact histogram, or 0 and the divisor."""
    if normalisation.divisor is not None:
        return 0.0, normalisation.divisor
    return scan.percentile(normalisation.lower_percent), scan.percentile(normalisation.upper_percent)


def bounds_of(values: npt.NDArray[Any], normalisation: Normalisation) -> tuple[float, float]:
    """The same for voxels that are no scan, as a served slice: their own percentiles, as `Scan.percentile` takes them."""
    if normalisation.divisor is not None:
        return 0.0, normalisation.divisor
    low, high = np.percentile(
        values, [normalisation.lower_percent, normalisation.upper_percent], method="inverted_cdf"
    ).astype(float)
    return float(low), float(high)


def normalise(
    voxels: npt.NDArray[Any], window: tuple[float, float], normalisation: Normalisation
) -> npt.NDArray[np.float32]:
    """Intensities to float32 around 0 … 1; at most `clip` beyond. A constant volume becomes 0."""
    low, high = window
    scaled: npt.NDArray[np.float32] = np.subtract(voxels, np.float32(low), dtype=np.float32)
    scaled *= np.float32(1.0 / max(high - low, 1e-6))
    if normalisation.knee is not None:
        knee = np.float32(normalisation.knee)
        scaled = np.arcsinh(scaled / knee) / np.arcsinh(1 / knee)
    return np.clip(scaled, -normalisation.clip, 1 + normalisation.clip, out=scaled)
