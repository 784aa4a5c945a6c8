"""Slices, chunks and columns of a scan: each is what one counts there, and all together are the whole."""

import csv
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from typer.testing import CliRunner

from perfuse import breakdown, counting, passes, scoring
from perfuse.cli import build
from perfuse.geometry import Box, blocks
from perfuse.metrics import ConfusionCounts, SurfaceCounts, confusion_counts, surface_counts

SHAPE, WIDTH = (21, 26, 30), (8, 12)


@pytest.fixture
def case(tmp_path, make_scan, tubes, monkeypatch):
    image, mask = tubes(2, SHAPE)
    soft = np.where(np.random.default_rng(0).random(SHAPE) < 0.1, 255 - mask, mask)
    soft[:, :8, :12] = 0
    mask[:, :8, :12] = 0
    monkeypatch.setattr(passes, "BLOCK", (8, 16, 24))
    return make_scan(tmp_path, "s", image, {"human": mask, "soft": soft}), mask > 0, soft >= 100


def test_slices_and_columns_are_those_of_the_arrays_and_add_to_the_whole(case):
    scan, truth, predicted = case
    chunks = []
    counts = scoring.count(scan, "soft", "human", 100, WIDTH, lambda *told: chunks.append(told))
    for z, plane in enumerate(counts.planes):
        whole = confusion_counts(truth[z : z + 1], predicted[z : z + 1])
        assert plane.tolist() == list(vars(whole).values())
    padded = [np.pad(mask, 1) for mask in (truth, predicted)]
    for z, layer in enumerate(counts.layers):
        of_cubes = surface_counts(*(mask[z : z + 2 + (z == SHAPE[0] - 1)] for mask in padded))
        np.testing.assert_array_equal(layer, list(vars(of_cubes).values()))
    np.testing.assert_array_equal(counts.layers.sum(0), counts.surfaces.sum((0, 1)))
    for y, x in np.ndindex(*counts.columns.shape[:2]):
        rows, columns = (slice(n * w, (n + 1) * w) for n, w in zip((y, x), WIDTH, strict=True))
        of_voxels = confusion_counts(truth[:, rows, columns], predicted[:, rows, columns])
        assert counts.columns[y, x].tolist() == list(vars(of_voxels).values())
        last = [int(s.stop >= n) for s, n in zip((rows, columns), SHAPE[1:], strict=True)]
        cut = (slice(None), *(slice(s.start, s.stop + 1 + far) for s, far in zip((rows, columns), last, strict=True)))
        of_cubes = surface_counts(*(mask[cut] for mask in padded))
        np.testing.assert_array_equal(counts.surfaces[y, x], list(vars(of_cubes).values()))
    assert {box for box, _, _ in chunks} == set(blocks(SHAPE, (8, *WIDTH)))
    for box, of_voxels, of_cubes in chunks:
        assert of_voxels == confusion_counts(truth[box.slices], predicted[box.slices])
        around = tuple(slice(a, b + 1 + (b == n)) for a, b, n in zip(box.start, box.stop, SHAPE, strict=True))
        np.testing.assert_equal(vars(of_cubes), vars(surface_counts(*(mask[around] for mask in padded))))
    assert counts.voxels == confusion_counts(truth, predicted) == scoring.count(scan, "soft", "human", 100).voxels
    assert counts.surface.surface_dice == surface_counts(*padded).surface_dice
    drawn = breakdown.maps(counts, dense=True)
    assert np.isnan(drawn["Dice"][0, 0])
    of_column = confusion_counts(truth[:, 8:16, 12:24], predicted[:, 8:16, 12:24])
    assert (drawn["Dice"][1, 1], drawn["f0.5"][1, 1]) == (of_column.dice, pytest.approx(of_column.fbeta(0.5)))
    of_cubes = surface_counts(*(mask[:, 8:17, 12:25] for mask in padded))
    assert drawn["surface dice"][1, 1] == of_cubes.surface_dice


def evaluate(scan, folder, *words: str) -> tuple[dict, list[dict[str, str]]]:
    files = ["--per-slice", str(folder / "slices.csv"), "--heat-map", str(folder / "map.png")]
    files += ["--per-chunk", str(folder / "chunks.csv")]
    words = ("evaluate", scan.url, "--prediction", "soft", "--truth", "human", "--threshold", "0.5", *files, "--json")
    found = json.loads(CliRunner().invoke(build(), words, catch_exceptions=False).stdout)
    assert (folder / "map.png").read_bytes().startswith(b"\x89PNG")
    return found, table(folder / "slices.csv")


def table(path: Path) -> list[dict[str, str]]:
    with path.open() as opened:
        return list(csv.DictReader(opened))


def test_the_verb_writes_a_row_a_slice(case, tmp_path, monkeypatch):
    monkeypatch.setattr(passes, "BLOCK", (8, 64, 64))
    scan, truth, predicted = case[0], case[1], np.asarray(case[0].label("soft")[:]) >= 128
    found, rows = evaluate(scan, tmp_path)
    assert [int(row["z"]) for row in rows] == list(range(SHAPE[0]))
    positive = [int(row["true_positive"]) + int(row["false_negative"]) for row in rows]
    assert positive == truth.sum((1, 2)).tolist()
    hit, wrong, missed = (
        sum(int(row[n]) for row in rows) for n in ("true_positive", "false_positive", "false_negative")
    )
    areas = [sum(float(row[name]) for row in rows) for name in ("shared_surface_area", "surface_area")]
    assert found["surface_dice"] == pytest.approx(areas[0] / areas[1], rel=1e-12)
    assert {
        float(row["surface_dice"]) == float(row["shared_surface_area"]) / float(row["surface_area"]) for row in rows
    } == {True}
    of_slice = confusion_counts(truth[9:10], predicted[9:10])
    assert (float(rows[9]["f0.5"]), float(rows[9]["dice"])) == (of_slice.fbeta(0.5), of_slice.dice)
    assert found["dice"] == 2 * hit / (2 * hit + wrong + missed)
    chunks = table(tmp_path / "chunks.csv")
    for row in chunks:
        start, size = ([int(row[f"{axis}{what}"]) for axis in "zyx"] for what in ("", "_voxels"))
        box = tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))
        told = confusion_counts(truth[box], predicted[box])
        assert [int(row[name]) for name in breakdown.COUNTS] == list(vars(told).values())
        assert row["dice"] == str(told.dice).replace("nan", "")
    assert [(row["z"], row["z_voxels"], row["y"], row["x"]) for row in chunks] == [
        ("0", "8", "0", "0"),
        ("8", "8", "0", "0"),
        ("16", "5", "0", "0"),
    ]
    areas_of_chunks = [sum(float(row[name]) for row in chunks) for name in ("shared_surface_area", "surface_area")]
    assert areas_of_chunks == pytest.approx(areas, rel=1e-12)


class InMemory:
    """As much of a scan as counting asks for."""

    def __init__(self, **labels: np.ndarray) -> None:
        self.of, self.shape_zyx, self.info = labels, labels["truth"].shape, SimpleNamespace(id="s")

    def labels(self) -> dict:
        return {}

    def label_boxes(self, _: str) -> list:
        return [SimpleNamespace(box=Box.whole(self.shape_zyx))]

    def read_label(self, name: str, box: Box) -> np.ndarray:
        return self.of[name][box.slices]


@settings(max_examples=50)
@given(st.data(), st.tuples(*[st.integers(1, 9)] * 3), st.tuples(*[st.integers(1, 3)] * 3), st.integers(1, 3))
def test_chunks_add_up_to_the_whole(data, shape, chunk, times):
    masks = {name: data.draw(arrays.arrays(np.bool_, shape)) for name in ("truth", "soft")}
    scan, rows = InMemory(**{name: mask * np.uint8(255) for name, mask in masks.items()}), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passes, "BLOCK", (chunk[0], times * chunk[1], times * chunk[2]))
        counting.tally(
            scan,
            ("truth",),
            lambda box, out: np.copyto(out, masks["soft"][box.slices]),
            chunk[1:],
            lambda *r: rows.append(r),
        )
    assert sorted(box.start for box, _, _ in rows) == [box.start for box in blocks(shape, chunk)]
    voxels = sum((of for _, of, _ in rows), ConfusionCounts())
    surface = sum((of for _, _, of in rows), SurfaceCounts())
    assert voxels == confusion_counts(masks["truth"], masks["soft"])
    np.testing.assert_equal(vars(surface), vars(surface_counts(*(np.pad(mask, 1) for mask in masks.values()))))


def test_sparse_truth_tells_recall_alone(tmp_path, make_scan, tubes):
    image, mask = tubes(2, SHAPE)
    scan = make_scan(tmp_path, "s", image, {"human": mask, "soft": mask}, kind="sparse", coverage=0.5)
    found, rows = evaluate(scan, tmp_path)
    hits = int(mask.astype(bool).sum())
    assert list(found["counts"].values()) == [hits, None, 0, None]
    assert (
        {row["dice"] for row in rows}
        == {row["false_positive"] for row in rows}
        == {row["surface_area"] for row in rows}
        == {""}
    )
    assert {row["recall"] for row in rows} <= {"1.0", ""}
    assert list(breakdown.maps(scoring.count(scan, "soft", "human", 128), dense=False)) == ["recall"]
