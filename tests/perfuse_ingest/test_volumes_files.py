"""Volumes in one file, against the libraries that wrote them: NIfTI, HDF5, NumPy."""

import gzip
import pickle
import tempfile
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import h5py
import nibabel
import numpy as np
import pytest

from perfuse.errors import PlanError, SliceError, SourceError
from perfuse.geometry import Box
from perfuse_ingest.sources import open_source
from perfuse_ingest.sources.volumes import open_volume

Volume = np.ndarray[Any, Any]
SHAPE = (13, 22, 19)
WHOLE = Box.whole(SHAPE)
PART = Box((3, 5, 2), (9, 20, 17))


def values(dtype: str) -> Volume:
    return np.random.default_rng(0).integers(0, 100, SHAPE).astype(dtype)


def write_nifti(path: Path, voxels: Volume, second: bool = False, unit: str = "mm", big_endian: bool = False) -> str:
    kind = nibabel.Nifti2Image if second else nibabel.Nifti1Image
    endian = {"header": kind.header_class(endianness=">")} if big_endian else {}
    image = kind(voxels.T, np.diag([0.03, 0.02, 0.05, 1]), dtype=voxels.dtype, **endian)
    image.header.set_xyzt_units(unit)
    nibabel.save(image, path)
    return str(path)


def write_hdf5(path: Path, voxels: Volume, **how: Any) -> str:
    with h5py.File(path, "w") as file:
        file.create_dataset("seg/vessels", data=voxels, **how).attrs["element_size_um"] = (50, 20, 30)
    return str(path)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "int64", "float32", "float64"])
@pytest.mark.parametrize("second", [False, True])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_nifti(tmp_path: Path, pool: Executor, dtype: str, second: bool, suffix: str) -> None:
    wanted = values(dtype)
    with open_volume(write_nifti(tmp_path / f"v{suffix}", wanted, second)) as volume:
        assert (volume.shape_zyx, volume.dtype) == (SHAPE, np.dtype(dtype))
        assert volume.voxel_size_um == (50.0, 20.0, 30.0)
        read, digests = volume.read(WHOLE, pool)
        np.testing.assert_array_equal(read, wanted)
        np.testing.assert_array_equal(volume.rows(PART, pool), wanted[PART.slices])
        assert digests is None
        with pickle.loads(pickle.dumps(volume)) as again:
            np.testing.assert_array_equal(again.read(WHOLE, pool)[0], wanted)
            assert again.identity == volume.identity


def test_nifti_of_the_other_byte_order(tmp_path: Path, pool: Executor) -> None:
    wanted = values("int32")
    volume = open_volume(write_nifti(tmp_path / "v.nii", wanted, big_endian=True))
    read, _ = volume.read(WHOLE, pool)
    np.testing.assert_array_equal(read, wanted)
    assert read.dtype == np.dtype("int32")


@pytest.mark.parametrize(("unit", "um"), [("unknown", 30), ("mm", 30), ("micron", 0.03), ("meter", 30000)])
def test_units_of_nifti(tmp_path: Path, unit: str, um: float) -> None:
    volume = open_volume(write_nifti(tmp_path / "v.nii", values("uint8"), unit=unit))
    assert volume.voxel_size_um is not None
    assert volume.voxel_size_um[2] == pytest.approx(um)


@pytest.mark.parametrize("how", [{}, {"chunks": (4, 8, 8), "compression": "gzip"}])
@pytest.mark.parametrize("dtype", ["uint8", ">u2", "int32", "float32", "bool"])
def test_hdf5(tmp_path: Path, pool: Executor, dtype: str, how: dict[str, Any]) -> None:
    wanted = values(dtype)
    path = write_hdf5(tmp_path / "v.h5", wanted, **how)
    for url in (path, f"{path}:seg/vessels", f"{path}:/seg/vessels"):
        with open_source(url) as volume:
            assert (volume.shape_zyx, volume.voxel_size_um) == (SHAPE, (50.0, 20.0, 30.0))
            np.testing.assert_array_equal(volume.read(WHOLE, pool)[0], wanted)
            np.testing.assert_array_equal(volume.rows(PART, pool), wanted[PART.slices])
            assert volume.read(PART, pool)[0].dtype == volume.dtype == np.dtype(dtype).newbyteorder("=")
            with pickle.loads(pickle.dumps(volume)) as again:
                np.testing.assert_array_equal(again.read(WHOLE, pool)[0], wanted)


def test_npy(tmp_path: Path, pool: Executor) -> None:
    wanted = values(">u2")
    np.save(tmp_path / "v.npy", wanted)
    volume = open_volume(str(tmp_path / "v.npy"))
    np.testing.assert_array_equal(volume.rows(PART, pool), wanted[PART.slices])
    np.testing.assert_array_equal(volume.read(WHOLE, pool)[0], wanted)


@pytest.mark.parametrize("kind", ["v.nii", "v.nii.gz", "v.h5", "v.npy"])
def test_a_changed_file_is_another(tmp_path: Path, kind: str) -> None:
    def written(voxels: Volume) -> str:
        if kind == "v.npy":
            np.save(tmp_path / kind, voxels)
            return str(tmp_path / kind)
        return (write_hdf5 if kind == "v.h5" else write_nifti)(tmp_path / kind, voxels)

    voxels = values("uint16")
    with open_volume(written(voxels)) as before:
        identity = before.identity
    voxels[6, 7, 8] += 1
    with open_volume(written(voxels)) as after:
        assert after.identity != identity


def damaged(kind: str, folder: Path) -> str:
    path = folder / kind
    voxels = values("uint16")
    if kind == "cut.nii":
        path.write_bytes(Path(write_nifti(folder / "whole.nii", voxels)).read_bytes()[:-2000])
    elif kind == "cut.nii.gz":
        path.write_bytes(gzip.compress(Path(write_nifti(folder / "whole.nii", voxels)).read_bytes()[:-2000]))
    elif kind == "torn.nii.gz":
        noise = np.random.default_rng(0).integers(0, 2**16, SHAPE).astype(np.uint16)
        path.write_bytes(Path(write_nifti(folder / "whole.nii.gz", noise)).read_bytes()[:-3000])
    elif kind == "scaled.nii":
        image = nibabel.Nifti1Image(voxels, np.eye(4))
        image.header.set_slope_inter(2, 0)
        nibabel.save(image, path)
    elif kind == "colours.nii":
        rgb = np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")])
        nibabel.save(nibabel.Nifti1Image(rgb, np.eye(4)), path)
    elif kind == "times.nii":
        nibabel.save(nibabel.Nifti1Image(np.zeros((3, 4, 5, 2), np.uint8), np.eye(4)), path)
    elif kind == "two.h5":
        with h5py.File(path, "w") as file:
            file["a"], file["b"] = voxels, voxels
    elif kind == "chunk.h5":
        write_hdf5(path, voxels, chunks=(4, 8, 8), compression="gzip")
        with h5py.File(path) as file:
            where = file["seg/vessels"].id.get_chunk_info_by_coord((8, 8, 8))
        content = bytearray(path.read_bytes())
        content[where.byte_offset : where.byte_offset + where.size] = b"\x55" * where.size
        path.write_bytes(content)
    elif kind == "fortran.npy":
        np.save(path, np.asfortranarray(voxels))
    elif kind == "flat.npy":
        np.save(path, voxels[0])
    elif not kind.startswith("absent"):
        path.write_bytes(b"no volume at all" * 50)
    return str(path)


@pytest.mark.parametrize(
    ("kind", "error", "says"),
    [
        ("cut.nii", SliceError, "ends within plane 10 of 13: the file is truncated"),
        ("cut.nii.gz", SliceError, "ends within plane 10 of 13: the file is truncated"),
        ("torn.nii.gz", SliceError, r"Plane \d+ of .* cannot be unpacked"),
        ("scaled.nii", SourceError, "scl_slope 2"),
        ("colours.nii", SourceError, "holds integers or floats"),
        ("times.nii", SourceError, r"has shape \(2, 5, 4, 3\)"),
        ("two.h5", SourceError, "datasets a, b: pick one"),
        ("chunk.h5", SliceError, "Planes 0 to 12 .* cannot be decoded"),
        ("fortran.npy", SourceError, "Fortran order"),
        ("flat.npy", SourceError, r"has shape \(22, 19\)"),
        ("absent.nii", SourceError, "does not exist"),
        ("absent.h5", SourceError, "does not exist"),
        ("junk.nii", SourceError, "is no NIfTI file"),
        ("junk.nii.gz", SliceError, "cannot be unpacked"),
        ("junk.h5", SourceError, "cannot be read as HDF5"),
        ("junk.npy", SourceError, "is no .npy file"),
    ],
)
def test_damage_is_named(tmp_path: Path, pool: Executor, kind: str, error: type[Exception], says: str) -> None:
    url = damaged(kind, tmp_path)
    with pytest.raises(error, match=says) as caught, open_source(url) as volume:
        volume.read(Box.whole(volume.shape_zyx), pool)
    assert kind in str(caught.value)


def test_files_have_no_levels(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="has no levels"):
        open_volume(write_nifti(tmp_path / "v.nii", values("uint8")), level=1)


def test_unpacking_needs_room_and_leaves_nothing(
    tmp_path: Path, pool: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    with open_volume(write_nifti(tmp_path / "v.nii.gz", values("int32"))) as volume:
        volume.read(WHOLE, pool)
        assert list(scratch.iterdir()) == []
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 5}))
    message = r"takes 22,088 bytes in .*scratch, where 5 are free"
    with open_volume(str(tmp_path / "v.nii.gz")) as volume, pytest.raises(PlanError, match=message):
        volume.read(WHOLE, pool)


def test_real_placenta_reads_as_h5py_reads_it(test_data: Path, pool: Executor) -> None:
    path = test_data / "placenta_labels/vessels_256cube_LABELS.h5"
    with open_source(str(path)) as volume, h5py.File(path) as file:
        part = Box((60, 0, 0), (70, 256, 256))
        assert volume.shape_zyx == (256, 256, 256)
        np.testing.assert_array_equal(volume.read(part, pool)[0], file["data"][60:70])


@pytest.mark.parametrize("name", ["pred_ccd_1", "pred_raw_1"])
def test_real_rat_kidney_reads_as_nibabel_reads_it(test_data: Path, pool: Executor, name: str) -> None:
    path = test_data / f"rat_kidney/{name}.nii.gz"
    image = nibabel.load(path)
    with open_source(str(path)) as volume:
        assert volume.shape_zyx == (903, 571, 750)
        assert volume.voxel_size_um == pytest.approx((22.6, 22.6, 22.6))
        read, _ = volume.read(Box((100, 0, 0), (110, 571, 750)), pool)
        np.testing.assert_array_equal(read, np.asarray(image.dataobj[:, :, 100:110]).T)
        assert read.dtype == {"pred_ccd_1": np.uint8, "pred_raw_1": np.int32}[name]
