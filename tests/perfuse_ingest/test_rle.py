"""Run lengths say which voxels are marked: from 1, along the rows; what is no table of them is an error that names the id."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from perfuse.catalog import Scan
from perfuse.errors import SourceError
from perfuse_ingest.ingest import ingest
from perfuse_ingest.labels import add_labels
from perfuse_ingest.rle import datasets, decode, is_table

Volume = np.ndarray[Any, Any]
SHAPE = (9, 14, 11)
ABOUT: dict[str, Any] = {"voxel_size_um": (50, 50, 50), "specimen": "k1", "organ": "kidney", "mask": False}


def encode(plane: Volume) -> str:
    """Runs found one voxel after the other."""
    runs, begun = [], None
    for number, marked in enumerate([*plane.ravel(order="C").tolist(), 0], 1):
        if marked and begun is None:
            begun = number
        elif not marked and begun is not None:
            runs += [begun, number - begun]
            begun = None
    return " ".join(map(str, runs)) or "1 0"


def test_a_golden_vector() -> None:
    wanted = np.array([[0, 1, 1, 0], [1, 0, 0, 1], [1, 1, 0, 1]], np.uint8) * np.uint8(255)
    assert encode(wanted) == "2 2 5 1 8 3 12 1"
    np.testing.assert_array_equal(decode(b"2 2 5 1 8 3 12 1", (3, 4)), wanted)
    np.testing.assert_array_equal(decode(b"12 1 8 3 2 2 5 1", (3, 4)), wanted)
    np.testing.assert_array_equal(decode(b"1 0", (3, 4)), wanted * 0)
    np.testing.assert_array_equal(decode(b"1 5 6 7", (3, 4)), np.full((3, 4), 255, np.uint8))


@given(arrays.arrays(np.bool_, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_round_trip(plane: Volume) -> None:
    np.testing.assert_array_equal(decode(encode(plane).encode(), plane.shape), plane * np.uint8(255))


@pytest.mark.parametrize(
    ("runs", "why"),
    [
        (b"1 2 3", "3 numbers, but runs are pairs"),
        (b"0 2", "run 0 2 lies outside"),
        (b"11 3", r"run 11 3 lies outside the slice, which has voxels 1 to 12 \(3 × 4\)"),
        (b"13 0", "run 13 0 lies outside"),
        (b"99999999999999999999999 1", "lies outside"),
        (b"2 99999999999999999999999", "lies outside"),
        (b"2 3 4 1", "starts at 4 overlaps"),
        (b"5 1 5 1", "starts at 5 overlaps"),
        (b"2 -1", "whole numbers"),
        (b"2 1.5", "whole numbers"),
    ],
)
def test_runs_that_mark_nothing_sensible(runs: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        decode(runs, (3, 4))


@pytest.fixture
def masks() -> Volume:
    masks = np.random.default_rng(4).random(SHAPE) < 0.3
    masks[2] = False
    return masks


@pytest.fixture
def scan_url(tmp_path: Path, stack_folder: Callable[..., Path], noise: Callable[..., Volume]) -> str:
    url = str(tmp_path / "k1.ome.zarr")
    ingest(str(stack_folder(tmp_path / "slices", noise(SHAPE), first=492, name="{:04d}.tif")), url, **ABOUT)
    return url


def rows(dataset: str, masks: Volume, first: int) -> list[str]:
    return [f"{dataset}_{first + k:04d},{encode(plane)}" for k, plane in enumerate(masks)]


def table(path: Path, *lines: str, end: str = "\n") -> str:
    path.write_bytes((end.join(["id,rle", *lines]) + end).encode())
    return str(path)


def test_a_table_is_a_mask(tmp_path: Path, scan_url: str, masks: Volume) -> None:
    source = table(tmp_path / "train_rles.csv", *rows("kidney_1_dense", masks, 492), end="\r\n")
    info = add_labels(scan_url, source, name="human")
    np.testing.assert_array_equal(Scan.open(scan_url).label("human")[:], masks * np.uint8(255))
    assert (info.kind, info.box) == ("dense", None)
    assert add_labels(scan_url, source, name="human") == info


def test_one_dataset_of_several_for_the_slices_that_it_names(tmp_path: Path, scan_url: str, masks: Volume) -> None:
    there = [*rows("kidney_2", masks, 0), *rows("kidney_3_dense", masks[4:8], 496)[::-1]]
    source = table(tmp_path / "train_rles.csv", *there)
    assert datasets(source) == ["kidney_2", "kidney_3_dense"]
    with pytest.raises(SourceError, match=r"datasets kidney_2, kidney_3_dense: pick one, as .*train_rles.csv:kidney_2"):
        add_labels(scan_url, source, name="human")
    with pytest.raises(SourceError, match="holds the datasets"):
        add_labels(scan_url, f"{source}:kidney_3", name="human")
    info = add_labels(scan_url, f"{source}:kidney_3_dense", name="human")
    assert info.box == ((4, 0, 0), (8, 14, 11))
    np.testing.assert_array_equal(Scan.open(scan_url).label("human")[4:8], masks[4:8] * np.uint8(255))
    with pytest.raises(SourceError, match=r"0000 .*bears the name of no slice"):
        add_labels(scan_url, table(tmp_path / "u.csv", *rows("k", masks[:3], 0)), name="other")


def bad_tables(masks: Volume) -> dict[str, tuple[list[str], str]]:
    good = rows("k", masks, 492)
    return {
        "twice": ([*good, "k_0494,1 1"], r"The id k_0494 stands there twice \(again in line 11 of"),
        "a row is missing": ([*good[:3], *good[4:]], "from k_0494 to k_0496: rows for the slices between are missing"),
        "no id": ([*good[:3], "nonsense", *good[3:]], r"id 'nonsense' \(in line 5 of"),
        "no dataset": (["0001,1 1"], "is not DATASET_SLICE"),
        "out of range": ([*good[:3], "k_0495,150 6", *good[4:]], r"bad.csv:k, id k_0495: the run 150 6 lies outside"),
        "nothing": ([], "holds no rows"),
    }


@pytest.mark.parametrize("kind", bad_tables(np.zeros(SHAPE, np.bool_)))
def test_bad_tables_name_the_id(tmp_path: Path, scan_url: str, masks: Volume, kind: str) -> None:
    lines, why = bad_tables(masks)[kind]
    with pytest.raises(SourceError, match=why):
        add_labels(scan_url, table(tmp_path / "bad.csv", *lines), name="human")
    assert Scan.open(scan_url).labels() == {}


def test_what_is_no_table(tmp_path: Path, scan_url: str) -> None:
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(SourceError, match="no table of run lengths: its first line is"):
        add_labels(scan_url, str(tmp_path / "other.csv"), name="human")
    with pytest.raises(SourceError, match="does not exist"):
        add_labels(scan_url, str(tmp_path / "absent.csv:k"), name="human")
    assert [is_table(s) for s in ("a.csv", "s3://b/A.CSV:k", "a.csv/b", "masks", "v.h5:a")] == [
        True,
        True,
        False,
        False,
        False,
    ]


def test_long_lines_are_not_kept(tmp_path: Path, scan_url: str) -> None:
    """A table of 40 MB is opened in a few: only where rows lie is kept."""
    import tracemalloc

    from perfuse_ingest.rle import open_table

    source = tmp_path / "big.csv"
    with source.open("w") as file:
        file.write("id,rle\n")
        for k in range(40):
            file.write(f"k_{k:04d},{'1 1 ' * 250_000}1 1\n")
    tracemalloc.start()
    with open_table(str(source), Scan.open(scan_url)) as masks:
        assert masks.shape_zyx == (40, 14, 11)
        _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8e6
