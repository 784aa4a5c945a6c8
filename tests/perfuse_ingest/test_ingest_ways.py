"""However an ingest is worked (whole slabs, bands, threads, Dask's or Ray's workers), it stores the same."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from perfuse.catalog import Scan
from perfuse.errors import PlanError, ServerError, SliceError, SourceError
from perfuse.verify import verify
from perfuse.volumes import Layout
from perfuse_ingest import plan as plans
from perfuse_ingest import schedulers
from perfuse_ingest.ingest import ingest
from perfuse_ingest.job import About, prepare
from perfuse_ingest.shaping import Shaping

Volume = np.ndarray[Any, Any]
Bytes = Callable[[Path], dict[str, str]]
ABOUT: dict[str, Any] = {"voxel_size_um": (50, 50, 50), "specimen": "k1", "organ": "kidney", "mask": False}
SMALL = Layout(chunk=32, shard_chunks=(1, 2, 2))


@pytest.fixture
def source(tmp_path: Path, stack_folder: Callable[..., Path], noise: Callable[..., Volume]) -> Path:
    return stack_folder(tmp_path / "slices", noise((150, 140, 90)), compression="zlib")


@pytest.fixture
def whole(tmp_path: Path, source: Path, stored_bytes: Bytes) -> dict[str, str]:
    ingest(str(source), str(tmp_path / "whole" / "k1.ome.zarr"), layout=SMALL, **ABOUT)
    return stored_bytes(tmp_path / "whole" / "k1.ome.zarr")


def little_memory(monkeypatch: pytest.MonkeyPatch, source: Path, layout: Layout, rows: int) -> int:
    """A limit in which bands of so many shard rows fit and higher ones do not."""
    monkeypatch.setattr(plans, "PROCESS_BYTES", 0)
    monkeypatch.setattr(plans.os, "cpu_count", lambda: 2)
    job = prepare(str(source), "/nowhere/k1.ome.zarr", About("k1", "kidney", "k1", (50, 50, 50)), Shaping(), layout)
    form = Layout(chunk=layout.chunk, shard_chunks=(1, rows, layout.shard_chunks[2]))
    return plans._banded(job.source, job.levels, form, 2).peak_bytes


def test_bands_store_what_whole_slabs_do(
    tmp_path: Path, source: Path, whole: dict[str, str], stored_bytes: Bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = little_memory(monkeypatch, source, SMALL, 2)
    ingest(str(source), str(tmp_path / "k1.ome.zarr"), layout=SMALL, memory_bytes=limit, **ABOUT)
    assert stored_bytes(tmp_path / "k1.ome.zarr") == whole


def test_the_lowest_band_stores_the_same_voxels_in_more_objects(
    tmp_path: Path, source: Path, whole: dict[str, str], stored_bytes: Bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = str(tmp_path / "k1.ome.zarr")
    limit = little_memory(monkeypatch, source, SMALL, 1)
    ingest(str(source), url, layout=SMALL, memory_bytes=limit, **ABOUT)
    scan, other = Scan.open(url), Scan.open(str(tmp_path / "whole" / "k1.ome.zarr"))
    assert len(stored_bytes(tmp_path / "k1.ome.zarr")) > len(whole)
    for level in range(scan.levels):
        np.testing.assert_array_equal(scan.group[str(level)][:], other.group[str(level)][:])  # type: ignore[index]
    assert scan.info.intensity == other.info.intensity
    assert scan.info.lineage == other.info.lineage
    assert verify(url).faults == []
    with pytest.raises(PlanError, match=r"need [\d.]+ GiB of memory even in bands of 32 rows; [\d.]+ GiB may be used"):
        ingest(str(source), str(tmp_path / "k2.ome.zarr"), layout=SMALL, memory_bytes=limit // 2, **ABOUT)
    assert not (tmp_path / "k2.ome.zarr").exists()


def test_on_a_dask_cluster(
    tmp_path: Path, source: Path, whole: dict[str, str], stored_bytes: Bytes, dask_cluster: str
) -> None:
    ingest(str(source), str(tmp_path / "k1.ome.zarr"), layout=SMALL, scheduler=dask_cluster, **ABOUT)
    assert stored_bytes(tmp_path / "k1.ome.zarr") == whole


def test_a_dask_cluster_that_is_not_there(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedulers, "ANSWER_S", 1.0)
    with pytest.raises(ServerError, match=r"No Dask scheduler answers at tcp://127\.0\.0\.1:9"):
        ingest(str(source), str(tmp_path / "k1.ome.zarr"), scheduler="tcp://127.0.0.1:9", **ABOUT)
    with pytest.raises(SourceError, match="A scheduler is threads, ray, or the address"):
        ingest(str(source), str(tmp_path / "k1.ome.zarr"), scheduler="slurm", **ABOUT)


def hide_damage(source: Path) -> None:
    """Spoil the stored bytes of a slice whose header is sound."""
    path = source / "slice_0077.tif"
    with tifffile.TiffFile(path) as tiff:
        offset, count = tiff.pages[0].dataoffsets[0], tiff.pages[0].databytecounts[0]
    data = bytearray(path.read_bytes())
    data[offset : offset + count] = b"\xff" * count
    path.write_bytes(data)


BAD = r"\ASlice 77 \(.*slice_0077\.tif\) [^\n]*\Z"


def test_a_slice_that_a_dask_worker_cannot_decode_is_named(tmp_path: Path, source: Path, dask_cluster: str) -> None:
    hide_damage(source)
    with pytest.raises(SliceError, match=BAD):
        ingest(str(source), str(tmp_path / "k1.ome.zarr"), layout=SMALL, scheduler=dask_cluster, **ABOUT)


def test_a_slice_that_ray_cannot_decode_is_named(tmp_path: Path, source: Path, ray_here: None) -> None:
    hide_damage(source)
    with pytest.raises(SliceError, match=BAD):
        ingest(str(source), str(tmp_path / "k1.ome.zarr"), layout=SMALL, scheduler="ray", **ABOUT)


def test_on_ray(tmp_path: Path, source: Path, whole: dict[str, str], stored_bytes: Bytes, ray_here: None) -> None:
    ingest(str(source), str(tmp_path / "k1.ome.zarr"), layout=SMALL, scheduler="ray", **ABOUT)
    assert stored_bytes(tmp_path / "k1.ome.zarr") == whole
