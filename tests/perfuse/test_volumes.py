"""Levels, halves, shards and done-marks."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from perfuse import volumes
from perfuse.errors import ScanError
from perfuse.geometry import Box
from perfuse.shards import ShardFormat

SHAPES = st.tuples(*[st.integers(1, 400)] * 3)
SIZES = st.tuples(*[st.sampled_from([0.5, 1.0, 2.0, 4.9, 50.0])] * 3)


@given(SHAPES, SIZES)
def test_a_pyramid_ends_and_its_first_voxels_lie_between_those_they_cover(
    shape: tuple[int, int, int], size: tuple[float, float, float]
) -> None:
    levels = volumes.pyramid_levels(shape, size)
    assert max(levels[-1].shape_zyx) <= volumes.COARSEST
    for above, level in pairwise(levels):
        assert 2 in level.factor_zyx
        for axis in range(3):
            factor = level.factor_zyx[axis]
            assert level.shape_zyx[axis] == -(-above.shape_zyx[axis] // factor)
            assert level.scale_um[axis] == factor * above.scale_um[axis]
            whole = level.scale_um[axis] / size[axis]
            assert level.translation_um[axis] == pytest.approx((whole - 1) / 2 * size[axis])


def test_coarse_axes_wait_for_the_fine_ones() -> None:
    assert [v.factor_zyx for v in volumes.pyramid_levels((100, 512, 512), (5, 1, 1))] == [
        (1, 1, 1),
        (1, 2, 2),
        (1, 2, 2),
        (2, 2, 2),
    ]
    assert volumes.pyramid_levels((200, 200, 200), (2, 1, 1))[1].factor_zyx == (2, 2, 2), (
        "twice is not coarser than twice"
    )
    assert volumes.pyramid_levels((3, 1303, 912), (50, 50, 50))[-1].shape_zyx == (1, 41, 29)


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(*[st.integers(1, 7)] * 3),
    st.tuples(*[st.sampled_from([1, 2])] * 3),
    st.sampled_from(["uint8", "uint16", "float32"]),
    st.integers(0, 9),
)
def test_halving_is_the_mean_half_up(
    shape: tuple[int, int, int], factor: tuple[int, int, int], dtype: str, seed: int
) -> None:
    block = np.random.default_rng(seed).integers(0, 250, shape).astype(dtype)
    mean, most = (volumes.halve(block, factor, reduce) for reduce in ("mean", "max"))
    assert mean.dtype == most.dtype == block.dtype
    padded = np.pad(block, [(0, -n % f) for n, f in zip(shape, factor, strict=True)], mode="edge")
    for at in np.ndindex(mean.shape):
        cell = padded[tuple(slice(i * f, i * f + f) for i, f in zip(at, factor, strict=True))].astype(np.float64)
        assert mean[at] == (np.floor(cell.mean() + 0.5) if dtype != "float32" else np.float32(cell.mean()))
        assert most[at] == cell.max()


def test_halving_does_not_overflow() -> None:
    assert volumes.halve(np.full((2, 2, 2), 65535, np.uint16), (2, 2, 2), "mean").tolist() == [[[65535]]]


def test_a_torn_shard_at_the_edge_is_written_over(tmp_path: Path) -> None:
    array = volumes.create_array(volumes.open_group(str(tmp_path), "a"), "0", (70, 70, 70), "uint8")
    box = Box((64, 0, 0), (70, 70, 70))
    voxels = np.full(box.shape, 9, np.uint8)
    volumes.write_shards(array, box, voxels)
    stored = tmp_path / "0" / ShardFormat.of(array).key(box)
    whole = stored.read_bytes()
    stored.write_bytes(whole[:-3])
    volumes.write_shards(array, box, voxels)
    assert stored.read_bytes() == whole


def test_done_marks_tell_empty_from_lost(tmp_path: Path) -> None:
    group = volumes.open_group(str(tmp_path), "a")
    array = volumes.create_array(group, "0", (128, 16, 16), "uint8")
    marks = volumes.DoneMarks(group, "done", 2, "key")

    def stored(task: int) -> bytes:
        return volumes.stored_digests(array, Box((64 * task, 0, 0), (64 * task + 64, 16, 16)))

    volumes.write_shards(array, Box((0, 0, 0), (64, 16, 16)), np.zeros((64, 16, 16), np.uint8))
    volumes.write_shards(array, Box((64, 0, 0), (128, 16, 16)), np.ones((64, 16, 16), np.uint8))
    assert not (tmp_path / "0/c/0/0/0").exists(), "an empty shard is not stored"
    assert marks.intact(stored) == set()
    for task in (0, 1):
        marks.mark(task, stored(task))
    assert volumes.DoneMarks(group, "done", 2, "key").intact(stored) == {0, 1}
    (tmp_path / "0/c/1/0/0").unlink()
    assert volumes.DoneMarks(group, "done", 2, "key").intact(stored) == {0}
    assert volumes.DoneMarks(group, "done", 2, "other key").intact(stored) == set()


def test_a_mark_may_hold_the_digests_of_several_shards(tmp_path: Path) -> None:
    marks = volumes.DoneMarks(volumes.open_group(str(tmp_path), "a"), "done", 3, "key", shards=2)
    marks.mark(1, b"a" * 32 + b"b" * 32)
    assert marks.digests() == [bytes(64), b"a" * 32 + b"b" * 32, bytes(64)]


def test_a_place_without_a_group_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for place in ("absent", "file"):
        with pytest.raises(ScanError, match=rf"{place} is not a Zarr group"):
            volumes.open_group(str(tmp_path / place))


def test_bytes_are_reproducible(tmp_path: Path) -> None:
    voxels = np.random.default_rng(0).integers(0, 99, (64, 200, 200), dtype=np.uint16)
    stored = []
    for copy in ("a", "b"):
        array = volumes.create_array(volumes.open_group(str(tmp_path / copy), "a"), "0", voxels.shape, "uint16")
        volumes.write_shards(array, Box.whole(voxels.shape), voxels)
        stored.append((tmp_path / copy / "0/c/0/0/0").read_bytes())
        assert zarr.open_array(tmp_path / copy / "0", mode="r").shards == (64, 256, 256)
    assert stored[0] == stored[1]
