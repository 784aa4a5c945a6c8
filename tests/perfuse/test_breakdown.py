"""Slices and columns of a scan: each is what one counts there, and all together are the whole."""

import csv
import json

import numpy as np
import pytest
from typer.testing import CliRunner

from perfuse import breakdown, passes, scoring
from perfuse.cli import build
from perfuse.metrics import confusion_counts, surface_counts

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
    counts = scoring.count(scan, "soft", "human", 100, WIDTH)
    for z, plane in enumerate(counts.planes):
        whole = confusion_counts(truth[z : z + 1], predicted[z : z + 1])
        assert plane.tolist() == list(vars(whole).values())
    padded = [np.pad(mask, 1) for mask in (truth, predicted)]
    for y, x in np.ndindex(*counts.columns.shape[:2]):
        rows, columns = (slice(n * w, (n + 1) * w) for n, w in zip((y, x), WIDTH, strict=True))
        of_voxels = confusion_counts(truth[:, rows, columns], predicted[:, rows, columns])
        assert counts.columns[y, x].tolist() == list(vars(of_voxels).values())
        last = [int(s.stop >= n) for s, n in zip((rows, columns), SHAPE[1:], strict=True)]
        cut = (slice(None), *(slice(s.start, s.stop + 1 + far) for s, far in zip((rows, columns), last, strict=True)))
        of_cubes = surface_counts(*(mask[cut] for mask in padded))
        np.testing.assert_array_equal(counts.surfaces[y, x], list(vars(of_cubes).values()))
    assert counts.voxels == confusion_counts(truth, predicted) == scoring.count(scan, "soft", "human", 100).voxels
    assert counts.surface.surface_dice == surface_counts(*padded).surface_dice
    drawn = breakdown.maps(counts, dense=True)
    assert np.isnan(drawn["Dice"][0, 0])
    assert drawn["Dice"][1, 1] == confusion_counts(truth[:, 8:16, 12:24], predicted[:, 8:16, 12:24]).dice
    of_cubes = surface_counts(*(mask[:, 8:17, 12:25] for mask in padded))
    assert drawn["surface dice"][1, 1] == of_cubes.surface_dice


def evaluate(scan, folder, *words: str) -> tuple[dict, list[dict[str, str]]]:
    files = ["--per-slice", str(folder / "slices.csv"), "--heat-map", str(folder / "map.png")]
    words = ("evaluate", scan.url, "--prediction", "soft", "--truth", "human", "--threshold", "0.5", *files, "--json")
    found = json.loads(CliRunner().invoke(build(), words, catch_exceptions=False).stdout)
    assert (folder / "map.png").read_bytes().startswith(b"\x89PNG")
    with (folder / "slices.csv").open() as opened:
        return found, list(csv.DictReader(opened))


def test_the_verb_writes_a_row_a_slice(case, tmp_path, monkeypatch):
    monkeypatch.setattr(passes, "BLOCK", (8, 64, 64))
    scan, truth, _ = case
    found, rows = evaluate(scan, tmp_path)
    assert [int(row["z"]) for row in rows] == list(range(SHAPE[0]))
    positive = [int(row["true_positive"]) + int(row["false_negative"]) for row in rows]
    assert positive == truth.sum((1, 2)).tolist()
    hit, wrong, missed = (
        sum(int(row[n]) for row in rows) for n in ("true_positive", "false_positive", "false_negative")
    )
    assert found["dice"] == 2 * hit / (2 * hit + wrong + missed)


def test_sparse_truth_tells_recall_alone(tmp_path, make_scan, tubes):
    image, mask = tubes(2, SHAPE)
    scan = make_scan(tmp_path, "s", image, {"human": mask, "soft": mask}, kind="sparse", coverage=0.5)
    _, rows = evaluate(scan, tmp_path)
    assert {row["dice"] for row in rows} == {row["false_positive"] for row in rows} == {""}
    assert {row["recall"] for row in rows} <= {"1.0", ""}
    assert list(breakdown.maps(scoring.count(scan, "soft", "human", 128), dense=False)) == ["recall"]
