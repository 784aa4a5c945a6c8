"""A crop, a window and other voxels are the same whether a volume is changed whole or slab by slab."""

from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from perfuse.catalog import Scan
from perfuse.errors import SourceError
from perfuse.geometry import Box
from perfuse_ingest.ingest import ingest
from perfuse_ingest.shaping import Shaping
from perfuse_ingest.sources import open_source
from perfuse_ingest.transforms import Resampled

Volume = np.ndarray[Any, Any]
ABOUT: dict[str, Any] = {"specimen": "k1", "organ": "kidney", "mask": False}


@pytest.fixture
def volume(noise: Callable[..., Volume]) -> Volume:
    return noise((90, 50, 70))


@pytest.fixture
def source(tmp_path: Path, volume: Volume, stack_folder: Callable[..., Path]) -> str:
    return str(stack_folder(tmp_path / "s", volume))


def test_a_crop_keeps_its_place_and_its_slices(tmp_path: Path, source: str, volume: Volume) -> None:
    url = str(tmp_path / "c.ome.zarr")
    shaping = Shaping(crop=(slice(10, 80), slice(None), slice(5, 60)))
    info = ingest(source, url, voxel_size_um=(10, 20, 30), shaping=shaping, **ABOUT)
    np.testing.assert_array_equal(Scan.open(url).image[:], volume[10:80, :, 5:60])
    assert info.origin_um == (100, 0, 150)
    assert (info.lineage["first"], info.lineage["slices"]) == ("slice_0010.tif", 70)
    placed = zarr.open_group(url, mode="r").attrs["ome"]["multiscales"][0]["datasets"]  # type: ignore[index, call-overload]
    assert placed[0]["coordinateTransformations"][1]["translation"] == [100, 0, 150]
    assert placed[1]["coordinateTransformations"][1]["translation"] == [105, 10, 150], "the coarsest axis is not halved"


def test_an_empty_crop_is_refused(tmp_path: Path, source: str) -> None:
    shaping = Shaping(crop=(slice(10, 80), slice(60, 70), slice(None)))
    with pytest.raises(SourceError, match=r"leaves no voxel .* shape is \(90, 50, 70\)"):
        ingest(source, str(tmp_path / "c.ome.zarr"), voxel_size_um=(1, 1, 1), shaping=shaping, **ABOUT)


def test_a_window_maps_linearly_and_is_recorded(tmp_path: Path, source: str, volume: Volume) -> None:
    url = str(tmp_path / "w.ome.zarr")
    info = ingest(source, url, voxel_size_um=(1, 1, 1), shaping=Shaping(window=(100, 600)), **ABOUT)
    wanted = np.floor(np.clip((volume.astype(float) - 100) / 500, 0, 1) * 255 + 0.5)
    np.testing.assert_array_equal(Scan.open(url).image[:], wanted)
    assert (info.dtype, info.window) == ("uint8", (100, 600))
    with pytest.raises(SourceError, match="LOW below HIGH"):
        ingest(source, url, voxel_size_um=(1, 1, 1), shaping=Shaping(window=(600, 600)), **ABOUT)


@pytest.mark.parametrize("target_um", [25.0, 8.0, 16.0])
def test_resampled_slab_by_slab_as_whole(source: str, volume: Volume, pool: Executor, target_um: float) -> None:
    with Resampled(open_source(source), (10, 12, 16), target_um) as resampled:
        whole, digests = resampled.read(Box.whole(resampled.shape_zyx), pool)
        depth, rows, columns = resampled.shape_zyx
        assert (depth, rows, columns) == tuple(
            int(n * s / target_um + 0.5) for n, s in zip((90, 50, 70), (10, 12, 16), strict=True)
        )
        parts = [resampled.read(Box((a, 0, 0), (min(a + 7, depth), rows, columns)), pool) for a in range(0, depth, 7)]
    np.testing.assert_array_equal(np.concatenate([p for p, _ in parts]), whole)
    assert [d for _, part in parts for d in part or []] == digests, "each slice is counted once"
    assert len(digests or []) == 90
    assert whole.mean() == pytest.approx(volume.mean(), rel=0.02)


def test_resampling_keeps_a_ramp_where_it_is(tmp_path: Path, stack_folder: Callable[..., Path], pool: Executor) -> None:
    ramp = np.add.outer(np.add.outer(np.arange(60) * 100, np.arange(40) * 10), np.arange(50)).astype(np.uint16)
    shaping = Shaping(target_um=25.0)
    with shaping.of(open_source(str(stack_folder(tmp_path / "r", ramp))), (10, 10, 10)) as coarse:
        voxels, _ = coarse.read(Box.whole(coarse.shape_zyx), pool)
    origin = shaping.origin_um((10, 10, 10))
    assert origin == (7.5, 7.5, 7.5)
    z, y, x = 10, 8, 9
    at = [(o + 25 * k) / 10 for o, k in zip(origin, (z, y, x), strict=True)]
    assert voxels[z, y, x] == pytest.approx(at[0] * 100 + at[1] * 10 + at[2], abs=2), "within 0.02 voxels"
