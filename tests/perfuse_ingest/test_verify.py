"""Every kind of damage is found and named, an empty chunk is not taken for a lost one, and repair gives the bytes back."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from perfuse.catalog import Scan
from perfuse.verify import verify
from perfuse_ingest.ingest import ingest
from perfuse_ingest.shaping import Shaping

Volume = np.ndarray[Any, Any]
Bytes = Callable[[Path], dict[str, str]]
ABOUT: dict[str, Any] = {"voxel_size_um": (50, 50, 50), "specimen": "k1", "organ": "kidney", "mask": False}


@pytest.fixture
def source(tmp_path: Path, stack_folder: Callable[..., Path], noise: Callable[..., Volume]) -> Path:
    volume = noise((70, 600, 70))
    volume[64:, 512:] = 0
    return stack_folder(tmp_path / "slices", volume)


@pytest.fixture
def url(tmp_path: Path, source: Path) -> Path:
    ingest(str(source), str(tmp_path / "k1.ome.zarr"), **ABOUT)
    return tmp_path / "k1.ome.zarr"


def test_a_whole_scan_has_no_fault(url: Path) -> None:
    assert not (url / "0/c/1/1/0").exists(), "all of it is 0"
    report = verify(str(url), with_source=True)
    assert (report.checked, report.faults) == (8, [])


def flip(url: Path) -> None:
    path = url / "0/c/1/0/0"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def shorten(url: Path) -> None:
    path = url / "1/c/0/0/0"
    path.write_bytes(path.read_bytes()[:-1])


def lose(url: Path) -> None:
    (url / "0/c/0/1/0").unlink()


def invent(url: Path) -> None:
    (url / "0/c/1/1").mkdir()
    shutil.copy(url / "0/c/0/1/0", url / "0/c/1/1/0")


DAMAGE = [
    (flip, "0/c/1/0/0 differs from what was written"),
    (shorten, "1/c/0/0/0 differs from what was written"),
    (lose, "0/c/0/1/0 is missing"),
    (invent, "0/c/1/1/0 differs from what was written"),
]


@pytest.mark.parametrize(("spoil", "fault"), DAMAGE, ids=lambda v: getattr(v, "__name__", ""))
def test_a_damaged_shard_is_named_and_repaired(
    url: Path, source: Path, stored_bytes: Bytes, spoil: Callable[[Path], None], fault: str
) -> None:
    whole = stored_bytes(url)
    spoil(url)
    assert verify(str(url)).faults == [fault]
    ingest(str(source), str(url), **ABOUT)
    assert verify(str(url)).faults == [fault], "a complete scan is left alone unless repair is asked for"
    ingest(str(source), str(url), repair=True, **ABOUT)
    assert stored_bytes(url) == whole


def altered(path: Path, *keys: str | int, to: Any) -> None:
    metadata = json.loads(path.read_text())
    inner = metadata
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = to
    path.write_text(json.dumps(metadata))


OME = ("attributes", "ome", "multiscales", 0, "datasets", 1, "coordinateTransformations")
METADATA: list[tuple[str, tuple[str | int, ...], Any, str]] = [
    ("zarr.json", (*OME, 0, "scale"), [100, 100, 101], "scales or translations are not those"),
    ("zarr.json", (*OME, 1, "translation"), [0, 0, 0], "scales or translations are not those"),
    ("zarr.json", ("attributes", "perfuse", "voxel_size_um"), [25, 25, 25], "scales or translations are not those"),
    ("zarr.json", ("attributes", "perfuse", "dtype"), "uint8", "summary dtype is uint8, array 0: uint16"),
    ("zarr.json", ("attributes", "perfuse", "digest"), "0" * 64, "its root is not the digest in the summary"),
    ("zarr.json", ("attributes", "perfuse", "intensity", "p50"), 1, "the percentiles in the summary are not its own"),
    ("1/zarr.json", ("shape",), [35, 300, 34], r"1 is \[35, 300, 34\], the level's shape: \[35, 300, 35\]"),
]


@pytest.mark.parametrize(("file", "keys", "value", "fault"), METADATA)
def test_metadata_that_disagree_are_named(
    url: Path, file: str, keys: tuple[str | int, ...], value: Any, fault: str
) -> None:
    altered(url / file, *keys, to=value)
    faults = verify(str(url)).faults
    assert any(re.search(fault, f) for f in faults), faults


def test_a_replaced_slice_is_named(url: Path, source: Path) -> None:
    path = source / "slice_0007.tif"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert verify(str(url)).faults == []
    assert verify(str(url), with_source=True).faults == ["slice 7 (slice_0007.tif) was replaced"]


def test_exchanged_slices_are_named(url: Path, source: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(source, tmp_path / "moved")
    one, other, kept = moved / "slice_0007.tif", moved / "slice_0008.tif", moved / "kept"
    one.rename(kept)
    other.rename(one)
    kept.rename(other)
    assert verify(str(url), source=str(moved)).faults == [
        "slice 7 (slice_0007.tif) holds what was slice_0008.tif",
        "slice 8 (slice_0008.tif) holds what was slice_0007.tif",
    ]


def test_a_lost_and_a_new_slice_are_named(url: Path, source: Path) -> None:
    (source / "slice_0040.tif").unlink()
    shutil.copy(source / "slice_0069.tif", source / "slice_0070.tif")
    assert verify(str(url), with_source=True).faults == [
        "slice 40 (slice_0040.tif) is no longer there",
        "slice slice_0070.tif was not there",
    ]


def test_a_changed_scan_is_held_against_the_source_as_it_was_changed(source: Path, tmp_path: Path) -> None:
    url = str(tmp_path / "c.ome.zarr")
    shaping = Shaping(crop=(slice(10, 60), slice(None), slice(3, None)), target_um=100.0, window=(0, 2000))
    ingest(str(source), url, shaping=shaping, **ABOUT)
    assert Scan.open(url).shape_zyx == (25, 300, 34)
    assert verify(url, with_source=True).faults == []
    (source / "slice_0020.tif").unlink()
    (source / "slice_0065.tif").unlink()
    assert verify(url, with_source=True).faults == ["slice 10 (slice_0020.tif) is no longer there"]
