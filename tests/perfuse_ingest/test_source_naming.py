"""The order of slices is that of their numbers; what is missing, double or does not fit is named."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfuse.errors import SliceError, SourceError
from perfuse.geometry import Box
from perfuse_ingest.sources import open_source
from perfuse_ingest.sources.naming import in_order, slices_among

StackFolder = Callable[..., Path]


@given(first=st.integers(0, 2000), count=st.integers(2, 30), width=st.integers(1, 6), seed=st.randoms())
def test_order_is_that_of_the_numbers(first: int, count: int, width: int, seed: "np.random.Generator") -> None:
    names = [f"kidney_5_50um_{first + k:0{width}d}_v2.tif" for k in range(count)]
    shuffled = list(names)
    seed.shuffle(shuffled)  # type: ignore[arg-type]
    assert in_order("f", shuffled) == names


@given(numbers=st.sets(st.integers(0, 40), min_size=2))
def test_gaps_are_recorded_or_refused(numbers: set[int]) -> None:
    first, last = min(numbers), max(numbers)
    missing = set(range(first, last + 1)) - numbers
    names = [f"s{n}.tif" for n in sorted(numbers)]
    if missing:
        with pytest.raises(SliceError, match=rf"slice number {min(missing)}\b.* is missing, between"):
            in_order("f", names)
    if len(missing) > len(numbers):
        with pytest.raises(SliceError, match=rf"{len(missing)} slice numbers are missing between"):
            in_order("f", names, allow_gaps=True)
    else:
        wanted = [n if n in missing else f"s{n}.tif" for n in range(first, last + 1)]
        assert in_order("f", names, allow_gaps=True) == wanted


def test_missing_slices_read_as_zeros(tmp_path: Path, stack_folder: StackFolder) -> None:
    volume = np.random.default_rng(0).integers(1, 99, (9, 20, 30), dtype=np.uint16)
    folder = stack_folder(tmp_path / "s", volume, first=95, name="k{}.tif")
    whole = open_source(str(folder)).identity
    for number in (98, 99):
        (folder / f"k{number}.tif").unlink()
    with pytest.raises(SliceError, match=r"slice number 98 to 99 is missing, between k97.tif \(index 2\) and k100.tif"):
        open_source(str(folder))
    source = open_source(str(folder), allow_gaps=True)
    volume[3:5] = 0
    with ThreadPoolExecutor(2) as pool:
        voxels, digests = source.read(Box((2, 0, 0), (6, 20, 30)), pool)
        np.testing.assert_array_equal(source.rows(Box((2, 5, 0), (6, 9, 30)), pool), volume[2:6, 5:9])
        assert source.digests(2, 6, pool) == digests
    np.testing.assert_array_equal(voxels, volume[2:6])
    assert source.missing == (3, 4)
    assert source.names[2:6] == ("k97.tif", "(missing 98)", "(missing 99)", "k100.tif")
    assert digests is not None
    assert [any(d) for d in digests] == [True, False, False, True]
    assert source.identity != whole


def test_a_name_may_hold_other_numbers(tmp_path: Path, stack_folder: StackFolder) -> None:
    volume = np.arange(12 * 16, dtype=np.uint16).reshape(12, 4, 4)
    stack = open_source(str(stack_folder(tmp_path / "s", volume, first=95, name="kidney_5_50um_{}_v2.tif")))
    assert stack.names[4:6] == ("kidney_5_50um_99_v2.tif", "kidney_5_50um_100_v2.tif")


def test_of_several_numbers_the_last_counts() -> None:
    names = [f"{99 - k}C_slice{k}_of_20.tif" for k in range(8, 12)]
    assert in_order("f", names[::-1]) == names


def test_names_are_part_of_the_identity(tmp_path: Path, stack_folder: StackFolder) -> None:
    volume = np.ones((3, 20, 30), np.uint8)
    one, other = (open_source(str(stack_folder(tmp_path / n, volume, name=n + "{}.tif"))) for n in "ab")
    assert one.identity != other.identity


def test_what_is_no_image_is_passed_over() -> None:
    others = [
        ".DS_Store",
        "._s1.tif",
        "README.md",
        "SOURCE.txt",
        "Thumbs.db",
        "a.csv",
        "b.json",
        "c.xml",
        "d.log",
        "e.info",
    ]
    assert slices_among("f", ["s1.tif", "s2.tif", *others]) == (["s1.tif", "s2.tif"], others)


@pytest.mark.parametrize("other", ["a.png", "a.JPG", "a.dcm", "a.nii", "a.nii.gz", "a.h5", "a.zip"])
def test_other_images_are_errors(other: str) -> None:
    with pytest.raises(SourceError, match=rf"f holds {other}, an image that is no TIFF"):
        slices_among("f", ["s1.tif", other])


def test_a_stack_has_one_format() -> None:
    with pytest.raises(SourceError, match=r"f holds both s1.tif and s2.jp2"):
        slices_among("f", ["s1.tif", "s2.jp2"])


def test_sources_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("no image")
    why = {
        "empty": "holds no TIFF slices .* and no JPEG 2000 slices",
        "absent": "does not exist. Give a folder",
        "absent.tif": "does not exist",
        "absent.zip": "does not exist",
        "notes.txt": "is no TIFF, JPEG 2000 or archive",
    }
    for name, words in why.items():
        with pytest.raises(SourceError, match=rf"{name} {words}"):
            open_source(str(tmp_path / name))
