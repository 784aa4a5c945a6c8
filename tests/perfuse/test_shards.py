"""A shard made here is what any Zarr library reads, and is replaced whole."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorstore
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from perfuse import storage, volumes
from perfuse.geometry import Box
from perfuse.shards import ShardFormat, digest
from perfuse.volumes import Layout

LAYOUTS = [
    Layout(),
    Layout(codec="lz4", clevel=9, chunk=32, shard_chunks=(2, 2, 3)),
    Layout(shuffle="shuffle", chunk=32, shard_chunks=(1, 1, 1)),
]


def stored(folder: Path, voxels: np.ndarray[Any, Any], layout: Layout) -> zarr.Array[Any]:
    group = volumes.open_group(str(folder), "a")
    array = volumes.create_array(group, "0", voxels.shape, voxels.dtype, layout=layout)
    volumes.write_shards(array, Box.whole(voxels.shape), voxels)
    return array


@settings(max_examples=25, deadline=None)
@given(
    st.tuples(*[st.integers(1, 90)] * 3),
    st.sampled_from(["uint8", "uint16", "float32", "int16"]),
    st.sampled_from(LAYOUTS),
    st.integers(0, 99),
)
def test_what_is_written_is_read_by_zarr_and_tensorstore(
    tmp_path_factory: pytest.TempPathFactory, shape: tuple[int, int, int], dtype: str, layout: Layout, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    voxels = rng.integers(-50, 50, shape).clip(0 if dtype[0] == "u" else -50).astype(dtype)
    voxels[: shape[0] // 2, : 40 * (seed % 3)] = 0
    folder = tmp_path_factory.mktemp("shards")
    array = stored(folder, voxels, layout)
    np.testing.assert_array_equal(array[:], voxels)
    form = ShardFormat.of(array)
    for box in form.shards(Box.whole(shape)):
        np.testing.assert_array_equal(form.read(box), voxels[box.slices])
    store = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(folder / "0")}}
    np.testing.assert_array_equal(tensorstore.open(store).result().read().result(), voxels)


def test_chunks_of_zeros_are_left_out(tmp_path: Path) -> None:
    voxels = np.zeros((64, 128, 128), np.uint16)
    stored(tmp_path / "empty", voxels, Layout())
    assert not (tmp_path / "empty/0/c/0/0/0").exists()
    voxels[5, 70, 3] = 1
    stored(tmp_path / "one", voxels, Layout())
    index = (tmp_path / "one/0/c/0/0/0").read_bytes()[-4 - 4 * 16 : -4]
    assert (np.frombuffer(index, "<u8").reshape(4, 2)[:, 0] == 2**64 - 1).tolist() == [True, True, False, True]


def test_an_empty_shard_replaces_what_was_there(tmp_path: Path) -> None:
    voxels = np.ones((64, 64, 64), np.uint8)
    array = stored(tmp_path, voxels, Layout())
    assert volumes.write_shards(array, Box.whole(voxels.shape), 0 * voxels) == digest()
    assert not array[:].any()


def test_digests_are_those_of_the_stored_bytes(tmp_path: Path) -> None:
    voxels = np.random.default_rng(0).integers(0, 9, (64, 600, 70), np.uint8)
    array = stored(tmp_path, voxels, Layout())
    form, box = ShardFormat.of(array), Box.whole((64, 600, 70))
    assert [form.key(b) for b in form.shards(box)] == ["c/0/0/0", "c/0/1/0"]
    wanted = b"".join(digest((tmp_path / "0" / form.key(b)).read_bytes()) for b in form.shards(box))
    assert volumes.stored_digests(array, box) == wanted
    assert volumes.write_shards(array, box, voxels) == wanted
    flipped = tmp_path / "0/c/0/1/0"
    data = bytearray(flipped.read_bytes())
    data[99] ^= 1
    flipped.write_bytes(data)
    assert volumes.stored_digests(array, box)[32:] != wanted[32:]
    assert volumes.stored_digests(array, box)[:32] == wanted[:32]


@pytest.mark.parametrize(
    "harm",
    [
        lambda data: data[:-7],
        lambda data: data[:100],
        lambda data: data[:10],
        lambda data: b"",
        lambda data: data[:-9] + b"\1" + data[-8:],
    ],
)
def test_a_torn_shard_is_refused(tmp_path: Path, harm: Callable[[bytes], bytes]) -> None:
    array = stored(tmp_path / "v", np.arange(40**3, dtype=np.uint16).reshape(40, 40, 40), Layout())
    shard, form, box = tmp_path / "v/0/c/0/0/0", ShardFormat.of(array), Box.whole((40, 40, 40))
    shard.write_bytes(harm(shard.read_bytes()))
    with pytest.raises(ValueError, match="index of the shard is damaged"):
        form.read(box)
    with pytest.raises(ValueError, match="index of the shard is damaged"):
        form.read_box(box)


@pytest.mark.parametrize("remote", [False, True])
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_box_is_read_across_shards_of_which_one_is_not_stored(tmp_path: Path, remote: bool, data: Any) -> None:
    shape = (70, 130, 100)
    voxels = np.random.default_rng(0).integers(1, 1000, shape, np.uint16)
    voxels[:64, 64:128, :96] = 0
    place = f"memory://{tmp_path.name}" if remote else str(tmp_path / "v")
    group = volumes.open_group(place, "a")
    array = volumes.create_array(group, "0", shape, "uint16", layout=LAYOUTS[1])
    volumes.write_shards(array, Box.whole(shape), voxels)
    ends = [sorted(data.draw(st.tuples(*[st.integers(0, n)] * 2))) for n in shape]
    box = Box(*((a, b, c) for a, b, c in zip(*ends, strict=True)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "AT_ONCE", 5)
        np.testing.assert_array_equal(ShardFormat.of(array).read_box(box), voxels[box.slices])
    assert not storage.exists(f"{place}/0/c/0/1/0"), "all of its voxels are 0"
