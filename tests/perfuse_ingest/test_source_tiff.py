"""Whatever way a TIFF is stored, whole slices, cut boxes and bands of rows hold the voxels that were written."""

import hashlib
import os
import pickle
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from perfuse.errors import SliceError, SourceError
from perfuse.geometry import Box
from perfuse_ingest.sources import check_dtype, open_source

Volume = np.ndarray[Any, Any]
NO_FIXTURE = [HealthCheck.function_scoped_fixture]


@pytest.fixture(scope="module")
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(3) as pool:
        yield pool


def values(shape: tuple[int, ...], dtype: str) -> Volume:
    rng = np.random.default_rng(sum(shape))
    if dtype == "float32":
        return rng.normal(size=shape).astype(dtype)
    if dtype == "bool":
        return rng.random(shape) < 0.3
    return rng.integers(0, 100, shape).astype(dtype)


@st.composite
def ways(draw: st.DrawFn) -> dict[str, Any]:
    """Keywords of tifffile.imwrite."""
    how: dict[str, Any] = {
        "compression": draw(st.sampled_from([None, "lzw", "zlib", "packbits"])),
        "byteorder": draw(st.sampled_from("<>")),
        "bigtiff": draw(st.booleans()),
    }
    how |= draw(st.sampled_from([{}, {"rowsperstrip": 1}, {"rowsperstrip": 7}, {"tile": (16, 32)}, {"tile": (32, 16)}]))
    if how["compression"] in ("lzw", "zlib"):
        how["predictor"] = draw(st.booleans())
    return how


@st.composite
def boxes(draw: st.DrawFn, shape: tuple[int, int, int]) -> Box:
    cuts = [sorted((draw(st.integers(0, n - 1)), draw(st.integers(0, n - 1)))) for n in shape]
    z, y, x = ((a, b + 1) for a, b in cuts)
    return Box((z[0], y[0], x[0]), (z[1], y[1], x[1]))


def write(folder: Path, volume: Volume, pages: bool, how: dict[str, Any]) -> Path:
    if pages:
        tifffile.imwrite(folder / "stack.tif", volume, photometric="minisblack", metadata=None, **how)
        return folder / "stack.tif"
    for k, plane in enumerate(volume):
        tifffile.imwrite(folder / f"s{k}.tif", plane, photometric="minisblack", **how)
    return folder


@settings(max_examples=150, deadline=None, suppress_health_check=NO_FIXTURE)
@given(
    data=st.data(),
    shape=st.tuples(st.integers(1, 4), st.integers(1, 70), st.integers(1, 70)),
    dtype=st.sampled_from(["uint8", "uint16", "float32"]),
    how=ways(),
    pages=st.booleans(),
)
def test_rows_are_those_of_the_whole(
    tmp_path_factory: pytest.TempPathFactory,
    pool: ThreadPoolExecutor,
    data: st.DataObject,
    shape: tuple[int, int, int],
    dtype: str,
    how: dict[str, Any],
    pages: bool,
) -> None:
    volume, box = values(shape, dtype), data.draw(boxes(shape))
    with open_source(str(write(tmp_path_factory.mktemp("t"), volume, pages, how))) as source:
        assert (source.shape_zyx, source.dtype) == (shape, np.dtype(dtype))
        voxels, digests = source.read(box, pool)
        np.testing.assert_array_equal(voxels, volume[box.slices])
        assert voxels.dtype == np.dtype(dtype)
        assert digests == source.digests(box.start[0], box.stop[0], pool)
        if source.cuts_rows:
            np.testing.assert_array_equal(source.rows(box, pool), volume[box.slices])
        several = shape[1] > how.get("rowsperstrip", how.get("tile", (shape[1],))[0])
        assert source.cuts_rows or not (several or (how["compression"] is None and "tile" not in how))


@pytest.mark.parametrize("dtype", ["bool", "int8", "int16", "int32", "uint32", "int64", "float64"])
@pytest.mark.parametrize("how", [{}, {"compression": "zlib", "rowsperstrip": 3}])
def test_masks_have_any_dtype(tmp_path: Path, pool: ThreadPoolExecutor, dtype: str, how: dict[str, Any]) -> None:
    volume = values((3, 10, 13), dtype)
    source = open_source(str(write(tmp_path, volume, False, how)))
    assert source.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(source.read(Box.whole(volume.shape), pool)[0], volume)
    with pytest.raises(SourceError, match=rf"dtype {dtype} \(s0.tif\); allowed are uint8, uint16"):
        check_dtype(source, ("uint8", "uint16"))


@pytest.mark.parametrize("how", [{}, {"compression": "lzw", "rowsperstrip": 5}, {"compression": "zlib"}])
def test_digests_are_those_of_the_files(tmp_path: Path, pool: ThreadPoolExecutor, how: dict[str, Any]) -> None:
    source = open_source(str(write(tmp_path, values((4, 20, 30), "uint16"), False, how)))
    wanted = [hashlib.sha256((tmp_path / f"s{k}.tif").read_bytes()).digest() for k in (1, 2)]
    assert source.digests(1, 3, pool) == wanted
    assert source.read(Box((1, 3, 4), (3, 5, 9)), pool)[1] == wanted


def test_the_digest_of_a_page_is_that_of_its_segments(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    path = write(tmp_path, values((4, 20, 30), "uint8"), True, {"compression": "lzw", "rowsperstrip": 6})
    with tifffile.TiffFile(path) as tiff:
        places = zip(tiff.pages[2].dataoffsets, tiff.pages[2].databytecounts, strict=True)
    data = path.read_bytes()
    wanted = hashlib.sha256(b"".join(data[o : o + n] for o, n in places)).digest()
    assert open_source(str(path)).digests(2, 3, pool) == [wanted]


def test_large_pages_are_digested_whole(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    volume = np.random.default_rng(0).integers(0, 99, (2, 4200, 4200), np.uint8)
    path = write(tmp_path, volume, True, {"rowsperstrip": 4200})
    assert open_source(str(path)).digests(1, 2, pool) == [hashlib.sha256(volume[1].tobytes()).digest()]


def test_sources_are_shipped_to_workers(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    volume = values((3, 20, 30), "uint16")
    for pages in (False, True):
        (tmp_path / str(pages)).mkdir()
        source = open_source(str(write(tmp_path / str(pages), volume, pages, {})))
        source.read(Box.whole(volume.shape), pool)
        shipped = pickle.loads(pickle.dumps(source))
        np.testing.assert_array_equal(shipped.read(Box.whole(volume.shape), pool)[0], volume)
        assert shipped.identity == source.identity


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_floats_that_are_no_numbers_are_named(tmp_path: Path, pool: ThreadPoolExecutor, bad: float) -> None:
    volume = values((3, 20, 30), "float32")
    volume[1, 7, 9] = bad
    source = open_source(str(write(tmp_path, volume, False, {})))
    with pytest.raises(SliceError, match=r"Slice 1 \(s1.tif .*\) holds -?(nan|inf) at row 7, column 9"):
        source.read(Box.whole(volume.shape), pool)
    with pytest.raises(SliceError, match=r"Slice 1 \(s1.tif .*\) holds -?(nan|inf) at row 7, column 9"):
        source.rows(Box((0, 5, 0), (3, 9, 30)), pool)
    np.testing.assert_array_equal(source.rows(Box((0, 8, 0), (3, 20, 30)), pool), volume[:, 8:])


@pytest.mark.parametrize("how", [{}, {"tile": (256, 256)}, {"compression": "zlib", "rowsperstrip": 64}])
def test_a_band_of_rows_takes_the_memory_of_a_band(
    tmp_path: Path, pool: ThreadPoolExecutor, how: dict[str, Any]
) -> None:
    plane = np.arange(6000 * 4000, dtype=np.uint16).reshape(1, 6000, 4000)
    source = open_source(str(write(tmp_path, plane, False, how)))
    box = Box((0, 3000, 0), (1, 3200, 4000))
    tracemalloc.start()
    voxels = source.rows(box, pool)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_array_equal(voxels, plane[box.slices])
    assert peak < 4 * voxels.nbytes < plane.nbytes / 7


def test_a_narrow_box_of_all_rows_never_holds_the_slice(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    plane = np.arange(6000 * 4000, dtype=np.uint16).reshape(1, 6000, 4000)
    source = open_source(str(write(tmp_path, plane, False, {})))
    tracemalloc.start()
    voxels = source.rows(Box((0, 0, 7), (1, 6000, 9)), pool)
    digests = source.digests(0, 1, pool)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_array_equal(voxels, plane[:, :, 7:9])
    assert digests == [hashlib.sha256((tmp_path / "s0.tif").read_bytes()).digest()]
    assert peak < plane.nbytes / 2


def test_one_compressed_strip_is_not_cut(tmp_path: Path) -> None:
    for k, (how, cuts) in enumerate([({"compression": "lzw"}, False), ({}, True), ({"tile": (16, 16)}, True)]):
        (tmp_path / str(k)).mkdir()
        source = open_source(str(write(tmp_path / str(k), values((2, 40, 40), "uint8"), False, {**how, **_one(how)})))
        assert source.cuts_rows is cuts


def _one(how: dict[str, Any]) -> dict[str, Any]:
    return {} if "tile" in how else {"rowsperstrip": 40}


def test_a_file_that_changes_after_its_check_is_named(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    volume = values((3, 20, 30), "uint16")
    source = open_source(str(write(tmp_path, volume, False, {})))
    tifffile.imwrite(tmp_path / "s1.tif", volume[1].reshape(30, 20), photometric="minisblack")
    with pytest.raises(
        SliceError, match=r"Slice 1 \(.*s1.tif\) .* it changed to \(30, 20\) uint16 since it was checked"
    ):
        source.read(Box.whole(volume.shape), pool)
    (tmp_path / "s1.tif").write_bytes((tmp_path / "s0.tif").read_bytes() + b"more")
    with pytest.raises(SliceError, match=r"Slice 1 \(.*s1.tif\) .* not those that were there when it was checked"):
        source.read(Box.whole(volume.shape), pool)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9, 0.99])
def test_a_torn_multi_page_tiff_is_never_a_shorter_stack(multi_page: Path, share: float) -> None:
    data = multi_page.read_bytes()
    multi_page.write_bytes(data[: int(share * len(data))])
    with pytest.raises(SliceError, match=r"stack\.tif"):
        open_source(str(multi_page))


def test_a_file_that_ends_after_a_page_is_torn(multi_page: Path) -> None:
    with tifffile.TiffFile(multi_page) as tiff:
        page = tiff.pages[7]
        end = max(page.dataoffsets[-1] + page.databytecounts[-1], page.offset + 2 + 12 * len(page.tags) + 4)
        assert tiff.pages[8].offset >= end
    os.truncate(multi_page, end)
    with pytest.raises(SliceError, match=r"Slice 8 \(.*stack.tif\) is lost: the file is truncated after page 7"):
        open_source(str(multi_page))


def test_a_file_that_is_cut_after_its_check_is_named(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    with ZipFile(tmp_path / "s.zip", "w") as archive:
        for file in sorted(write(tmp_path, values((3, 20, 30), "uint16"), False, {}).glob("*.tif")):
            archive.write(file, file.name)
    for url in (tmp_path / "s2.tif", tmp_path / "s.zip"):
        source = open_source(str(url))
        last = source.shape_zyx[0] - 1
        os.truncate(url, source.slices[last].stored.start + 1200)  # type: ignore[attr-defined]
        for read in (source.rows, source.read):
            with pytest.raises(SliceError, match=rf"Slice {last} \(.*s2.tif\) "):
                read(Box((last, 0, 0), (last + 1, 20, 30)), pool)
        with pytest.raises(SliceError, match=rf"Slice {last} \(.*s2.tif\) .* the file ends at byte"):
            source.digests(last, last + 1, pool)


@pytest.mark.parametrize("method", ["read", "rows"])
def test_damage_that_the_header_hides_is_found_when_decoding(
    tmp_path: Path, pool: ThreadPoolExecutor, method: str
) -> None:
    path = tmp_path / "stack.tif"
    volume = values((12, 32, 32), "uint8")
    tifffile.imwrite(path, volume, photometric="minisblack", compression="lzw", rowsperstrip=16, metadata=None)
    with tifffile.TiffFile(path) as tiff:
        offset, count = tiff.pages[7].dataoffsets[1], tiff.pages[7].databytecounts[1]
    data = bytearray(path.read_bytes())
    data[offset : offset + count] = b"\xff" * count
    path.write_bytes(data)
    source = open_source(str(path))
    with pytest.raises(SliceError, match=r"Slice 7 \(.*stack\.tif\)"):
        getattr(source, method)(Box.whole(volume.shape), pool)


def test_several_channels_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "channels.tif"
    tifffile.imwrite(path, np.ones((4, 2, 16, 16), np.uint8), imagej=True, metadata={"axes": "ZCYX"})
    with pytest.raises(SourceError, match="several channels or times"):
        open_source(str(path))


def test_real_stacks_are_read_as_others_read_them(test_data: Path, pool: ThreadPoolExecutor) -> None:
    for path in [*(test_data / "vesselnn").rglob("*.tif"), test_data / "hipct_kidney"]:
        source = open_source(str(path))
        files = sorted(path.glob("*.tif")) if path.is_dir() else [path]
        truth = np.concatenate([np.atleast_3d(tifffile.imread(f).T).T for f in files])
        box = Box.whole(source.shape_zyx)
        np.testing.assert_array_equal(source.read(box, pool)[0], truth)
        if source.cuts_rows:
            np.testing.assert_array_equal(source.rows(box, pool), truth)


def test_reading_waits_for_no_thread_of_its_own(tmp_path: Path, stack_folder: Callable[..., Path]) -> None:
    """The pool's only thread is busy with slices while others wait for theirs."""
    volume = values((6, 20, 30), "uint16")
    source = open_source(str(stack_folder(tmp_path / "s", volume)))
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(4) as callers:
        slabs = list(callers.map(lambda k: source.read(Box((k, 0, 0), (k + 2, 20, 30)), one)[0], [0, 2, 4]))
    np.testing.assert_array_equal(np.concatenate(slabs), volume)
