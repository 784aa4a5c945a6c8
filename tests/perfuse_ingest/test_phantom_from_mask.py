"""A phantom made from a mask, in any format, has exactly that truth."""

import os
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pytest
import tifffile
import zarr

from perfuse.errors import ShapeMismatchError, SourceError
from perfuse_ingest.phantom import write_phantom

DATA = Path(os.environ.get("PERFUSE_TEST_DATA", Path(__file__).parents[2].parent / "shared" / "data"))
SHAPE = (13, 22, 19)
FORMATS = ["nii", "nii.gz", "nii2", "tif", "h5", "zarr", "ome.zarr"]


@pytest.fixture(scope="module")
def mask() -> np.ndarray:
    z, y, x = np.indices(SHAPE)
    tube = np.hypot(y - 11, x - 8 - z / 4) < 4.5
    return tube | (np.random.default_rng(0).random(SHAPE) < 0.02)


def store(mask: np.ndarray, kind: str, folder: Path) -> str:
    """Writes a mask as {0, 255}, or {0, 1} where formats like that; returns its path."""
    path, values = folder / f"mask.{kind}", mask.astype(np.uint8) * 255
    if kind in ("nii", "nii.gz", "nii2"):
        image = {"nii2": nibabel.Nifti2Image}.get(kind, nibabel.Nifti1Image)
        path = folder / f"mask.{kind.replace('nii2', 'nii')}"
        nibabel.save(image(np.asarray(mask.T, np.int32), np.diag([0.03, 0.02, 0.05, 1])), path)
    elif kind == "tif":
        tifffile.imwrite(path, values, photometric="minisblack", compression="lzw")
    elif kind == "h5":
        with h5py.File(path, "w") as file:
            file.create_dataset("vessels", data=values, chunks=(4, 8, 8)).attrs["element_size_um"] = (50, 20, 30)
    elif kind == "zarr":
        zarr.create_array(path, data=values, chunks=(5, 8, 8))
    else:
        group = zarr.open_group(path, mode="w", zarr_format=3)
        group.create_array("0", data=values[None], chunks=(1, 5, 8, 8))
        scale = [{"type": "scale", "scale": [1, 50, 20, 30]}]
        units = [{"name": "c"}] + [{"name": n, "type": "space", "unit": "micrometer"} for n in "zyx"]
        datasets = [{"path": "0", "coordinateTransformations": scale}]
        group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": units, "datasets": datasets}]}
    return str(path)


@pytest.mark.parametrize("kind", FORMATS)
def test_truth_is_the_mask_however_it_is_cut(mask: np.ndarray, kind: str, tmp_path: Path) -> None:
    url = store(mask, kind, tmp_path)
    for planes in (3, 13):
        summary = write_phantom(str(tmp_path / str(planes)), from_mask=url, seed=5, slab_planes=planes)
        labels = np.stack([tifffile.imread(f) for f in sorted((tmp_path / str(planes) / "labels").iterdir())])
        np.testing.assert_array_equal(labels, mask * 255)
        assert summary.vessel_voxels == mask.sum()
    for file in (tmp_path / "3").rglob("*.tif"):
        assert file.read_bytes() == (tmp_path / "13" / file.relative_to(tmp_path / "3")).read_bytes()


def test_hollow_where_wide(mask: np.ndarray, tmp_path: Path) -> None:
    wide = np.zeros((32, 48, 48), bool)
    wide[:, 12:36, 12:36] = True
    write_phantom(str(tmp_path / "p"), from_mask=store(wide, "tif", tmp_path), seed=0)
    image = np.stack([tifffile.imread(f) for f in sorted((tmp_path / "p" / "images").iterdir())]).astype(float)
    assert image[8:24, 12, 14:34].mean() > image[8:24, 6, 14:34].mean() + 150 > image[8:24, 20:28, 20:28].mean() + 400


def test_shape_must_be_the_masks(mask: np.ndarray, tmp_path: Path) -> None:
    url = store(mask, "tif", tmp_path)
    with pytest.raises(ShapeMismatchError, match="leave --shape out"):
        write_phantom(str(tmp_path / "p"), from_mask=url, shape_zyx=(13, 22, 20))
    write_phantom(str(tmp_path / "p"), from_mask=url, shape_zyx=SHAPE)


def test_a_changed_mask_is_another_phantom(mask: np.ndarray, tmp_path: Path) -> None:
    url = store(mask, "tif", tmp_path)
    write_phantom(str(tmp_path / "p"), from_mask=url)
    write_phantom(str(tmp_path / "p"), from_mask=url)
    store(~mask, "tif", tmp_path)
    with pytest.raises(SourceError, match="mask_digest"):
        write_phantom(str(tmp_path / "p"), from_mask=url)


def real(name: str) -> str:
    if not (DATA / name).exists():
        pytest.skip(f"real data absent: {DATA / name}")
    return str(DATA / name)


def test_rat_kidney_becomes_a_phantom(tmp_path: Path) -> None:
    """A crop, stored again as NIfTI: the whole takes minutes."""
    source = nibabel.load(real("rat_kidney/pred_ccd_1.nii.gz"))
    crop = np.asarray(source.dataobj[560:640, 240:320, 480:520])
    nibabel.save(nibabel.Nifti1Image(crop, np.diag([*source.header.get_zooms(), 1])), tmp_path / "crop.nii.gz")
    summary = write_phantom(str(tmp_path / "p"), from_mask=str(tmp_path / "crop.nii.gz"))
    labels = np.stack([tifffile.imread(f) for f in sorted((tmp_path / "p" / "labels").iterdir())])
    np.testing.assert_array_equal(labels > 0, crop.T > 0)
    assert summary.voxel_size_um == pytest.approx((22.6, 22.6, 22.6))
    assert 0 < summary.vessel_voxels == crop.sum()
