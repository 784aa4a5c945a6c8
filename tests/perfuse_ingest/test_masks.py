"""Any source is a mask when it holds two values, or probabilities; nothing else is."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import nibabel
import numpy as np
import pytest
import tensorstore
import tifffile
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from perfuse.errors import SliceError
from perfuse_ingest import mask_sources
from perfuse_ingest.mask_sources import MaskSource, open_masks

Volume = np.ndarray[Any, Any]
SHAPE = (13, 22, 19)


@pytest.fixture(scope="module")
def mask() -> Volume:
    return np.random.default_rng(0).random(SHAPE) < 0.2


def store(values: Volume, kind: str, folder: Path) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"mask.{kind}"
    if kind in ("nii", "nii.gz"):
        nibabel.save(nibabel.Nifti1Image(values.T, np.eye(4), dtype=values.dtype), path)
    elif kind == "tif":
        tifffile.imwrite(path, values, photometric="minisblack", compression="lzw")
    elif kind == "h5":
        with h5py.File(path, "w") as file:
            file.create_dataset("vessels", data=values, chunks=(4, 8, 8))
    elif kind == "zarr":
        zarr.create_array(path, data=values, chunks=(5, 8, 8))
    else:
        metadata = {"dimensions": values.shape[::-1], "blockSize": [8, 8, 8], "dataType": str(values.dtype)}
        spec = {
            "driver": "n5",
            "kvstore": {"driver": "file", "path": f"{path}/"},
            "metadata": {**metadata, "compression": {"type": "gzip"}},
            "create": True,
        }
        tensorstore.open(spec).result()[...] = values.T
    return str(path)


def whole(masks: MaskSource) -> Volume:
    return np.concatenate([masks.planes(z, min(z + 5, SHAPE[0])) for z in range(0, SHAPE[0], 5)])


@pytest.mark.parametrize("kind", ["nii", "nii.gz", "tif", "h5", "zarr", "n5"])
def test_every_format_gives_the_same_mask(mask: Volume, kind: str, tmp_path: Path) -> None:
    with open_masks(store(mask.astype(np.uint8) * 255, kind, tmp_path)) as masks:
        np.testing.assert_array_equal(whole(masks), mask * np.uint8(255))
        assert not masks.probability
        assert len(masks.names) == SHAPE[0]
        identity = masks.identity
    with open_masks(store(mask.astype(np.uint8), kind, tmp_path / "ones")) as masks:
        assert masks.identity == identity, "the same mask is the same, however it is stored"


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (1, "bool"),
        (-1, "int8"),
        (-7, "int32"),
        (2**31 - 1, "int32"),
        (254, "uint8"),
        (2**63, "uint64"),
        (255, "float32"),
        (1, "float64"),
    ],
)
def test_one_other_value_of_any_type(mask: Volume, value: Any, dtype: str, tmp_path: Path) -> None:
    values = np.where(mask, np.array(value, dtype), np.zeros((), dtype))
    with open_masks(store(values, "zarr", tmp_path)) as masks:
        np.testing.assert_array_equal(whole(masks), mask * np.uint8(255))
        assert not masks.probability


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_probabilities_are_rounded(dtype: str, tmp_path: Path) -> None:
    values = np.random.default_rng(0).random(SHAPE).astype(dtype)
    values[3], values[4] = 0, 1
    with open_masks(store(values, "zarr", tmp_path)) as masks:
        assert not masks.probability
        np.testing.assert_array_equal(
            whole(masks), np.rint(values.astype(np.float64 if dtype == "float64" else np.float32) * 255)
        )
        assert masks.probability


def test_one_probability_alone_is_one(mask: Volume, tmp_path: Path) -> None:
    with open_masks(store(mask * np.float32(0.5), "zarr", tmp_path)) as masks:
        np.testing.assert_array_equal(whole(masks), mask * np.uint8(128))
        assert masks.probability


def changed(mask: Volume, dtype: str, marked: Any, other: Any) -> Volume:
    values = np.where(mask, np.array(marked, dtype), np.zeros((), dtype))
    values[7, 3, 4] = other
    return values


@pytest.mark.parametrize("kind", ["zarr", "h5", "tif"])
@pytest.mark.parametrize(
    ("dtype", "marked", "other", "says"),
    [
        ("uint8", 255, 128, "holds 128, where 255 marks the vessels"),
        ("uint16", 1, 2, "holds 2, where 1 marks the vessels"),
        ("float32", 1, 1.5, "holds 1.5, where 1.0 marks the vessels"),
        ("float32", 0.5, 2, "holds 2.0, where 0.5 marks the vessels"),
        ("float32", 3, 0.25, "holds 0.25, where 3.0 marks the vessels"),
        ("float32", 0.5, -0.25, "holds -0.25"),
        ("float32", 1, np.nan, "holds nan"),
        ("float32", 1, np.inf, "holds inf"),
    ],
)
def test_what_is_neither_is_refused(
    mask: Volume, kind: str, dtype: str, marked: Any, other: Any, says: str, tmp_path: Path
) -> None:
    url = store(changed(mask, dtype, marked, other), kind, tmp_path)
    with open_masks(url) as masks, pytest.raises(SliceError, match=rf"(Slice|Plane) 7\b.*{says}"):
        whole(masks)
    with open_masks(url) as masks, pytest.raises(SliceError, match=says):
        _ = masks.identity


def test_two_values_in_the_whole_mask_not_in_each_plane(mask: Volume, tmp_path: Path) -> None:
    values = mask.astype(np.uint8) * 255
    values[9:] //= 255
    with open_masks(store(values, "tif", tmp_path)) as masks:
        masks.planes(0, 9)
        with pytest.raises(SliceError, match=r"Slice 9 \(mask.tif\[9\] of .*holds 1, where 255 marks"):
            masks.planes(9, 13)


@given(
    values=hnp.arrays(
        st.sampled_from([np.uint8, np.int32, np.float32]), (4, 5, 6), elements=st.sampled_from([0, 0, 0, 1, 2])
    ),
    order=st.permutations(range(4)),
)
@settings(max_examples=80, deadline=None)
def test_the_verdict_does_not_depend_on_the_order_of_reading(
    values: Volume, order: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("order") / "m.npy"
    np.save(path, values)
    is_mask = len(np.unique(values[values != 0])) <= 1
    with open_masks(str(path)) as masks:
        try:
            planes = {z: masks.planes(z, z + 1)[0] for z in order}
        except SliceError:
            assert not is_mask
        else:
            assert is_mask
            np.testing.assert_array_equal(np.stack([planes[z] for z in range(4)]), (values != 0) * 255)


@pytest.mark.parametrize("kind", ["zarr", "tif"])
def test_identity_covers_every_voxel_and_not_how_it_was_read(
    mask: Volume, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def identity(values: Volume, name: str) -> str:
        with open_masks(store(values, kind, tmp_path / name)) as masks:
            return masks.identity

    before = identity(mask.astype(np.uint8), "a")
    for name, constant in {"_AT_ONCE_BYTES": 1000, "_PLANES_AT_ONCE": 3, "_ROWS_AT_LEAST": 4}.items():
        monkeypatch.setattr(mask_sources, name, constant)
    assert identity(mask.astype(np.uint8), "b") == before
    for voxel in [(0, 0, 0), (6, 11, 9), (12, 21, 18)]:
        other = mask.astype(np.uint8)
        other[voxel] ^= 1
        assert identity(other, f"c{voxel}") != before


def test_stacks_of_slices_are_masks(mask: Volume, stack_folder: Callable[..., Path], tmp_path: Path) -> None:
    folder = stack_folder(tmp_path / "m", mask.astype(np.uint16) * 7)
    (folder / "README.txt").write_text("masks")
    with open_masks(str(folder)) as masks:
        np.testing.assert_array_equal(whole(masks), mask * np.uint8(255))
        assert masks.passed_over == ("README.txt",)
