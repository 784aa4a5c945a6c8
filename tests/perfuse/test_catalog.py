"""Scans, their labels and what is known of them; splits that never divide a donor."""

from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

from perfuse.catalog import LabelInfo, Scan, ScanInfo
from perfuse.errors import RecipeError, ScanError
from perfuse.finding import find_scans, preferred_label
from perfuse.geometry import Box
from perfuse.splits import split_by_donor
from perfuse.validity import LabelBox, summary, visible

MakeScan = Callable[..., Scan]
SHAPE = (12, 20, 16)
WHOLE = Box.whole(SHAPE)


def voxels(seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 500, SHAPE).astype(np.uint16)


def mask(seed: int = 0) -> Any:
    return (np.random.default_rng(seed).random(SHAPE) < 0.2) * np.uint8(255)


def test_percentiles_are_exact(tmp_path: Path, make_scan: MakeScan) -> None:
    image = voxels()
    scan = make_scan(tmp_path, "k1", image, {})
    for percent in (0.5, 50, 99.5):
        assert scan.percentile(percent) == np.percentile(image, percent, method="inverted_cdf")


def test_sparse_labels_are_unknown_outside_marks_and_organ(tmp_path: Path, make_scan: MakeScan) -> None:
    marked, organ = mask(1), np.zeros(SHAPE, np.uint8)
    organ[:, 5:15, 4:12] = 255
    scan = make_scan(tmp_path, "k1", voxels(), {"human": marked}, kind="sparse", coverage=0.65)
    np.testing.assert_array_equal(scan.read_known("human", WHOLE), marked > 0)
    scan = make_scan(tmp_path, "k2", voxels(), {"human": marked, "organ": organ}, kind="sparse", coverage=0.65)
    box = Box((2, 3, 1), (9, 18, 14))
    known = (marked > 0) | (organ == 0)
    np.testing.assert_array_equal(scan.read_known("human", box), known[box.slices])
    np.testing.assert_array_equal(scan.read_known("human", box, marked[box.slices]), known[box.slices])


def test_a_label_of_a_part_is_unknown_elsewhere(tmp_path: Path, make_scan: MakeScan) -> None:
    scan = make_scan(tmp_path, "k1", voxels(), {"part": mask()}, box=((2, 0, 3), (8, 20, 10)))
    known = scan.read_known("part", WHOLE)
    assert known[2:8, :, 3:10].all()
    assert known.sum() == 6 * 20 * 7
    assert not scan.read_known("part", Box((9, 0, 0), (12, 20, 16))).any()


CORNERS = st.tuples(*(st.tuples(st.integers(0, n), st.integers(0, n)).map(sorted) for n in SHAPE))
GIVEN = st.tuples(CORNERS, st.sampled_from([("dense", 1.0), ("sparse", 0.5), ("sparse", 0.8), ("soft", 1.0)]))


def boxes_of(drawn: list[Any], values: Any) -> tuple[list[LabelBox], Any]:
    """Boxes with the right counts, and for each voxel the number of the last one over it (−1: none)."""
    boxes, last = [], np.full(SHAPE, -1)
    for number, (spans, (kind, coverage)) in enumerate(drawn):
        start, stop = zip(*spans, strict=True)
        box = LabelBox(
            version=number + 1, start=start, stop=stop, kind=kind, coverage=coverage, marked=0, added=0, removed=0
        )
        last[box.box.slices] = number
        boxes.append(box)
    marked = [int((values[last == n] >= 128).sum()) for n in range(len(boxes))]
    return [b.model_copy(update={"marked": m}) for b, m in zip(boxes, marked, strict=True)], last


@given(st.lists(GIVEN, min_size=1, max_size=6), CORNERS, st.integers(0, 9))
def test_the_last_box_over_a_voxel_says_what_is_known(drawn: list[Any], spans: Any, seed: int) -> None:
    values, organ = mask(seed), mask(seed + 1)
    boxes, last = boxes_of(drawn, values)
    asked = Box(*zip(*spans, strict=True))
    scan = Boxed(boxes, values, organ)
    kinds = np.array([*(b.kind for b in boxes), "none"])[last]
    known = np.isin(kinds, ["dense", "soft"]) | ((kinds == "sparse") & ((values > 0) | (organ == 0)))
    np.testing.assert_array_equal(scan.read_known("human", asked), known[asked.slices])
    np.testing.assert_array_equal(scan.read_known("human", asked, values[asked.slices]), known[asked.slices])
    np.testing.assert_array_equal(scan.read_given("human", asked), (last >= 0)[asked.slices])


@given(st.lists(GIVEN, min_size=1, max_size=6), st.integers(0, 9))
def test_summaries_are_of_what_is_seen_of_each_box(drawn: list[Any], seed: int) -> None:
    values = mask(seed)
    boxes, last = boxes_of(drawn, values)
    for number, parts in enumerate(visible([b.box for b in boxes])):
        painted = np.zeros(SHAPE, np.int64)
        for part in parts:
            painted[part.slices] += 1
        np.testing.assert_array_equal(painted, last == number)
    if (last < 0).all():
        return
    about = summary(boxes, SHAPE)
    seen = [boxes[n] for n in np.unique(last[last >= 0])]
    assert about["kind"] == next(k for k in ("sparse", "soft", "dense") if k in {b.kind for b in seen})
    assert about["foreground"] == sum(b.marked for b in seen) / last.size
    assert (about["box"] is None) == bool((last >= 0).all())
    expected = sum(b.marked / b.coverage for b in seen)
    if expected:
        assert about["coverage"] == pytest.approx(sum(b.marked for b in seen) / expected)
    shares = [b.coverage for b in seen]
    assert min(shares) - 1e-9 <= about["coverage"] <= max(shares) + 1e-9


def test_labels_that_list_no_boxes_have_one(tmp_path: Path, make_scan: MakeScan) -> None:
    """As scans have them that were stored before boxes were kept, and labels of models."""
    marked, box = mask(1), ((2, 0, 3), (8, 20, 10))
    scan = make_scan(tmp_path, "k1", voxels(), {"human": marked}, kind="sparse", coverage=0.65, box=box, key="k")
    (only,) = scan.label_boxes("human")
    assert (only.start, only.stop, only.kind, only.coverage, only.key) == (*box, "sparse", 0.65, "k")
    assert only.marked == (marked >= 128).sum()
    scan = make_scan(tmp_path, "k2", voxels(), {"human": marked})
    (only,) = scan.label_boxes("human")
    assert (only.box, only.kind, only.version) == (WHOLE, "dense", 1)
    assert scan.label_info("human").digest_over("root") == "root"


def test_what_is_no_scan_is_named(tmp_path: Path, make_scan: MakeScan) -> None:
    with pytest.raises(ScanError, match="absent is not a Zarr group"):
        Scan.open(str(tmp_path / "absent"))
    zarr.create_group(tmp_path / "plain.ome.zarr")
    with pytest.raises(ScanError, match="not a complete perfuse scan"):
        Scan.open(str(tmp_path / "plain.ome.zarr"))
    scan = make_scan(tmp_path, "k1", voxels(), {"human": mask()})
    with pytest.raises(ScanError, match=r"no label 'humn'\. Its labels: human"):
        scan.label("humn")
    assert preferred_label(scan, ["round1", "human"]) == "human"
    with pytest.raises(ScanError, match="has none of the labels round1"):
        preferred_label(scan, ["round1"])


def test_a_summary_of_another_version_is_an_error_with_a_sentence(tmp_path: Path, make_scan: MakeScan) -> None:
    scan = make_scan(tmp_path, "k1", voxels(), {})
    group = zarr.open_group(scan.url, mode="r+")
    group.attrs["perfuse"] = {**scan.info.model_dump(mode="json"), "colour": "red"}
    with pytest.raises(ScanError, match=r"not one that this version of perfuse reads.*colour"):
        Scan.open(scan.url)


def test_scans_are_found_and_unfinished_ones_are_not(
    tmp_path: Path, make_scan: MakeScan, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ScanError, match="No complete scans"):
        find_scans(str(tmp_path))
    for specimen in ("b", "a"):
        make_scan(tmp_path, specimen, voxels(), {})
    zarr.create_group(tmp_path / "c.ome.zarr")
    (tmp_path / ".a.ome.zarr.scan.lock").touch()
    assert [s.info.id for s in find_scans(str(tmp_path))] == ["a", "b"]
    (tmp_path / "b.ome.zarr" / "zarr.json").write_text("{")
    assert [s.info.id for s in find_scans(str(tmp_path))] == ["a"]
    assert "b.ome.zarr (zarr.json) are damaged" in capsys.readouterr().err


class Boxed(Scan):
    """A scan with one label and an organ mask, in memory."""

    def __init__(self, boxes: list[LabelBox], values: Any, organ: Any) -> None:
        self.boxes, self.stored = tuple(boxes), {"human": values, "organ": organ}

    def label_boxes(self, name: str) -> tuple[LabelBox, ...]:
        return self.boxes

    def read_label(self, name: str, box: Box) -> Any:
        return self.stored[name][box.slices]

    def _outside_organ(self, box: Box) -> Any:
        return self.stored["organ"][box.slices] == 0


class Known(Scan):
    """A scan of which only the summaries matter."""

    def __init__(self, specimen: str, donor: str, kind: str | None) -> None:
        self.url = specimen
        self.info = ScanInfo.model_construct(id=specimen, specimen=specimen, donor=donor, organ="kidney")
        self.kind = kind

    def labels(self) -> dict[str, LabelInfo]:
        return {"human": LabelInfo.model_construct(name="human", kind=self.kind)} if self.kind else {}


SCANS = st.lists(st.tuples(st.integers(0, 4), st.sampled_from(["dense", "sparse", None])), min_size=1, max_size=8).map(
    lambda rows: [Known(f"s{i}", f"d{donor}", kind) for i, (donor, kind) in enumerate(rows)]
)


@given(SCANS, st.data())
def test_no_donor_stands_on_two_sides(scans: list[Scan], data: st.DataObject) -> None:
    names = st.lists(st.sampled_from([s.info.specimen for s in scans]), unique=True, max_size=3)
    chosen = {side: data.draw(names) for side in ("train", "validation", "holdout")}
    try:
        split = split_by_donor(scans, classes=[["human"]], **chosen)
    except RecipeError:
        return
    sides = [{s.info.donor for s in side} for side in (split.train, split.validation, split.holdout)]
    assert sides[0]
    assert sides[1]
    assert all(a.isdisjoint(b) for a, b in combinations(sides, 2))
    assert all("human" in s.labels() for s in (*split.train, *split.validation))


def test_splits_explain_what_is_wrong() -> None:
    scans: list[Scan] = [Known("k1", "anna", "dense"), Known("spleen1", "anna", "dense"), Known("k2", "ben", None)]
    with pytest.raises(RecipeError, match=r"at least two donors.*found 1"):
        split_by_donor(scans, classes=[["human"]])
    with pytest.raises(RecipeError, match=r"Donor 'anna' .*two sides of the split"):
        split_by_donor(scans, classes=[["human"]], train=["k1"], validation=["spleen1"])
    with pytest.raises(RecipeError, match=r"No .* 'k2' with one of the labels human. There are: k1; spleen1"):
        split_by_donor(scans, classes=[["human"]], train=["k2"])
    with pytest.raises(RecipeError, match=r"No specimen or scan 'k9' here"):
        split_by_donor(scans, classes=[["human"]], holdout=["k9"])


def test_selection_falls_on_one_dense_donor_with_all_its_specimens() -> None:
    scans: list[Scan] = [
        *(Known("a", "anna", "dense"), Known("b", "ben", "dense"), Known("c", "ben", "dense")),
        *(Known("d", "dora", "sparse"), Known("e", "eve", "dense"), Known("f", "eve", "dense")),
    ]
    split = split_by_donor(scans, classes=[["human"]], holdout=["e"])
    assert [s.info.specimen for s in split.validation] == ["b", "c"]
    assert [s.info.specimen for s in split.train] == ["a", "d"], "f is of the donor that is left out"
