"""Ingest is exact: what any reader finds in a scan is what lies in the slices, and the means of it."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from perfuse import volumes
from perfuse.catalog import Scan
from perfuse.errors import ScanError
from perfuse.verify import verify
from perfuse_ingest.ingest import ingest

Volume = np.ndarray[Any, Any]
StackFolder = Callable[..., Path]
ABOUT: dict[str, Any] = {"voxel_size_um": (50, 50, 50), "specimen": "k1", "organ": "kidney", "mask": False}


def whole_pyramid(volume: Volume, voxel_size_um: tuple[float, float, float]) -> list[Volume]:
    """The pyramid by the definition: exact means in rationals, half up, edges replicated."""
    levels = [volume]
    for level in volumes.pyramid_levels(volume.shape, voxel_size_um)[1:]:
        above = levels[-1]
        padded = np.pad(above, [(0, -n % f) for n, f in zip(above.shape, level.factor_zyx, strict=True)], mode="edge")
        shape = [m for n, f in zip(padded.shape, level.factor_zyx, strict=True) for m in (n // f, f)]
        total = padded.reshape(shape).astype(np.int64).sum(axis=(1, 3, 5))
        levels.append(np.floor(total / np.prod(level.factor_zyx) + 0.5).astype(volume.dtype))
    return levels


def assert_same_pyramid(scan_url: Path, volume: Volume, voxel_size_um: tuple[float, float, float]) -> None:
    group = zarr.open_group(scan_url, mode="r")
    wanted = whole_pyramid(volume, voxel_size_um)
    assert Scan.open(str(scan_url)).levels == len(wanted)
    for level, voxels in enumerate(wanted):
        np.testing.assert_array_equal(group[str(level)][:], voxels, err_msg=f"level {level}")  # type: ignore[index]


def test_a_deep_stack_is_stored_exactly(
    tmp_path: Path, stack_folder: StackFolder, noise: Callable[..., Volume]
) -> None:
    volume = noise((197, 83, 131))
    info = ingest(str(stack_folder(tmp_path / "s", volume)), str(tmp_path / "k1.ome.zarr"), **ABOUT)
    assert info.shape_zyx == (197, 83, 131)
    assert_same_pyramid(tmp_path / "k1.ome.zarr", volume, (50, 50, 50))
    scan = Scan.open(str(tmp_path / "k1.ome.zarr"))
    np.testing.assert_array_equal(scan.histogram(), np.bincount(volume.ravel(), minlength=65536))
    assert info.intensity["min"] == volume.min()
    assert info.intensity["max"] == volume.max()
    assert info.intensity["mean"] == pytest.approx(volume.mean())
    assert info.intensity["p50"] == np.percentile(volume, 50, method="inverted_cdf")


def test_what_falls_out_of_the_pass(tmp_path: Path, stack_folder: StackFolder, noise: Callable[..., Volume]) -> None:
    volume = noise((70, 70, 130), "uint8")
    source = stack_folder(tmp_path / "s", volume, first=8, name="k{}.tif")
    info = ingest(str(source), str(tmp_path / "k1.ome.zarr"), **ABOUT)
    inner = zarr.open_group(tmp_path / "k1.ome.zarr" / "perfuse", mode="r")
    names = [row.tobytes().rstrip(b"\0").decode() for row in inner["slice_names"][:]]  # type: ignore[index,union-attr]
    assert names == [f"k{8 + k}.tif" for k in range(70)], "natural order, not that of the alphabet"
    digests = [hashlib.sha256((source / name).read_bytes()).digest() for name in names]
    assert [row.tobytes() for row in inner["slices"][:]] == digests  # type: ignore[index,union-attr]
    assert info.lineage["slices_digest"] == volumes.merkle(digests)
    occupancy = np.asarray(inner["occupancy"])
    assert occupancy.shape == (2, 2, 3, 2)
    last = volume[64:, 64:, 128:]
    assert occupancy[1, 1, 2].tolist() == [last.min(), last.max()]


@pytest.mark.parametrize("how", [{"compression": "lzw"}, {"compression": "zlib", "tile": (16, 16)}, {"bigtiff": True}])
@pytest.mark.parametrize("pages", [True, False])
def test_any_tiff_gives_the_same_voxels(
    tmp_path: Path, stack_folder: StackFolder, noise: Callable[..., Volume], how: dict[str, Any], pages: bool
) -> None:
    volume = noise((9, 40, 50))
    source = tmp_path / "stack.tif"
    if pages:
        tifffile.imwrite(source, volume, photometric="minisblack", byteorder=">", **how)
    else:
        source = stack_folder(tmp_path / "s", volume, byteorder=">", **how)
    ingest(str(source), str(tmp_path / "k1.ome.zarr"), **ABOUT)
    assert_same_pyramid(tmp_path / "k1.ome.zarr", volume, (50, 50, 50))


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=st.tuples(st.integers(1, 140), st.integers(1, 80), st.integers(1, 80)),
    voxel=st.tuples(*[st.sampled_from([1.0, 2.0, 2.5, 5.0])] * 3),
    dtype=st.sampled_from(["uint8", "uint16"]),
)
def test_any_shape_and_spacing_is_exact(
    tmp_path_factory: pytest.TempPathFactory,
    noise: Callable[..., Volume],
    shape: tuple[int, int, int],
    voxel: tuple[float, float, float],
    dtype: str,
) -> None:
    folder, volume = tmp_path_factory.mktemp("any"), noise(shape, dtype)
    tifffile.imwrite(folder / "stack.tif", volume, photometric="minisblack", metadata=None)
    ingest(
        str(folder / "stack.tif"), str(folder / "s.ome.zarr"), voxel_size_um=voxel, specimen="s", organ="o", mask=False
    )
    assert_same_pyramid(folder / "s.ome.zarr", volume, voxel)
    assert verify(str(folder / "s.ome.zarr")).faults == []


def test_real_slices_are_read_back_by_every_reader(tmp_path: Path, test_data: Path) -> None:
    import tensorstore
    from ome_zarr.io import parse_url
    from ome_zarr.reader import Reader
    from ome_zarr_models.v05 import Image

    source, url = test_data / "hipct_kidney", tmp_path / "kidney.ome.zarr"
    ingest(str(source), str(url), **ABOUT)
    truth = np.stack([tifffile.imread(p) for p in sorted(source.glob("*.tif"))])
    image = Image.from_zarr(zarr.open_group(url, mode="r"))
    datasets = image.attributes.ome.multiscales[0].datasets
    assert datasets[1].coordinateTransformations[0].scale == [100, 100, 100]
    store = {"driver": "file", "path": str(url / "0")}
    by_tensorstore = tensorstore.open({"driver": "zarr3", "kvstore": store}).result().read().result()
    np.testing.assert_array_equal(by_tensorstore, truth)
    by_ome_zarr = next(iter(Reader(parse_url(str(url)))())).data
    np.testing.assert_array_equal(np.asarray(by_ome_zarr[0]), truth)
    assert len(by_ome_zarr) == len(datasets)
    assert_same_pyramid(url, truth, (50, 50, 50))


def test_the_same_slices_give_the_same_bytes(
    tmp_path: Path,
    stack_folder: StackFolder,
    noise: Callable[..., Volume],
    stored_bytes: Callable[[Path], dict[str, str]],
) -> None:
    source = stack_folder(tmp_path / "s", noise((130, 70, 70)))
    for copy in ("a", "b"):
        ingest(str(source), str(tmp_path / copy / "k1.ome.zarr"), **ABOUT)
    first = stored_bytes(tmp_path / "a" / "k1.ome.zarr")
    assert first == stored_bytes(tmp_path / "b" / "k1.ome.zarr")
    assert all("lock" not in name for name in first)


def test_a_finished_scan_is_left_alone(
    tmp_path: Path,
    stack_folder: StackFolder,
    noise: Callable[..., Volume],
    capsys: pytest.CaptureFixture[str],
) -> None:
    source, url = stack_folder(tmp_path / "s", noise((5, 20, 20))), tmp_path / "k1.ome.zarr"
    first = ingest(str(source), str(url), **ABOUT)
    times = {p: p.stat().st_mtime_ns for p in url.rglob("*")}
    capsys.readouterr()
    assert ingest(str(source), str(url), **ABOUT) == first
    assert "complete already" in capsys.readouterr().err
    assert times == {p: p.stat().st_mtime_ns for p in url.rglob("*")}


def test_a_finished_scan_is_never_overwritten(
    tmp_path: Path, stack_folder: StackFolder, noise: Callable[..., Volume]
) -> None:
    source, url = stack_folder(tmp_path / "s", noise((5, 20, 20))), str(tmp_path / "k1.ome.zarr")
    ingest(str(source), url, **ABOUT)
    with pytest.raises(ScanError, match=r"its organ is kidney, asked spleen.*not overwritten"):
        ingest(str(source), url, **{**ABOUT, "organ": "spleen"})
    with pytest.raises(ScanError, match=r"voxel_size_um is \[50.0, 50.0, 50.0\], asked \[25.0"):
        ingest(str(source), url, **{**ABOUT, "voxel_size_um": (25, 50, 50)})
    other = stack_folder(tmp_path / "other", noise((5, 20, 20), seed=1))
    with pytest.raises(ScanError, match="other names, sizes or bytes"):
        ingest(str(other), url, **ABOUT)


def test_a_foreign_folder_is_never_overwritten(
    tmp_path: Path, stack_folder: StackFolder, noise: Callable[..., Volume]
) -> None:
    source = str(stack_folder(tmp_path / "s", noise((5, 20, 20))))
    zarr.create_group(tmp_path / "theirs.ome.zarr")
    (tmp_path / "notes.ome.zarr").mkdir()
    (tmp_path / "notes.ome.zarr" / "notes.txt").write_text("mine")
    (tmp_path / "file.ome.zarr").write_text("mine")
    for name, why in [("theirs", "not made by"), ("notes", "not empty"), ("file", "not empty")]:
        with pytest.raises(ScanError, match=why):
            ingest(source, str(tmp_path / f"{name}.ome.zarr"), **ABOUT)
    with pytest.raises(ScanError, match=r"ends in \.ome\.zarr"):
        ingest(source, str(tmp_path / "scan"), **ABOUT)
