"""Golden vectors of the surface dice, and laws: a whole is the sum of its blocks; a curve is its single thresholds."""

from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from perfuse.errors import ShapeMismatchError
from perfuse.geometry import Box, blocks
from perfuse.metrics import (
    ConfusionCounts,
    CurveCounts,
    SurfaceCounts,
    confusion_counts,
    curve_counts,
    otsu_threshold,
    otsu_upper_of_three,
    read_cubes,
    surface_counts,
)
from perfuse.metrics.areas import CLASS_AREA, CODE_CLASS

DATA = Path(__file__).parents[3] / "shared" / "data"
shapes = hnp.array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=7)


def surface(truth, predicted, known=None) -> SurfaceCounts:
    padded = [np.pad(np.asarray(a, bool), 1) for a in (truth, predicted)]
    return surface_counts(*padded, None if known is None else np.pad(known, 1, constant_values=True))


def score(truth, predicted) -> float:
    return surface(truth, predicted).surface_dice


def cube(edge: int, at: int = 2, size: int = 14) -> np.ndarray:
    mask = np.zeros((size,) * 3, bool)
    mask[at : at + edge, at : at + edge, at : at + edge] = True
    return mask


def test_half_spaces():
    truth, predicted = np.zeros((100,) * 3, bool), np.zeros((100,) * 3, bool)
    truth[:50], predicted[:51] = True, True
    assert score(truth, predicted) == pytest.approx(0.7508771, abs=1e-7)


def test_single_voxels():
    one, both, moved = cube(1), cube(1), cube(1, at=3)
    both[2, 2, 3] = True
    assert surface(one, one).truth_area == pytest.approx(1.7320508, abs=1e-7)
    assert score(one, both) == pytest.approx(0.8623724, abs=1e-7)
    assert score(one, np.roll(one, 1, 2)) == pytest.approx(0.5)
    assert moved.sum() == 1


def test_cubes():
    eight = cube(8)
    assert surface(eight, eight).truth_area == pytest.approx(355.12903, abs=1e-5)
    assert score(eight, np.roll(eight, 1, 2)) == pytest.approx(0.6658538, abs=1e-7)
    shorn = eight.copy()
    shorn[2] = False
    assert score(eight, shorn) == pytest.approx(0.8253461, abs=1e-7)


def test_real_placenta():
    file = DATA / "placenta_labels" / "vessels_256cube_LABELS.h5"
    if not file.is_file():
        pytest.skip(f"real placenta labels are not at {file}")
    import h5py
    from scipy import ndimage

    with h5py.File(file) as opened:
        truth = opened[next(iter(opened))][:128, :128, :128] > 0
    assert score(truth, ndimage.binary_erosion(truth)) == pytest.approx(0.325997, abs=1e-6)
    assert score(truth, ndimage.binary_dilation(truth)) == pytest.approx(0.578716, abs=1e-6)
    assert score(truth, np.roll(truth, 1, 2)) == pytest.approx(0.775023, abs=1e-6)


def test_nothing_to_score_is_nan():
    empty = np.zeros((4, 4, 4), bool)
    assert np.isnan(score(empty, empty))
    assert np.isnan(ConfusionCounts().dice)
    assert score(empty, cube(1, at=1, size=4)) == 0.0


@given(st.integers(0, 255))
def test_area_is_invariant(code: int):
    area = CLASS_AREA[CODE_CLASS]
    bits = np.array([(code >> (7 - i)) & 1 for i in range(8)]).reshape(2, 2, 2)
    weights = 2 ** np.arange(7, -1, -1)
    same = {area[255 - code], area[int("".join(map(str, bits.ravel()[::-1])), 2)]}
    for order, flips in product(permutations(range(3)), product((1, -1), repeat=3)):
        turned = bits.transpose(order)[:: flips[0], :: flips[1], :: flips[2]]
        same.add(area[int(turned.ravel() @ weights)])
    assert same == {area[code]}


def test_areas_sum_as_printed():
    one_corner, edge, face = CLASS_AREA[CODE_CLASS[[1, 3, 15]]]
    assert (one_corner, edge, face) == pytest.approx((0.2165, 0.7071, 1.0), abs=1e-4)
    assert len(set(CODE_CLASS.tolist())) == 14


@st.composite
def volumes_and_cuts(draw):
    shape = draw(shapes)
    truth = draw(hnp.arrays(bool, shape))
    soft = draw(hnp.arrays(np.uint8, shape, elements=st.sampled_from([0, 1, 100, 128, 129, 254, 255])))
    known = draw(hnp.arrays(bool, shape))
    return truth, soft, known, draw(st.tuples(*[st.integers(1, 4)] * 3))


def cut(array, box: Box, outside=0):
    return read_cubes(lambda inside: array[inside.slices], box, array.shape, outside)


@settings(deadline=None)
@given(volumes_and_cuts())
def test_chunked_equals_whole(case):
    truth, soft, known, block = case
    predicted = soft >= 128
    total_surface, total_voxels, total_curve = SurfaceCounts(), ConfusionCounts(), CurveCounts()
    for box in blocks(truth.shape, block):
        valid = cut(known, box, outside=1).astype(bool)
        total_surface += surface_counts(cut(truth, box), cut(predicted, box), valid)
        total_voxels += confusion_counts(truth[box.slices], predicted[box.slices], known[box.slices])
        tail = tuple(int(b == n) for b, n in zip(box.stop, truth.shape, strict=True))
        total_curve += curve_counts(cut(truth, box), cut(soft, box), tail_zyx=tail, known=valid)
    whole = surface(truth, predicted, known)
    for mine, theirs in zip(vars(total_surface).values(), vars(whole).values(), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert total_voxels == confusion_counts(truth, predicted, known)
    padded = np.pad(known, 1, constant_values=True)
    whole_curve = curve_counts(np.pad(truth, 1), np.pad(soft, 1), known=padded)
    for mine, theirs in zip(vars(total_curve).values(), vars(whole_curve).values(), strict=True):
        np.testing.assert_array_equal(mine, theirs)


@settings(deadline=None, max_examples=30)
@given(volumes_and_cuts())
def test_curve_equals_each_threshold(case):
    truth, soft, _, _ = case
    curve = curve_counts(np.pad(truth, 1), np.pad(soft, 1)).curve()
    for v in (1, 2, 99, 100, 101, 128, 129, 130, 254, 255):
        predicted = soft >= v
        assert curve.surface_dice[v - 1] == pytest.approx(score(truth, predicted), nan_ok=True)
        assert curve.dice[v - 1] == pytest.approx(confusion_counts(truth, predicted).dice, nan_ok=True)


@given(volumes_and_cuts())
def test_confusion_against_brute_force(case):
    truth, soft, known, _ = case
    expected = {(t, p): 0 for t in (False, True) for p in (False, True)}
    for t, v, k in zip(truth.ravel(), soft.ravel(), known.ravel(), strict=True):
        if k:
            expected[bool(t), bool(v >= 128)] += 1
    counts = confusion_counts(truth, soft >= 128, known)
    assert counts.true_positive == expected[True, True]
    assert counts.false_positive == expected[False, True]
    assert counts.false_negative == expected[True, False]
    assert counts.true_negative == expected[False, False]


def test_scores_from_counts():
    counts = ConfusionCounts(true_positive=6, false_positive=2, false_negative=4, true_negative=88)
    assert (counts.precision, counts.recall) == (0.75, 0.6)
    assert counts.dice == pytest.approx(12 / 18)
    assert counts.fbeta(0.5) == pytest.approx(1.25 * 0.75 * 0.6 / (0.25 * 0.75 + 0.6))


def test_shapes_must_agree():
    with pytest.raises(ShapeMismatchError, match=r"\(2, 2, 2\) and \(2, 2, 3\)"):
        surface_counts(np.zeros((2, 2, 2), bool), np.zeros((2, 2, 3), bool))


def test_plateau_and_best():
    truth = cube(4, size=10)
    soft = np.where(truth, 200, 40).astype(np.uint8)
    curve = curve_counts(np.pad(truth, 1), np.pad(soft, 1)).curve()
    assert curve.best == 41
    assert (curve.plateau.low, curve.plateau.high) == (41 / 255, 200 / 255)
    assert curve.surface_dice[curve.best - 1] == 1.0


def test_otsu_agrees_with_scikit_image():
    from skimage.filters import threshold_multiotsu, threshold_otsu

    rng = np.random.default_rng(5)
    image = np.concatenate([rng.normal(m, 8, 4000) for m in (40, 110, 190)]).clip(0, 255).astype(np.uint8)
    histogram = np.bincount(image, minlength=256)
    assert otsu_threshold(histogram) == threshold_otsu(image)
    expected = threshold_multiotsu(image, classes=3, nbins=256)[1]
    assert abs(otsu_upper_of_three(histogram) - expected) <= 2
    with pytest.raises(ValueError, match="two different"):
        otsu_threshold(np.array([0, 7, 0]))
