"""Laws of the metrics: a whole is the sum of its blocks, a curve is its single thresholds, counts are what one counts."""

from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from perfuse.errors import ShapeMismatchError
from perfuse.geometry import Box
from perfuse.metrics import (
    ConfusionCounts,
    Curve,
    CurveCounts,
    SurfaceCounts,
    confusion_counts,
    curve_counts,
    read_cubes,
    surface_counts,
)

levels = st.one_of(st.sampled_from([0, 1, 128, 254, 255]), st.integers(0, 255))


@st.composite
def volumes(draw):
    shape = draw(hnp.array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=7))
    truth, known = draw(hnp.arrays(bool, shape)), draw(hnp.arrays(bool, shape))
    return truth, draw(hnp.arrays(np.uint8, shape, elements=levels)), known


@st.composite
def volumes_and_cuts(draw):
    truth, soft, known = draw(volumes())
    cuts = [sorted({0, n, *draw(st.lists(st.integers(0, n), max_size=3))}) for n in truth.shape]
    boxes = [Box(*zip(*sides, strict=True)) for sides in product(*(list(pairwise(c)) for c in cuts))]
    return truth, soft, known, boxes


def cut(array, box: Box, outside=0):
    return read_cubes(lambda inside: array[inside.slices], box, array.shape, outside)


def whole(array, outside=0):
    return np.pad(array, 1, constant_values=outside)


def assert_same_counts(one, other) -> None:
    for mine, theirs in zip(vars(one).values(), vars(other).values(), strict=True):
        np.testing.assert_array_equal(mine, theirs)


@settings(deadline=None)
@given(volumes_and_cuts())
def test_chunked_surface_equals_whole(case):
    truth, soft, known, boxes = case
    total = SurfaceCounts()
    for box in boxes:
        total += surface_counts(cut(truth, box), cut(soft >= 128, box), cut(known, box, outside=1))
    assert_same_counts(total, surface_counts(whole(truth), whole(soft >= 128), whole(known, 1)))


@settings(deadline=None)
@given(volumes_and_cuts())
def test_chunked_confusion_equals_whole(case):
    truth, soft, known, boxes = case
    total = ConfusionCounts()
    for box in boxes:
        total += confusion_counts(truth[box.slices], soft[box.slices] >= 128, known[box.slices])
    assert total == confusion_counts(truth, soft >= 128, known)


@settings(deadline=None)
@given(volumes_and_cuts())
def test_chunked_curve_equals_whole(case):
    truth, soft, known, boxes = case
    total = CurveCounts()
    for box in boxes:
        tail = tuple(int(b == n) for b, n in zip(box.stop, truth.shape, strict=True))
        total += curve_counts(cut(truth, box), cut(soft, box), tail_zyx=tail, known=cut(known, box, outside=1))
    assert_same_counts(total, curve_counts(whole(truth), whole(soft), known=whole(known, 1)))


@settings(deadline=None)
@given(volumes())
def test_curve_equals_each_threshold_to_the_bit(case):
    truth, soft, known = case
    curve = curve_counts(whole(truth), whole(soft), known=whole(known, 1)).curve()
    surfaces, dices = [], []
    for v in range(1, 256):
        surfaces.append(surface_counts(whole(truth), whole(soft >= v), whole(known, 1)).surface_dice)
        dices.append(confusion_counts(truth, soft >= v, known).dice)
    np.testing.assert_array_equal(curve.thresholds, np.arange(1, 256))
    np.testing.assert_array_equal(curve.surface_dice, surfaces)
    np.testing.assert_array_equal(curve.dice, dices)


@given(volumes())
def test_confusion_against_brute_force(case):
    truth, soft, known = case
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


def test_scores_without_a_denominator_are_nan():
    nothing = ConfusionCounts(true_negative=9)
    assert np.isnan([nothing.dice, nothing.precision, nothing.recall, nothing.fbeta(2.0)]).all()
    missed = ConfusionCounts(false_negative=3)
    assert (missed.dice, missed.recall) == (0.0, 0.0)
    assert np.isnan(missed.precision)


def curve_of(scores: dict[range, float]) -> Curve:
    surface = np.zeros(255)
    for thresholds, value in scores.items():
        surface[np.array(thresholds) - 1] = value
    return Curve(np.arange(1, 256), surface, surface)


def test_best_is_the_middle_of_equals():
    truth = np.zeros((10,) * 3, bool)
    truth[2:6, 2:6, 2:6] = True
    curve = curve_counts(whole(truth), whole(np.where(truth, 200, 40).astype(np.uint8))).curve()
    assert curve.surface_dice[curve.best - 1] == 1.0
    assert curve.best == (41 + 200) // 2
    assert (curve.plateau.low, curve.plateau.high) == (41 / 255, 200 / 255)


def test_plateau_is_the_run_around_the_best():
    curve = curve_of({range(50, 60): 0.795, range(100, 150): 0.795, range(120, 125): 0.8, range(150, 160): 0.789})
    assert curve.best == 122
    assert (curve.plateau.low, curve.plateau.high) == (100 / 255, 149 / 255)
    assert curve.plateau.width == pytest.approx(49 / 255)


@pytest.mark.parametrize(("good", "chosen"), [(range(100, 150), 128), (range(10, 20), 19), (range(200, 256), 200)])
def test_chosen_is_the_point_of_the_plateau_that_is_nearest_to_a_half(good: range, chosen: int):
    assert curve_of({good: 0.5, range(130, 132): 0.45}).chosen == chosen


def test_a_curve_of_nothing():
    curve = CurveCounts().curve()
    assert np.isnan(curve.surface_dice).all()
    assert (curve.best, curve.chosen, curve.plateau.width) == (128, 128, 0.0)


def test_bad_arrays_are_refused():
    good = np.zeros((3, 3, 3), bool)
    with pytest.raises(ShapeMismatchError, match="one shape"):
        curve_counts(good, np.zeros((3, 3, 4), np.uint8))
    with pytest.raises(TypeError, match="safe"):
        curve_counts(good, np.zeros((3, 3, 3), np.uint16))


def test_iou_is_intersection_over_union():
    a, b = np.zeros((2, 4, 5, 6), bool)
    a[1:3, 1:4], b[2:4, 2:5] = True, True
    assert confusion_counts(a, b).iou == (a & b).sum() / (a | b).sum()
    assert np.isnan(confusion_counts(a & ~a, a & ~a).iou)
