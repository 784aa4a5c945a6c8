"""Bad slices are named, with file and index, before anything is written."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from perfuse.errors import SliceError, SourceError
from perfuse_ingest.ingest import ingest

StackFolder = Callable[..., Path]
ABOUT: dict[str, Any] = {"voxel_size_um": (50, 50, 50), "specimen": "k1", "organ": "kidney", "mask": False}
SHAPE = (6, 20, 24)


@pytest.fixture
def slices(tmp_path: Path, stack_folder: StackFolder) -> Path:
    volume = np.arange(np.prod(SHAPE), dtype=np.uint16).reshape(SHAPE)
    return stack_folder(tmp_path / "slices", volume)


def plane(shape: tuple[int, ...] = SHAPE[1:], dtype: str = "uint16") -> np.ndarray[Any, Any]:
    return np.ones(shape, dtype)


def drop(folder: Path) -> None:
    (folder / "slice_0003.tif").unlink()


def double(folder: Path) -> None:
    shutil.copy(folder / "slice_0003.tif", folder / "slice_3.tif")


def truncate(folder: Path) -> None:
    path = folder / "slice_0004.tif"
    path.write_bytes(path.read_bytes()[:-10])


def blank(folder: Path) -> None:
    (folder / "slice_0004.tif").write_bytes(b"")


def no_tiff(folder: Path) -> None:
    (folder / "slice_0004.tif").write_text("not an image")


def misfit(folder: Path) -> None:
    tifffile.imwrite(folder / "overview_0006.tif", plane())


def larger(folder: Path) -> None:
    tifffile.imwrite(folder / "slice_0000.tif", plane((21, 24)))


def narrower(folder: Path) -> None:
    tifffile.imwrite(folder / "slice_0002.tif", plane(dtype="uint8"))


def floats(folder: Path) -> None:
    tifffile.imwrite(folder / "slice_0002.tif", plane(dtype="float32"))


def colours(folder: Path) -> None:
    tifffile.imwrite(folder / "slice_0002.tif", plane((20, 24, 3), "uint8"), photometric="rgb")


def paged(folder: Path) -> None:
    tifffile.imwrite(folder / "slice_0002.tif", plane((2, 20, 24)), photometric="minisblack")


def png(folder: Path) -> None:
    (folder / "slice_0006.png").write_bytes(b"\x89PNG")


BAD = [
    (drop, r"slice number 3 is missing, between slice_0002.tif \(index 2\) and slice_0004.tif"),
    (double, r"slice_0003.tif and slice_3.tif have the same slice number"),
    (truncate, r"Slice 4 \(.*slice_0004.tif\) is truncated: its header states [\d,]+ bytes, [\d,]+ are there"),
    (blank, r"Slice 4 \(.*slice_0004.tif\) is no readable TIFF"),
    (no_tiff, r"Slice 4 \(.*slice_0004.tif\) is no readable TIFF"),
    (misfit, r"overview_0006.tif .* does not fit the others, which are named like slice_0000.tif"),
    (larger, r"Slice 0 \(slice_0000.tif .*\) is 21 × 24 uint16; most slices are 20 × 24 uint16"),
    (narrower, r"Slice 2 \(slice_0002.tif .*\) is 20 × 24 uint8; most slices are 20 × 24 uint16"),
    (floats, r"Slice 2 \(slice_0002.tif .*\) is 20 × 24 float32; most slices are 20 × 24 uint16"),
    (colours, r"Slice 2 \(.*slice_0002.tif\) has shape \(20, 24, 3\)"),
    (paged, r"Slice 2 \(.*slice_0002.tif\) has 2 pages"),
    (png, r"slice_0006.png, an image that is no TIFF"),
]


@pytest.mark.parametrize(("spoil", "message"), BAD, ids=lambda v: getattr(v, "__name__", ""))
def test_a_bad_slice_is_named(slices: Path, tmp_path: Path, spoil: Callable[[Path], None], message: str) -> None:
    spoil(slices)
    with pytest.raises(SourceError, match=message):
        ingest(str(slices), str(tmp_path / "k1.ome.zarr"), **ABOUT)
    assert not (tmp_path / "k1.ome.zarr").exists()


def test_texts_are_passed_over_and_said(slices: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (slices / "SOURCE.txt").write_text("from the beamline")
    (slices / ".DS_Store").write_bytes(b"\0")
    (slices / "._slice_0000.tif").write_bytes(b"\0")
    assert ingest(str(slices), str(tmp_path / "k1.ome.zarr"), **ABOUT).shape_zyx == SHAPE
    assert "passed over SOURCE.txt" in capsys.readouterr().err


def test_damage_that_the_header_hides_is_found_when_decoding(tmp_path: Path, multi_page: Path) -> None:
    with tifffile.TiffFile(multi_page) as tiff:
        offset, count = tiff.pages[7].dataoffsets[0], tiff.pages[7].databytecounts[0]
    data = bytearray(multi_page.read_bytes())
    data[offset : offset + count] = b"\xff" * count
    multi_page.write_bytes(data)
    with pytest.raises(SliceError, match=r"Slice 7 \(.*stack\.tif\)"):
        ingest(str(multi_page), str(tmp_path / "k1.ome.zarr"), **ABOUT)
