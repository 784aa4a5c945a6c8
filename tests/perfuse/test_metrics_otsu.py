"""Otsu's thresholds against scikit-image and against trying every pair of thresholds."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from skimage.filters import threshold_multiotsu, threshold_otsu

from perfuse.errors import ScanError
from perfuse.metrics import otsu_threshold, otsu_upper_of_three

histograms = hnp.arrays(np.int64, st.integers(3, 12), elements=st.integers(0, 50))


def three_humps(dtype, scale: int) -> np.ndarray:
    rng = np.random.default_rng(5)
    image = np.concatenate([rng.normal(m * scale, 8 * scale, 4000) for m in (40, 110, 190)])
    return image.clip(0, np.iinfo(dtype).max).astype(dtype)


def spread(histogram: np.ndarray, tops: tuple[int, ...]) -> float:
    """Between-class variance, up to a constant, of classes that end at the last intensities `tops`."""
    total = 0.0
    for part in np.split(np.arange(len(histogram)), [t + 1 for t in tops]):
        weight = histogram[part].sum()
        total += (histogram[part] @ part) ** 2 / weight if weight else 0.0
    return total


def test_two_classes_agree_with_scikit_image():
    for image in (three_humps(np.uint8, 1), three_humps(np.uint16, 256)):
        histogram = np.bincount(image, minlength=np.iinfo(image.dtype).max + 1)
        expected = threshold_otsu(hist=(histogram, np.arange(len(histogram))))
        assert otsu_threshold(histogram) == expected


def test_three_classes_agree_with_scikit_image():
    image = three_humps(np.uint8, 1)
    expected = threshold_multiotsu(image, classes=3)[1]
    assert otsu_upper_of_three(np.bincount(image, minlength=256)) == expected


def test_three_classes_of_uint16_are_near_those_of_uint8():
    histogram = np.bincount(three_humps(np.uint16, 256), minlength=65536)
    narrow = otsu_upper_of_three(np.bincount(three_humps(np.uint8, 1), minlength=256))
    assert abs(otsu_upper_of_three(histogram) / 256 - narrow) <= 2


@given(histograms)
def test_no_threshold_separates_better(histogram):
    assume(np.count_nonzero(histogram) >= 3)
    best_of_two = max(spread(histogram, (t,)) for t in range(len(histogram)))
    assert spread(histogram, (otsu_threshold(histogram),)) == pytest.approx(best_of_two)
    pairs = list(combinations(range(len(histogram)), 2))
    best_of_three = max(spread(histogram, pair) for pair in pairs)
    upper = otsu_upper_of_three(histogram)
    assert max(spread(histogram, p) for p in pairs if p[1] == upper) == pytest.approx(best_of_three)


@pytest.mark.parametrize("method", [otsu_threshold, otsu_upper_of_three])
def test_one_intensity_has_no_threshold(method):
    with pytest.raises(ScanError, match="two different"):
        method(np.array([0, 7, 0]))
