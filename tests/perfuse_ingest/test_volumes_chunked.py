"""Volumes in chunks read as z, y, x, whoever wrote them, wherever they lie, in whatever order their axes are stored."""

import pickle
from concurrent.futures import Executor
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from perfuse.errors import SliceError, SourceError
from perfuse.geometry import Box
from perfuse_ingest.sources import open_source
from perfuse_ingest.sources.volumes import is_volume, open_volume

Volume = np.ndarray[Any, Any]
SHAPE = (21, 34, 45)
WHOLE = Box.whole(SHAPE)


@pytest.fixture(scope="module")
def voxels() -> Volume:
    return np.random.default_rng(0).integers(1, 60000, SHAPE).astype(np.uint16)


def halved(volume: Volume) -> Volume:
    return volume[::2, ::2, ::2]


def write_ome(
    path: Path,
    voxels: Volume,
    *,
    axes: str = "zyx",
    zarr_format: Any = 3,
    unit: str | None = "micrometer",
    size: float = 25.0,
    **how: Any,
) -> str:
    """Two levels; each has its translation before its scale. Axes other than z, y, x have length 1."""
    group = zarr.open_group(path, mode="w", zarr_format=zarr_format)
    datasets = []
    for level, volume in enumerate((voxels, halved(voxels))):
        stored = np.moveaxis(volume, ["zyx".index(a) for a in axes if a in "zyx"], [0, 1, 2])
        stored = stored.reshape(
            [dict(zip([a for a in axes if a in "zyx"], stored.shape, strict=True)).get(a, 1) for a in axes]
        )
        chunks = tuple(8 if a in "zyx" else 1 for a in axes)
        key = {"chunk_key_encoding": {"name": "v2", "separator": "/"}} if zarr_format == 2 else {}
        group.create_array(str(level), data=stored, chunks=chunks, **key, **how)
        scale = [size * 2**level * {"z": 2}.get(a, 1) if a in "zyx" else 1.0 for a in axes]
        shift = [(2**level - 1) / 2 * size] * len(axes)
        steps = [{"type": "translation", "translation": shift}, {"type": "scale", "scale": scale}]
        datasets.append({"path": str(level), "coordinateTransformations": steps})
    named = [{"name": a, "type": {"t": "time", "c": "channel"}.get(a, "space")} for a in axes]
    if unit:
        named = [{**a, "unit": unit} if a["type"] == "space" else a for a in named]
    version = {2: "0.4", 3: "0.5"}[zarr_format]
    ome = {"multiscales": [{"version": version, "axes": named, "datasets": datasets}]}
    group.attrs.update(ome if zarr_format == 2 else {"ome": {"version": "0.5", **ome}})
    return str(path)


AXES = ["".join(p) for p in permutations("zyx")] + ["tczyx", "cxyz", "zcyx", "xyzt"]


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("axes", AXES)
def test_ome_zarr_in_any_order_of_axes(
    tmp_path: Path, voxels: Volume, pool: Executor, axes: str, zarr_format: int
) -> None:
    url = write_ome(tmp_path / "v.ome.zarr", voxels, axes=axes, zarr_format=zarr_format)
    for level, wanted in enumerate((voxels, halved(voxels))):
        with open_volume(url, level=level) as volume:
            assert (volume.shape_zyx, volume.dtype, volume.cuts_rows) == (wanted.shape, np.uint16, True)
            assert volume.voxel_size_um == (50.0 * 2**level, 25.0 * 2**level, 25.0 * 2**level)
            read, digests = volume.read(Box.whole(volume.shape_zyx), pool)
            np.testing.assert_array_equal(read, wanted)
            assert digests is None
            assert volume.names[3] == "z=3"


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_any_box_is_the_same_part(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory, voxels: Volume, pool: Executor
) -> None:
    urls = {
        "ome": lambda path: write_ome(path, voxels, axes="xyz", zarr_format=2),
        "sharded": lambda path: write_ome(path, voxels, shards=(16, 16, 16)),
    }
    kind = data.draw(st.sampled_from(sorted(urls)))
    path = tmp_path_factory.getbasetemp() / f"boxes-{kind}"
    url = str(path) if path.exists() else urls[kind](path)
    cut = [sorted(data.draw(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)))) for n in SHAPE]
    box = Box(tuple(a for a, _ in cut), tuple(b + 1 for _, b in cut))  # type: ignore[arg-type]
    np.testing.assert_array_equal(open_volume(url).rows(box, pool), voxels[box.slices])


@pytest.mark.parametrize("dtype", ["|b1", "<i1", ">u2", ">i4", "<f4", ">f8"])
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_plain_zarr_of_any_dtype(tmp_path: Path, pool: Executor, dtype: str, zarr_format: Any) -> None:
    wanted = np.random.default_rng(1).integers(-90, 90, SHAPE).astype(dtype)
    zarr.create_array(tmp_path / "v.zarr", data=wanted, chunks=(8, 8, 8), zarr_format=zarr_format)
    volume = open_volume(str(tmp_path / "v.zarr"))
    read, _ = volume.read(WHOLE, pool)
    np.testing.assert_array_equal(read, wanted)
    assert read.dtype == volume.dtype == np.dtype(dtype).newbyteorder("=")
    assert volume.voxel_size_um is None


def test_dimension_names_of_zarr_3_are_heeded(tmp_path: Path, voxels: Volume, pool: Executor) -> None:
    zarr.create_array(tmp_path / "v.zarr", data=voxels.T, chunks=(8, 8, 8), dimension_names=["x", "y", "z"])
    np.testing.assert_array_equal(open_volume(str(tmp_path / "v.zarr")).read(WHOLE, pool)[0], voxels)


def test_common_transformations_and_units(tmp_path: Path, voxels: Volume) -> None:
    url = write_ome(tmp_path / "v.ome.zarr", voxels, unit="millimeter", size=0.5, zarr_format=2)
    group = zarr.open_group(url)
    multiscale: Any = group.attrs["multiscales"][0]  # type: ignore[index, call-overload]
    multiscale["coordinateTransformations"] = [{"type": "scale", "scale": [0.1, 1, 1]}]
    group.attrs["multiscales"] = [multiscale]
    assert open_volume(url).voxel_size_um == pytest.approx((100, 500, 500))
    assert open_volume(write_ome(tmp_path / "u.ome.zarr", voxels, unit=None)).voxel_size_um is None


def test_missing_chunks_are_zeros(tmp_path: Path, pool: Executor) -> None:
    sparse = np.zeros(SHAPE, np.uint16)
    sparse[3, 4, 5] = 7
    url = write_ome(tmp_path / "v.ome.zarr", sparse)
    np.testing.assert_array_equal(open_volume(url).read(WHOLE, pool)[0], sparse)


def chunk_file(url: str, z: int, y: int, x: int) -> Path:
    return Path(url) / "0" / "c" / str(z) / str(y) / str(x)


@pytest.mark.parametrize("how", ["junk", "cut"])
def test_damaged_chunks_name_their_planes(tmp_path: Path, voxels: Volume, pool: Executor, how: str) -> None:
    url = write_ome(tmp_path / "v.ome.zarr", voxels)
    file = chunk_file(url, 1, 2, 3)
    file.write_bytes(b"junk" * 30 if how == "junk" else file.read_bytes()[:-20])
    volume = open_volume(url)
    volume.read(Box((0, 0, 0), (8, 34, 45)), pool)
    with pytest.raises(SliceError, match=r"Planes 8 to 15 of .*v\.ome\.zarr cannot be decoded"):
        volume.read(WHOLE, pool)


def test_floats_without_a_number_are_named(tmp_path: Path, voxels: Volume, pool: Executor) -> None:
    values = voxels.astype(np.float32)
    values[9, 10, 11] = np.nan
    volume = open_volume(write_ome(tmp_path / "v.ome.zarr", values))
    with pytest.raises(SliceError, match=r"Plane 9 of .* holds nan at row 10, column 11"):
        volume.read(WHOLE, pool)


def test_identity_tells_volumes_apart(tmp_path: Path, voxels: Volume) -> None:
    url = write_ome(tmp_path / "v.ome.zarr", voxels)
    other = voxels.copy()
    other[-1, -1, -1] += 1
    assert open_volume(url).identity == open_volume(url).identity
    assert open_volume(write_ome(tmp_path / "copy.ome.zarr", voxels, axes="xyz")).identity == open_volume(url).identity
    different = [
        open_volume(url, level=1),
        open_volume(write_ome(tmp_path / "other.ome.zarr", other)),
        open_volume(write_ome(tmp_path / "size.ome.zarr", voxels, size=24)),
        open_volume(write_ome(tmp_path / "dtype.ome.zarr", voxels.astype(np.uint32))),
    ]
    assert len({open_volume(url).identity, *(v.identity for v in different)}) == 5


def test_opened_again_in_another_process(tmp_path: Path, voxels: Volume, pool: Executor) -> None:
    volume = open_volume(write_ome(tmp_path / "v.ome.zarr", voxels))
    volume.read(WHOLE, pool)
    again = pickle.loads(pickle.dumps(volume))
    np.testing.assert_array_equal(again.read(WHOLE, pool)[0], voxels)
    assert again.identity == volume.identity


def test_only_the_chunks_of_a_box_are_read(tmp_path: Path, voxels: Volume, pool: Executor) -> None:
    url = write_ome(tmp_path / "v.ome.zarr", voxels)
    volume = open_volume(url)
    for file in (Path(url) / "0" / "c").rglob("*"):
        if file.is_file() and file != chunk_file(url, 1, 1, 2):
            file.write_bytes(b"junk")
    # A thread reads whole rows of chunks of so small a volume; what it need not touch are other rows and planes.
    with pytest.raises(SliceError):
        volume.rows(Box((8, 8, 0), (16, 16, 45)), pool)
    box = Box((8, 8, 16), (16, 16, 24))
    np.testing.assert_array_equal(volume.rows(box, pool), voxels[box.slices])


def test_what_is_no_volume_teaches(tmp_path: Path, voxels: Volume) -> None:
    zarr.open_group(tmp_path / "plain.zarr", mode="w")
    zarr.create_array(tmp_path / "flat.zarr", data=voxels[0], chunks=(8, 8))
    zarr.create_array(tmp_path / "colours.zarr", data=np.zeros((3, 4, 4, 4), np.uint8), chunks=(1, 4, 4, 4))
    zarr.create_array(tmp_path / "complex.zarr", data=np.zeros((4, 4, 4), np.complex64), chunks=(4, 4, 4))
    (tmp_path / "torn.zarr").mkdir()
    (tmp_path / "torn.zarr" / "zarr.json").write_text('{"zarr_format"')
    url = write_ome(tmp_path / "v.ome.zarr", voxels)
    cases = [
        (str(tmp_path / "absent.zarr"), 0, "does not exist"),
        (str(tmp_path / "plain.zarr"), 0, "without OME-Zarr metadata"),
        (str(tmp_path / "flat.zarr"), 0, r"has shape \(34, 45\)"),
        (str(tmp_path / "colours.zarr"), 0, r"has shape \(3, 4, 4, 4\)"),
        (str(tmp_path / "complex.zarr"), 0, "holds complex64"),
        (str(tmp_path / "torn.zarr"), 0, "zarr.json is no JSON object"),
        (
            url,
            2,
            r"no level 2. It holds level 0: 21 × 34 × 45 of 50 × 25 × 25 µm, level 1: 11 × 17 × 23 of 100 × 50 × 50 µm",
        ),
        (url, -1, "no level -1"),
    ]
    for place, level, says in cases:
        assert is_volume(place)
        with pytest.raises(SourceError, match=says) as caught:
            open_source(place, level=level)
        assert place in str(caught.value)


def test_stacks_are_no_volumes(tmp_path: Path, stack_folder: Any, voxels: Volume) -> None:
    folder = str(stack_folder(tmp_path / "slices", voxels))
    assert not is_volume(folder)
    assert not is_volume("memory://slices")
    with pytest.raises(SourceError, match="is a stack of slices and has no level 1"):
        open_source(folder, level=1)
