"""Labels become 0 and 255 exactly where the mask says, and nothing that is no mask becomes a label."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr

from perfuse import volumes
from perfuse.catalog import LabelInfo, Scan
from perfuse.errors import PerfuseError, ScanError, ShapeMismatchError, SourceError
from perfuse.verify import verify
from perfuse_ingest.ingest import ingest
from perfuse_ingest.labels import add_labels

Volume = np.ndarray[Any, Any]
StackFolder = Callable[..., Path]
SHAPE = (70, 66, 90)
ABOUT: dict[str, Any] = {"voxel_size_um": (50, 50, 50), "specimen": "k1", "organ": "kidney", "mask": False}


@pytest.fixture
def scan_url(tmp_path: Path, stack_folder: StackFolder, noise: Callable[..., Volume]) -> str:
    url = str(tmp_path / "k1.ome.zarr")
    ingest(str(stack_folder(tmp_path / "slices", noise(SHAPE))), url, **ABOUT)
    return url


@pytest.fixture
def mask() -> Volume:
    return np.random.default_rng(3).random(SHAPE) < 0.1


def folder_of(stack_folder: StackFolder, folder: Path, mask: Volume, value: int, dtype: str = "uint8") -> str:
    return str(stack_folder(folder, mask.astype(dtype) * np.array(value, dtype)))


@pytest.mark.parametrize(
    ("value", "dtype"), [(1, "uint8"), (254, "uint16"), (255, "uint8"), (65535, "uint16"), (7, "uint8"), (3, "float32")]
)
def test_masks_of_two_values(
    tmp_path: Path, scan_url: str, stack_folder: StackFolder, mask: Volume, value: int, dtype: str
) -> None:
    info = add_labels(scan_url, folder_of(stack_folder, tmp_path / "m", mask, value, dtype), name="human")
    assert (info.kind, info.coverage, info.box) == ("dense", 1.0, None)
    assert info.foreground == pytest.approx(mask.mean())
    scan = Scan.open(scan_url)
    np.testing.assert_array_equal(scan.label("human")[:], mask * np.uint8(255))
    coarse, padded = scan.group["labels/human/1"], np.pad(mask, ((0, 0), (0, 0), (0, 0)), mode="edge")
    wanted = padded.reshape(35, 2, 33, 2, 45, 2).max(axis=(1, 3, 5))
    np.testing.assert_array_equal(coarse[:], wanted * np.uint8(255))  # type: ignore[index]


@pytest.mark.parametrize("kind", ["nii.gz", "h5", "zarr"])
def test_masks_in_one_volume(tmp_path: Path, scan_url: str, mask: Volume, kind: str) -> None:
    import h5py
    import nibabel

    path, values = tmp_path / f"mask.{kind}", mask.astype(np.uint8)
    if kind == "nii.gz":
        nibabel.save(nibabel.Nifti1Image(values.T, np.eye(4)), path)
    elif kind == "h5":
        with h5py.File(path, "w") as file:
            file.create_dataset("vessels", data=values)
    else:
        zarr.create_array(path, data=values)
    add_labels(scan_url, str(path), name="human")
    np.testing.assert_array_equal(Scan.open(scan_url).label("human")[:], mask * np.uint8(255))


def test_labels_of_a_part(tmp_path: Path, scan_url: str, stack_folder: StackFolder, mask: Volume) -> None:
    part = mask[60:69, 10:40, 5:85]
    source = folder_of(stack_folder, tmp_path / "part", part, 255)
    info = add_labels(scan_url, source, name="part", at_zyx=(60, 10, 5))
    assert info.box == ((60, 10, 5), (69, 40, 85))
    wanted = np.zeros(SHAPE, np.uint8)
    wanted[60:69, 10:40, 5:85] = part * np.uint8(255)
    scan = Scan.open(scan_url)
    np.testing.assert_array_equal(scan.label("part")[:], wanted)
    known = scan.read_known("part", volumes.Box.whole(SHAPE))
    assert known.sum() == part.size
    with pytest.raises(ShapeMismatchError, match=r"\(9, 30, 80\).*reach to \(71, 40, 85\).*scan, whose shape is \(70"):
        add_labels(scan_url, source, name="beyond", at_zyx=(62, 10, 5))
    with pytest.raises(ShapeMismatchError, match=r"have shape \(9, 30, 80\) \(z, y, x\), the scan has \(70, 66, 90\)"):
        add_labels(scan_url, source, name="whole")


def test_sparse_labels(tmp_path: Path, scan_url: str, stack_folder: StackFolder, mask: Volume) -> None:
    source = folder_of(stack_folder, tmp_path / "m", mask, 255)
    info = add_labels(scan_url, source, name="human", coverage=0.65)
    assert (info.kind, info.coverage) == ("sparse", 0.65)
    known = Scan.open(scan_url).read_known("human", volumes.Box.whole(SHAPE))
    np.testing.assert_array_equal(known, mask)


def bad_masks() -> dict[str, tuple[Volume, str]]:
    rng = np.random.default_rng(0)
    two = (rng.random(SHAPE) < 0.1).astype(np.uint8)
    three, mixed = two * 255, two * 255
    three[5, 3, 4] = 128
    mixed[66:] = two[66:]
    return {
        "three values": (three, r"Slice 5 \(slice_0005.tif .*\) holds 128, where 255 marks the vessels"),
        "1 here, 255 there": (mixed, r"Slice 6\d .*holds 1, where 255 marks the vessels"),
        "NaN": (np.where(two * np.arange(90) == 4, np.nan, two).astype(np.float32), r"Slice \d.*holds nan"),
        "empty": (two * 0, "is empty: no voxel is marked"),
    }


@pytest.mark.parametrize("kind", bad_masks())
def test_what_is_no_mask_is_refused(tmp_path: Path, scan_url: str, stack_folder: StackFolder, kind: str) -> None:
    volume, message = bad_masks()[kind]
    with pytest.raises(SourceError, match=message):
        add_labels(scan_url, str(stack_folder(tmp_path / "m", volume)), name="human")
    assert Scan.open(scan_url).labels() == {}
    good = stack_folder(tmp_path / "good", (volume > 0) * np.uint8(255) | np.uint8(kind == "empty") * np.uint8(255))
    assert add_labels(scan_url, str(good), name="human").name == "human"


def test_names_and_coverage_are_checked(scan_url: str) -> None:
    for name, coverage, why in [("../0", 1.0, "name is made of"), ("", 1.0, "name is made of"), ("a", 0.0, "above 0")]:
        with pytest.raises(PerfuseError, match=why):
            add_labels(scan_url, "absent", name=name, coverage=coverage)


def test_labels_are_added_once_and_never_overwritten(
    tmp_path: Path, scan_url: str, stack_folder: StackFolder, mask: Volume
) -> None:
    source = folder_of(stack_folder, tmp_path / "m", mask, 255)
    first = add_labels(scan_url, source, name="human")
    shard = Path(scan_url) / "labels/human/0/c/0/0/0"
    written = shard.stat().st_mtime_ns
    assert add_labels(scan_url, source, name="human") == first
    assert shard.stat().st_mtime_ns == written
    with pytest.raises(ScanError, match="not overwritten"):
        add_labels(scan_url, folder_of(stack_folder, tmp_path / "n", ~mask, 255), name="human")


def test_a_killed_label_resumes(
    tmp_path: Path, scan_url: str, stack_folder: StackFolder, mask: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    from perfuse.labels import LabelWriter

    source = folder_of(stack_folder, tmp_path / "m", mask, 255)

    def stop(self: LabelWriter, info: Callable[..., LabelInfo]) -> LabelInfo:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(LabelWriter, "finish", stop)
        with pytest.raises(KeyboardInterrupt):
            add_labels(scan_url, source, name="human")
    assert Scan.open(scan_url).labels() == {}
    (Path(scan_url) / "labels/human/0/c/1/0/0").write_bytes(b"torn")
    add_labels(scan_url, source, name="human")
    np.testing.assert_array_equal(Scan.open(scan_url).label("human")[:], mask * np.uint8(255))
    assert verify(scan_url).faults == []
    (Path(scan_url) / "labels/human/0/c/0/0/0").write_bytes(b"torn")
    assert verify(scan_url).faults == ["labels/human/0/c/0/0/0 differs from what was written"]


def test_real_stacks_with_their_labels(tmp_path: Path, test_data: Path) -> None:
    from ome_zarr_models.v05 import Image

    images, labels = test_data / "vesselnn/images", test_data / "vesselnn/labels"
    image = images / "poon2015_plaqueVessels_BM4D_denoised.tif"
    truth = labels / "poon2015_plaqueVessels_label_underSegmented.tif"
    url = tmp_path / "mouse.ome.zarr"
    about: dict[str, Any] = {"voxel_size_um": (5, 1, 1), "specimen": "mouse", "organ": "brain"}
    ingest(str(image), str(url), labels=str(truth), coverage=0.65, **about)
    scan = Scan.open(str(url))
    np.testing.assert_array_equal(scan.image[:], tifffile.imread(image))
    np.testing.assert_array_equal(scan.label("human")[:], (tifffile.imread(truth) > 0) * np.uint8(255))
    assert scan.label_info("human").kind == "sparse"
    multiscale = Image.from_zarr(zarr.open_group(url, mode="r"))
    assert multiscale.labels is not None
    assert multiscale.labels.attributes.ome.labels == ["human", "organ"]
    factors = [level.factor_zyx for level in volumes.pyramid_levels(scan.shape_zyx, (5, 1, 1))]
    assert factors == [(1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 2)], "z is halved only once it is no longer the coarsest"


def test_every_real_label_has_the_shape_of_its_image(tmp_path: Path, test_data: Path) -> None:
    from perfuse_ingest.mask_sources import open_masks
    from perfuse_ingest.sources.stack import open_stack

    labels = {p.name.split("_")[0] + p.name.split("_")[1]: p for p in (test_data / "vesselnn/labels").glob("*.tif")}
    for image in (test_data / "vesselnn/images").glob("*.tif"):
        label = labels[image.name.split("_")[0] + image.name.split("_")[1]]
        with open_masks(str(label)) as masks:
            assert masks.shape_zyx == open_stack(str(image)).shape_zyx
            assert masks.planes(0, masks.shape_zyx[0]).any()
