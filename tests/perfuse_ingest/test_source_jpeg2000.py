"""JPEG 2000 slices: what the header says is what is decoded; a file that ends early is named."""

import hashlib
import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from perfuse.errors import SliceError, SourceError
from perfuse.geometry import Box
from perfuse_ingest.sources import open_source

Volume = np.ndarray[Any, Any]
SHAPE = (3, 40, 50)


def smooth(shape: tuple[int, ...], dtype: str = "uint16") -> Volume:
    ramp = np.add.outer(np.arange(shape[0]), np.add.outer(np.arange(shape[1]), np.arange(shape[2])))
    return (ramp % 251 + np.random.default_rng(0).integers(0, 4, shape)).astype(dtype)


def write(folder: Path, volume: Volume, ending: str = "jp2", **how: Any) -> Path:
    folder.mkdir()
    codec = "jp2" if ending in ("jp2", "jpx") else "j2k"
    for k, plane in enumerate(volume):
        (folder / f"s{k}.{ending}").write_bytes(imagecodecs.jpeg2k_encode(plane, level=0, codecformat=codec, **how))
    return folder


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 60), st.integers(1, 60)),
    dtype=st.sampled_from(["uint8", "uint16", "int16"]),
    ending=st.sampled_from(["jp2", "j2k", "jpx", "j2c"]),
)
def test_lossless_slices_are_read_back(
    tmp_path_factory: pytest.TempPathFactory, shape: tuple[int, int, int], dtype: str, ending: str
) -> None:
    volume = smooth(shape, dtype)
    folder = write(tmp_path_factory.mktemp("j") / "s", volume, ending)
    source = open_source(str(folder))
    assert (source.shape_zyx, source.dtype, source.cuts_rows) == (shape, np.dtype(dtype), False)
    with ThreadPoolExecutor(2) as pool:
        voxels, digests = source.read(Box.whole(shape), pool)
        np.testing.assert_array_equal(voxels, volume)
        wanted = [hashlib.sha256((folder / name).read_bytes()).digest() for name in source.names]
        assert digests == source.digests(0, shape[0], pool) == wanted
        part = Box((0, shape[1] // 2, 0), (1, shape[1], 1))
        np.testing.assert_array_equal(source.read(part, pool)[0], volume[part.slices])


@pytest.mark.parametrize(("bits", "dtype"), [(7, "uint8"), (12, "uint16"), (16, "uint16")])
def test_the_header_knows_the_depth(tmp_path: Path, bits: int, dtype: str) -> None:
    volume = smooth(SHAPE, dtype) % 100
    with ThreadPoolExecutor(1) as pool:
        source = open_source(str(write(tmp_path / "s", volume.astype(dtype), bitspersample=bits)))
        np.testing.assert_array_equal(source.read(Box.whole(SHAPE), pool)[0], volume)


def tiled(plane: Volume) -> bytes:
    """By another writer, in tiles, which the decoder would leave empty without a word."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(plane).save(file, "JPEG2000", tile_size=(16, 16), no_jp2=True)
    return file.getvalue()


@pytest.mark.parametrize("encode", [tiled, lambda p: imagecodecs.jpeg2k_encode(p, level=0, codecformat="jp2")])
@pytest.mark.parametrize("ending", ["jp2", "j2k"])
@pytest.mark.parametrize("lost", [1, 2, 40, 500])
def test_a_file_that_ends_early_is_named(
    tmp_path: Path, encode: Callable[[Volume], bytes], ending: str, lost: int
) -> None:
    for k, plane in enumerate(smooth(SHAPE, "uint8")):
        (tmp_path / f"s{k}.{ending}").write_bytes(encode(plane)[: -lost if k == 1 else None])
    with pytest.raises(SliceError, match=rf"Slice 1 \(.*s1.{ending}\) is .*truncated"):
        open_source(str(tmp_path))


def test_tiles_are_read(tmp_path: Path) -> None:
    volume = smooth(SHAPE, "uint8")
    for k, plane in enumerate(volume):
        (tmp_path / f"s{k}.j2k").write_bytes(tiled(plane))
    with ThreadPoolExecutor(1) as pool:
        np.testing.assert_array_equal(open_source(str(tmp_path)).read(Box.whole(SHAPE), pool)[0], volume)


def test_what_was_cut_after_the_check_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path / "s", smooth(SHAPE), "j2k")
    source, data = open_source(str(folder)), (folder / "s2.j2k").read_bytes()
    (folder / "s2.j2k").write_bytes(data[:-300] + bytes(300))
    with (
        ThreadPoolExecutor(1) as pool,
        pytest.raises(SliceError, match=r"Slice 2 \(.*s2.j2k\) is no readable JPEG 2000: it is truncated"),
    ):
        source.read(Box.whole(SHAPE), pool)


def test_several_components_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "s", smooth(SHAPE, "uint8"))
    rgb = np.zeros((*SHAPE[1:], 3), np.uint8)
    (tmp_path / "s" / "s1.jp2").write_bytes(imagecodecs.jpeg2k_encode(rgb, level=0))
    with pytest.raises(SliceError, match=r"Slice 1 \(.*s1.jp2\) has 3 components"):
        open_source(str(tmp_path / "s"))


@pytest.mark.parametrize("data", [b"", b"no image at all, but text", b"\x00\x00\x00\x0cjP  \r\n\x87\n"])
def test_what_is_no_image_is_named(tmp_path: Path, data: bytes) -> None:
    write(tmp_path / "s", smooth(SHAPE))
    (tmp_path / "s" / "s2.jp2").write_bytes(data)
    with pytest.raises(SourceError, match=r"Slice 2 \(.*s2.jp2\) is no readable JPEG 2000"):
        open_source(str(tmp_path / "s"))
