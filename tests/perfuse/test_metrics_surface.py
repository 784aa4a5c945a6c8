"""Golden vectors of the surface dice, the table of areas, and a slow oracle that follows the definition word by word."""

from itertools import permutations, product
from math import sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from perfuse.errors import ShapeMismatchError
from perfuse.metrics import SurfaceCounts, surface_counts
from perfuse.metrics.areas import CLASSES, CODE_CLASS, area

CODE_AREA = area(np.eye(CLASSES, dtype=np.int64))[CODE_CLASS]
WEIGHTS = 2 ** np.arange(7, -1, -1).reshape(2, 2, 2)


def surface(truth, predicted, known=None) -> SurfaceCounts:
    padded = [np.pad(np.asarray(a, bool), 1) for a in (truth, predicted)]
    return surface_counts(*padded, None if known is None else np.pad(known, 1, constant_values=True))


def score(truth, predicted) -> float:
    return surface(truth, predicted).surface_dice


def cube(edge: int, size: int = 14) -> np.ndarray:
    mask = np.zeros((size,) * 3, bool)
    mask[2 : 2 + edge, 2 : 2 + edge, 2 : 2 + edge] = True
    return mask


def test_half_spaces():
    truth, predicted = np.zeros((100,) * 3, bool), np.zeros((100,) * 3, bool)
    truth[:50], predicted[:51] = True, True
    assert score(truth, predicted) == pytest.approx(0.7508771, abs=1e-7)


def test_single_voxels():
    one, both = cube(1), cube(1)
    both[2, 2, 3] = True
    assert surface(one, one).truth_area == pytest.approx(1.7320508, abs=1e-7)
    assert score(one, both) == pytest.approx(0.8623724, abs=1e-7)
    assert score(one, np.roll(one, 1, 2)) == pytest.approx(0.5)


def test_cubes():
    eight = cube(8)
    assert surface(eight, eight).truth_area == pytest.approx(355.12903, abs=1e-5)
    assert score(eight, np.roll(eight, 1, 2)) == pytest.approx(0.6658538, abs=1e-7)
    shorn = eight.copy()
    shorn[2] = False
    assert score(eight, shorn) == pytest.approx(0.8253461, abs=1e-7)


def test_real_placenta(test_data):
    import h5py
    from scipy import ndimage

    with h5py.File(test_data / "placenta_labels" / "vessels_256cube_LABELS.h5") as opened:
        truth = opened[next(iter(opened))][:128, :128, :128] > 0
    assert score(truth, ndimage.binary_erosion(truth)) == pytest.approx(0.325997, abs=1e-6)
    assert score(truth, ndimage.binary_dilation(truth)) == pytest.approx(0.578716, abs=1e-6)
    assert score(truth, np.roll(truth, 1, 2)) == pytest.approx(0.775023, abs=1e-6)


@pytest.mark.parametrize(
    ("set_corners", "expected"),
    [
        ([], 0),
        ([0], sqrt(3) / 8),
        ([0, 1], sqrt(2) / 2),
        ([0, 3], sqrt(3) / 4),
        ([0, 7], sqrt(3) / 4),
        ([0, 1, 2], 1 / 2 + 3 * sqrt(3) / 8),
        ([0, 3, 5], 3 * sqrt(3) / 8),
        ([0, 1, 7], sqrt(2) / 2 + sqrt(3) / 8),
        ([0, 1, 2, 3], 1),
        ([0, 1, 2, 4], 3 * sqrt(3) / 4),
        ([0, 1, 3, 7], sqrt(2) / 2 + sqrt(3) / 2),
        ([0, 1, 2, 7], 1 / 2 + sqrt(3) / 2),
        ([0, 1, 6, 7], sqrt(2)),
        ([0, 3, 5, 6], sqrt(3) / 2),
    ],
)
def test_area_of_each_class(set_corners: list[int], expected: float):
    bits = np.zeros(8, int)
    bits[set_corners] = 1
    assert CODE_AREA[bits @ WEIGHTS.ravel()] == pytest.approx(expected, abs=1e-12)


def test_area_is_invariant():
    for code in range(256):
        bits = (code & WEIGHTS) > 0
        same = {CODE_AREA[255 - code], CODE_AREA[int(f"{code:08b}"[::-1], 2)]}
        for order, flips in product(permutations(range(3)), product((1, -1), repeat=3)):
            turned = bits.transpose(order)[:: flips[0], :: flips[1], :: flips[2]]
            same.add(CODE_AREA[int((turned * WEIGHTS).sum())])
        assert same == {CODE_AREA[code]}


def test_every_class_occurs():
    assert set(CODE_CLASS.tolist()) == set(range(14))
    assert [c for c in range(256) if CODE_CLASS[c] == 0] == [0, 255]


@st.composite
def mask_pairs(draw):
    shape = draw(hnp.array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=5))
    return tuple(draw(hnp.arrays(bool, shape)) for _ in range(3))


@settings(deadline=None)
@given(mask_pairs())
def test_equals_the_definition(case):
    truth, predicted, known = case
    shared = whole = 0.0
    padded = [np.pad(a, 1, constant_values=fill) for a, fill in ((truth, False), (predicted, False), (known, True))]
    for start in np.ndindex(*(n + 1 for n in truth.shape)):
        a, b, valid = (p[tuple(slice(i, i + 2) for i in start)] for p in padded)
        if valid.all():
            areas = [CODE_AREA[int((m * WEIGHTS).sum())] for m in (a, b)]
            whole += sum(areas)
            shared += sum(areas) if min(areas) > 0 else 0.0
    expected = shared / whole if whole else np.nan
    assert surface(truth, predicted, known).surface_dice == pytest.approx(expected, nan_ok=True)


@settings(deadline=None)
@given(mask_pairs())
def test_symmetry(case):
    truth, predicted, known = case
    one, other = surface(truth, predicted, known), surface(predicted, truth, known)
    np.testing.assert_equal(one.surface_dice, other.surface_dice)
    assert surface(truth, truth).surface_dice == 1.0 or not truth.any()


def test_nothing_to_score_is_nan_and_says_so():
    empty = np.zeros((14,) * 3, bool)
    assert np.isnan(score(empty, empty))
    assert surface(empty, empty).undefined
    assert not surface(empty, cube(1)).undefined
    assert score(empty, cube(1)) == 0.0


def test_unknown_is_not_background():
    truth, predicted = cube(4), cube(4)
    predicted[9:12, 9:12, 9:12] = True  # not in the truth, where nobody looked
    known = np.ones(truth.shape, bool)
    assert surface(truth, predicted, known).surface_dice < 1.0
    known[8:13, 8:13, 8:13] = False
    assert surface(truth, predicted, known).surface_dice == 1.0


def test_bad_arrays_are_refused():
    with pytest.raises(ShapeMismatchError, match=r"\(2, 2, 2\) and \(2, 2, 3\)"):
        surface_counts(np.zeros((2, 2, 2), bool), np.zeros((2, 2, 3), bool))
    with pytest.raises(TypeError, match="safe"):
        surface_counts(np.full((2, 2, 2), 255, np.uint8), np.zeros((2, 2, 2), bool))
