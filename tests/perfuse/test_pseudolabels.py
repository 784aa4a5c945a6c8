import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from perfuse.bundle import Bundle
from perfuse.catalog import LabelInfo, ModelRef, Scan
from perfuse.contract import Contract, Forward, Network, of_class
from perfuse.errors import ScanError
from perfuse.geometry import blocks
from perfuse.labels import writer_for
from perfuse.pseudolabels import Source, Tally, pseudolabel, within_edges

SHAPE = (40, 48, 36)
MODEL = Bundle(
    Contract(forward=Forward(network=Network(), voxel_size_um=(10, 100))),
    {},
    {"donors": {"d": "human of d"}},
    "models:/m/1",
)


class Seen:
    """Predicts what it is given; counts how often it was asked."""

    def __init__(self, values: np.ndarray) -> None:
        self.values, self.asked = values, 0

    def __call__(self, scan_url: str, model: Bundle, output: str) -> tuple[LabelInfo, ...]:
        self.asked += 1
        return tuple(self._label(Scan.open(scan_url), model, of_class(output, name)) for name in model.class_names)

    def _label(self, scan: Scan, model: Bundle, output: str) -> LabelInfo:
        writer = writer_for(scan, output, "prediction")
        for task in writer.todo():
            writer.write(task, self.values[writer.tasks[task].slices])
        made_by = ModelRef(uri=model.uri, forward_digest="", bundle_digest="", threshold=100, backend="eager-fp32")
        return writer.finish(
            lambda share, digest: LabelInfo(
                name=output,
                kind="soft",
                foreground=share,
                digest=digest,
                key="prediction",
                model=made_by,
                lineage={"donors": model.donors},
            )
        )


@pytest.fixture
def values() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, SHAPE).astype(np.uint8)


@pytest.fixture
def marks() -> np.ndarray:
    return (np.random.default_rng(1).random(SHAPE) < 0.1).astype(np.uint8) * np.uint8(255)


@settings(deadline=None)
@given(
    arrays.arrays(np.uint8, (4, 5, 6)),
    arrays.arrays(np.bool_, (4, 5, 6)),
    st.floats(0.05, 1),
)
def test_the_matched_threshold_is_the_best_of_all(predicted, human, coverage):
    """Against the definition: |human| / |human ∪ {p ≥ t}| for every t, on whole arrays."""
    human[0, 0, 0] = True
    counted = Tally(int(human.sum()), np.bincount(predicted[~human], minlength=256))
    plain = np.array([human.sum() / (human | (predicted >= t)).sum() for t in range(256)])
    np.testing.assert_array_equal(counted.coverage, plain)
    matched = counted.match(coverage)
    assert 1 <= matched <= 255
    assert abs(plain[matched] - coverage) == np.abs(plain[1:] - coverage).min()


def test_matched_pseudolabels(tmp_path, make_scan, values, marks):
    scan = make_scan(tmp_path, "s", values, {"human": marks}, kind="sparse", coverage=0.3)
    (info,) = pseudolabel(scan.url, MODEL, "round1", Seen(values), cut="coverage")
    human, taught = marks > 0, np.asarray(scan.label("round1")[:])
    plain = np.array([human.sum() / (human | (values >= t)).sum() for t in range(1, 256)])
    threshold = 1 + int(np.abs(plain - 0.3).argmin())
    np.testing.assert_array_equal(taught, np.where(human, 255, np.where(values >= threshold, values, 0)))
    assert info.kind == "soft"
    assert info.lineage["threshold"] == threshold / 255
    assert info.lineage["declared_coverage"] == 0.3
    assert info.lineage["achieved_coverage"] == plain[threshold - 1]
    assert info.lineage["residual"] == plain[threshold - 1] - 0.3
    assert info.lineage["kept"] == {"label": "human", "digest": scan.label_info("human").digest}
    assert info.lineage["prediction"]["label"] == "round1-prediction"
    assert info.donors == {"d": "models:/m/1 ← human of d"}
    assert info.model.uri == "models:/m/1"


def test_soft_pseudolabels_lose_nothing(tmp_path, make_scan, values, marks):
    scan = make_scan(tmp_path, "s", values, {"human": marks}, kind="sparse", coverage=0.3)
    (info,) = pseudolabel(scan.url, MODEL, "round1", Seen(values))
    np.testing.assert_array_equal(scan.label("round1")[:], np.where(marks > 0, 255, values))
    assert info.lineage["threshold"] is None


def test_a_stated_threshold_says_what_coverage_it_reaches(tmp_path, make_scan, values, marks):
    scan = make_scan(tmp_path, "s", values, {"human": marks}, kind="sparse", coverage=0.3)
    (info,) = pseudolabel(scan.url, MODEL, "round1", Seen(values), cut=0.9)
    human = marks > 0
    assert info.lineage["achieved_coverage"] == human.sum() / (human | (values >= 230)).sum()
    assert info.lineage["threshold"] == 230 / 255


@settings(deadline=None)
@given(
    arrays.arrays(np.uint8, (6, 7, 8)),
    arrays.arrays(np.bool_, (6, 7, 8), elements=st.sampled_from([False] * 9 + [True])),
    st.integers(1, 255),
)
def test_what_touches_a_mark_is_taught_only_where_a_vessel_goes_on(predicted, marks, threshold):
    """Against the definition, voxel by voxel and at any threshold."""
    inside, above = within_edges(predicted, marks) >= threshold, predicted >= threshold
    around = np.pad(marks, 1)
    touches = np.array([around[tuple(slice(i, i + 3) for i in at)].any() for at in np.ndindex(marks.shape)])
    free = np.pad(above & ~touches.reshape(marks.shape), 1)
    for at in np.ndindex(marks.shape):
        if not marks[at]:
            goes_on = free[tuple(slice(i, i + 3) for i in at)].any()
            assert inside[at] == (above[at] and (goes_on or not touches[np.ravel_multi_index(at, marks.shape)]))


def test_edges_are_kept(tmp_path, make_scan, values, marks):
    sparse_marks = np.where(np.random.default_rng(2).random(SHAPE) < 0.1, marks, 0).astype(np.uint8)
    scan = make_scan(tmp_path, "s", values, {"human": sparse_marks}, kind="sparse", coverage=0.3)
    (info,) = pseudolabel(scan.url, MODEL, "round1", Seen(values), cut="coverage", keep_edges=True)
    human, kept = sparse_marks > 0, within_edges(values, sparse_marks > 0)
    plain = np.array([human.sum() / (human | (kept >= t)).sum() for t in range(1, 256)])
    threshold = 1 + int(np.abs(plain - 0.3).argmin())
    expected = np.where(human, 255, np.where(kept >= threshold, kept, 0))
    np.testing.assert_array_equal(scan.label("round1")[:], expected)
    assert (info.lineage["threshold"], info.lineage["achieved_coverage"]) == (threshold / 255, plain[threshold - 1])
    assert not np.array_equal(expected, np.where(human, 255, np.where(values >= threshold, values, 0)))
    source = Source(scan, scan.label_info("round1-prediction"), scan.label_info("human"), keep_edges=True)
    for box in blocks(SHAPE, (9, 7, 11)):
        np.testing.assert_array_equal(source.predicted(box), kept[box.slices])


def test_without_peoples_labels_the_prediction_is_taught(tmp_path, make_scan, values):
    scan = make_scan(tmp_path, "s", values, {})
    (info,) = pseudolabel(scan.url, MODEL, "round1", Seen(values), cut=0.5)
    np.testing.assert_array_equal(scan.label("round1")[:], np.where(values >= 128, values, 0))
    assert info.lineage["kept"] is None
    with pytest.raises(ScanError, match="no sparse label"):
        pseudolabel(scan.url, MODEL, "round2", Seen(values), cut="coverage")


def test_background_that_people_stated_stays(tmp_path, make_scan, values, marks):
    """Dense labels are known everywhere; sparse ones outside the organ too, where nothing counts against the coverage."""
    dense = make_scan(tmp_path, "dense", values, {"human": marks})
    pseudolabel(dense.url, MODEL, "round1", Seen(values))
    np.testing.assert_array_equal(dense.label("round1")[:], marks)
    organ = np.zeros(SHAPE, np.uint8)
    organ[:20] = 255
    sparse = make_scan(tmp_path, "sparse", values, {"human": marks, "organ": organ}, kind="sparse", coverage=0.3)
    pseudolabel(sparse.url, MODEL, "round1", Seen(values))
    expected = np.where((marks > 0) | (organ == 0), marks, values)
    np.testing.assert_array_equal(sparse.label("round1")[:], expected)
    human, threshold = marks > 0, 200
    (info,) = pseudolabel(sparse.url, MODEL, "round2", Seen(values), cut=threshold / 255)
    assert info.lineage["achieved_coverage"] == human.sum() / (human | ((values >= threshold) & (organ > 0))).sum()


def test_done_is_not_done_again_and_other_marks_are_another_label(tmp_path, make_scan, values, marks):
    scan = make_scan(tmp_path, "s", values, {"human": marks}, kind="sparse", coverage=0.3)
    seen = Seen(values)
    (first,) = pseudolabel(scan.url, MODEL, "round1", seen, cut="coverage")
    written = [p.stat().st_mtime_ns for p in sorted((tmp_path / "s.ome.zarr/labels/round1").rglob("*"))]
    assert pseudolabel(scan.url, MODEL, "round1", seen, cut="coverage") == (first,)
    assert [p.stat().st_mtime_ns for p in sorted((tmp_path / "s.ome.zarr/labels/round1").rglob("*"))] == written
    assert pseudolabel(scan.url, MODEL, "round1", seen, cut=0.5)[0].key != first.key
    with pytest.raises(ScanError, match="given by a person"):
        pseudolabel(scan.url, MODEL, "human", seen)


def test_marks_of_nothing_match_no_coverage(tmp_path, make_scan, values):
    scan = make_scan(tmp_path, "s", values, {"human": np.zeros(SHAPE, np.uint8)}, kind="sparse", coverage=0.3)
    with pytest.raises(ScanError, match="marks nothing"):
        pseudolabel(scan.url, MODEL, "round1", Seen(values), cut="coverage")


def test_of_several_classes_each_keeps_what_people_said_of_it(tmp_path, make_scan, values, marks):
    network = MODEL.contract.forward.network.changed(classes=("large", "small"))
    lineage = {"recipe": {"labels": {"large": ["round0", "human-large"], "small": ["human"]}}}
    two = Bundle(Contract(forward=MODEL.contract.forward.changed(network=network)), {}, lineage, "models:/m/2")
    labels = {"human": marks, "human-large": marks[::-1].copy()}
    scan = make_scan(tmp_path, "s", values, labels, kind="sparse", coverage=0.3)
    infos = pseudolabel(scan.url, two, "round1", Seen(values))
    for info, name, human in zip(infos, ("round1-large", "round1-small"), ("human-large", "human"), strict=True):
        assert (info.name, info.lineage["kept"]["label"]) == (name, human)
        np.testing.assert_array_equal(scan.label(name)[:], np.where(labels[human] > 0, 255, values))
    plain = make_scan(tmp_path / "plain", "s", values, {"human": marks}, kind="sparse", coverage=0.3)
    with pytest.raises(ScanError, match="no sparse label of class large"):
        pseudolabel(plain.url, two, "round1", Seen(values), cut="coverage")
