"""Every kind of source, by the command line and from an object store: the voxels are those that were written."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np
import pytest
import tifffile
import zarr

from perfuse import storage
from perfuse.geometry import Box
from perfuse_ingest.sources import open_source

pytestmark = pytest.mark.journey


def perfuse(*words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "perfuse.cli", *words], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_archives_and_pages_in_an_object_store(tmp_path: Path, s3_url: str) -> None:
    volume = np.random.default_rng(0).integers(0, 4000, (12, 150, 200), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "stack.tif", volume, photometric="minisblack", compression="lzw", metadata=None)
    (tmp_path / "images").mkdir()
    for k, plane in enumerate(volume):
        tifffile.imwrite(tmp_path / "images" / f"s{k}.tif", plane)
    for name, method in (("stored.zip", 0), ("deflated.zip", ZIP_DEFLATED)):
        with ZipFile(tmp_path / name, "w", method) as archive:
            for file in (tmp_path / "images").iterdir():
                archive.write(file, file.name)
    storage.filesystem(s3_url).put(str(tmp_path), f"{s3_url}/p", recursive=True)
    for name in ("images", "stack.tif", "stored.zip", "deflated.zip"):
        source, local = open_source(f"{s3_url}/p/{name}"), open_source(str(tmp_path / name))
        assert (source.names, source.identity) == (local.names, local.identity)
        with ThreadPoolExecutor(3) as pool:
            voxels, digests = source.read(Box.whole(volume.shape), pool)
            assert digests == local.digests(0, 12, pool)
        np.testing.assert_array_equal(voxels, volume)


VOXELS = np.random.default_rng(3).integers(20, 4000, (9, 70, 80)).astype(np.uint16)


def tiff_slices(folder: Path) -> str:
    for k, plane in enumerate(VOXELS):
        tifffile.imwrite(folder / f"slice_{k:03d}.tif", plane, compression="lzw", byteorder=">", bigtiff=True)
    (folder / "README.txt").write_text("from the beamline")
    return str(folder)


def pages(folder: Path) -> str:
    tifffile.imwrite(folder / "stack.tif", VOXELS, photometric="minisblack", tile=(32, 32), compression="zlib")
    return str(folder / "stack.tif")


def jpeg2000(folder: Path) -> str:
    import imagecodecs

    for k, plane in enumerate(VOXELS):
        (folder / f"{k}.jp2").write_bytes(imagecodecs.jpeg2k_encode(plane, level=0, reversible=True))
    return str(folder)


def zipped(folder: Path) -> str:
    inner = folder / "inner"
    inner.mkdir()
    tiff_slices(inner)
    with ZipFile(folder / "k.zip", "w", ZIP_DEFLATED) as archive:
        for file in inner.iterdir():
            archive.write(file, f"scan/{file.name}")
    return str(folder / "k.zip")


def tarred(folder: Path) -> str:
    import tarfile

    inner = folder / "inner"
    inner.mkdir()
    jpeg2000(inner)
    with tarfile.open(folder / "k.tar", "w") as archive:
        archive.add(inner, "scan")
    return str(folder / "k.tar")


def ome_zarr_04(folder: Path) -> str:
    group = zarr.open_group(folder / "k.ome.zarr", mode="w", zarr_format=2)
    group.create_array("0", data=VOXELS, chunks=(4, 32, 32))
    scale = [{"type": "scale", "scale": [50.0, 50.0, 50.0]}]
    axes = [{"name": a, "type": "space", "unit": "micrometer"} for a in "zyx"]
    datasets = [{"path": "0", "coordinateTransformations": scale}]
    group.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": datasets}]
    return str(folder / "k.ome.zarr")


def n5(folder: Path) -> str:
    import tensorstore

    metadata = {"dataType": "uint16", "dimensions": VOXELS.shape[::-1], "blockSize": [32, 32, 4]}
    metadata |= {"axes": ["x", "y", "z"], "compression": {"type": "gzip"}}
    kvstore = {"driver": "file", "path": f"{folder}/k.n5/s0/"}
    spec = {"driver": "n5", "kvstore": kvstore, "metadata": metadata, "create": True}
    tensorstore.open(spec).result()[...] = VOXELS.T
    return str(folder / "k.n5")


def nifti(folder: Path) -> str:
    import nibabel

    nibabel.save(nibabel.Nifti1Image(VOXELS.T, np.diag([0.05, 0.05, 0.05, 1])), folder / "k.nii.gz")
    return str(folder / "k.nii.gz")


def hdf5(folder: Path) -> str:
    import h5py

    with h5py.File(folder / "k.h5", "w") as file:
        file.create_dataset("exchange/data", data=VOXELS, chunks=(4, 32, 32), compression="gzip")
        file.create_dataset("theta", data=np.arange(3))
    return str(folder / "k.h5:exchange/data")


KINDS: list[Callable[[Path], str]] = [tiff_slices, pages, jpeg2000, zipped, tarred, ome_zarr_04, n5, nifti, hdf5]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_kind_of_source_by_the_command_line(tmp_path: Path, kind: Callable[[Path], str]) -> None:
    (tmp_path / "in").mkdir()
    source, url = kind(tmp_path / "in"), str(tmp_path / "k.ome.zarr")
    words = ["ingest", source, url, "--voxel-size-um", "50", "--specimen", "k", "--organ", "kidney", "--no-mask"]
    planned = perfuse(*words, "--plan")
    assert "9 × 70 × 80 uint16" in planned
    assert not Path(url).exists()
    perfuse(*words)
    np.testing.assert_array_equal(zarr.open_array(f"{url}/0", mode="r")[:], VOXELS)
    assert "as they were written" in perfuse("scan", "verify", url, "--with-source")


def test_slices_from_a_web_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "slices").mkdir()
    tiff_slices(tmp_path / "slices")
    server = subprocess.Popen(
        [sys.executable, "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    try:
        assert server.stdout is not None
        port = re.search(r"port (\d+)", server.stdout.readline())
        assert port is not None
        url = str(tmp_path / "k.ome.zarr")
        about = ["--voxel-size-um", "50", "--specimen", "k", "--organ", "kidney", "--no-mask"]
        perfuse("ingest", f"http://127.0.0.1:{port[1]}/slices", url, *about)
        np.testing.assert_array_equal(zarr.open_array(f"{url}/0", mode="r")[:], VOXELS)
    finally:
        server.terminate()
        server.wait()
        server.stdout.close()  # type: ignore[union-attr]
