"""A grid: each crop once an epoch, in an order of its own, from bricks that are read for many."""

from collections import Counter
from itertools import groupby, pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from perfuse import organ_statistics
from perfuse.geometry import Box, move_axis
from perfuse.recipes import Sampling, load_recipe
from perfuse.sampling import Cutter, grid_order
from perfuse.sampling.grid_order import GridOrder
from perfuse.sampling.places import Sizes
from perfuse.sampling.sources import Opened
from perfuse.training import TrainingJob, plan_job

SHAPE = (40, 72, 90)
GRID = ["crop=32", "batch=7", "steps=5", "validation=v", "sampling.order=grid"]

Seen = tuple[int, int, int, int, int]
"""Source, axis, middle plane, row and column in the scan."""


def seen(order: GridOrder, index: int) -> Seen:
    step, position = divmod(index, order.batch)
    place, window = order.place(step, position), order.window(step, position, None)
    across, *along = [place.axis, *(a for a in range(3) if a != place.axis)]
    corner = [place.box.start[a] + int(at) for a, at in zip(along, (window.row, window.column), strict=True)]
    return place.source, place.axis, place.box.start[across] + window.plane, *corner


def starts(length: int, stride: int) -> list[int]:
    last = max(length - 32, 0)
    return sorted({*range(0, last, stride), last})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, make_scan: Any, tubes: Any) -> Path:
    folder = tmp_path_factory.mktemp("grid")
    for seed, specimen in enumerate("abv"):
        image, mask = tubes(seed, (150, 40, 20) if specimen == "b" else SHAPE)
        make_scan(folder, specimen, image, {"human": mask})
    return folder


def planned(folder: Path, *extra: str) -> TrainingJob:
    return plan_job(load_recipe("quickstart", [*GRID, *extra]), str(folder), str(folder / "runs"))


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**31), epoch=st.integers(0, 3), overlap=st.sampled_from([0.0, 0.4, 0.75]))
def test_an_epoch_sees_every_crop_of_the_grid_once(folder: Path, seed: int, epoch: int, overlap: float) -> None:
    order = GridOrder(planned(folder, f"seed={seed}", f"sampling.overlap={overlap}", "network.planes=5"))
    stride = round(32 * (1 - overlap))
    wanted = {
        (source, axis, plane, row, column)
        for source, shape in enumerate((SHAPE, (150, 40, 20)))
        for axis in range(3)
        for plane in range(shape[axis])
        for row in starts(move_axis(shape, axis)[1], stride)
        for column in starts(move_axis(shape, axis)[2], stride)
    }
    assert order.length == len(wanted)
    found = Counter(seen(order, epoch * order.length + k) for k in range(order.length))
    assert set(found) == wanted
    assert set(found.values()) == {1}


def test_epochs_and_seeds_differ(folder: Path) -> None:
    one, other = GridOrder(planned(folder)), GridOrder(planned(folder, "seed=1"))
    first = [seen(one, k) for k in range(50)]
    assert first != [seen(one, one.length + k) for k in range(50)]
    assert first != [seen(other, k) for k in range(50)]
    assert first == [seen(GridOrder(planned(folder)), k) for k in range(50)]


def test_batches_are_the_crops_of_the_order(folder: Path) -> None:
    job = planned(folder)
    with Cutter(job) as cutter:
        assert isinstance(cutter.order, GridOrder)
        for step in range(5):
            places = [cutter.order.place(step, position) for position in range(7)]
            assert len(list(groupby(places))) == len(set(places)), "brick by brick"
            assert cutter.places(step, range(7)) == list(dict.fromkeys(places))
        assert len({cutter.order.place(step, p) for step in range(5) for p in range(7)}) <= 8, "few bricks, many crops"


def test_each_rank_reads_few_of_the_bricks_of_a_row_and_the_plan_counts_them(folder: Path) -> None:
    order = GridOrder(planned(folder, "batch=24", "sampling.overlap=0.75"))
    held, read = list(order.read(40)), {}
    for world in (1, 2, 3):
        shares = [range(r * 24 // world, (r + 1) * 24 // world) for r in range(world)]
        rows = [range(32), range(32, 40)]
        touched = [{order.place(step, p) for step in row for p in share} for row in rows for share in shares]
        read[world] = sum(map(len, touched))
        assert Counter(order.read(40, shares)) == Counter(place for part in touched for place in part)
    assert len(held) <= read[1] < read[3] < 2 * read[1]


def test_crops_outside_the_organ_are_left_out(tmp_path: Path, make_scan: Any) -> None:
    image, none = np.zeros((130, 130, 130), np.uint16), np.zeros((130, 130, 130), np.uint8)
    organ = none.copy()
    organ[70:120, 10:60, 70:120] = 255
    for specimen in "av":
        organ_statistics.refresh(make_scan(tmp_path, specimen, image, {"human": none, "organ": organ}))
    order = GridOrder(planned(tmp_path, "axes=y"))
    found = [seen(order, k) for k in range(order.length)]
    assert {crop[3:] for crop in found} == {(z, x) for z in (64, 96, 98) for x in (64, 96, 98)}, "from 64 on: chunk 1"
    assert {plane for _, _, plane, _, _ in found} == set(range(64)), "chunk 0"
    assert len(found) == len(set(found)) == 9 * 64


@given(
    held=st.lists(st.tuples(*(st.integers(0, 3) for _ in range(3))), min_size=1, max_size=12),
    corners=st.tuples(*(st.lists(st.integers(0, 200), min_size=2, max_size=2, unique=True) for _ in range(3))),
    axis=st.integers(0, 2),
)
def test_planes_that_meet_labelled_organ(held, corners, axis) -> None:
    """Against a volume of chunks, voxel by voxel."""
    volume = np.zeros((4, 4, 4), np.bool_)
    volume[tuple(np.transpose(held))] = True
    scan = SimpleNamespace(shape_zyx=(200, 201, 256), image=SimpleNamespace(chunks=(64, 64, 64)))
    source = Opened((), scan, Box.whole(scan.shape_zyx), 0, 1)  # type: ignore[arg-type]
    vars(source)["_chunks"] = (np.argwhere(volume), None, None)
    box = Box(*zip(*map(sorted, corners), strict=True))
    inside = volume.repeat(64, 0).repeat(64, 1).repeat(64, 2)[box.slices]
    planes = inside.any(tuple(a for a in range(3) if a != axis))
    found = source.held_along(axis, box)
    assert [n for a, b in found for n in range(a, b)] == np.flatnonzero(planes).tolist()
    assert all(b < c for (_, b), (c, _) in pairwise(found)), "runs do not touch"


def test_half_a_million_panels_take_the_memory_of_their_bricks() -> None:
    """The 13th place's two kidneys: planning enumerates bricks only."""
    sizes = Sizes.of(load_recipe("sennet_13th"), (50, 50, 50))
    stride = round(sizes.crop * 0.6)
    bricks = []
    for shape in ((2279, 1303, 912), (501, 1706, 1510)):
        source: Any = SimpleNamespace(extent=Box.whole(shape), held_along=lambda axis, box: [(0, box.shape[axis])])
        bricks += [brick for axis in range(3) for brick in grid_order._bricks(0, source, axis, sizes, stride)]
    assert sum(brick.count for brick in bricks) == pytest.approx(490_000, rel=0.05)
    assert len(bricks) < 1_500


def test_what_a_grid_cannot_do_is_refused() -> None:
    with pytest.raises(ValidationError, match="order=grid sees every crop once"):
        Sampling(order="grid", oblique=0.5)
    with pytest.raises(ValidationError, match="scale goes from the smaller"):
        Sampling(scale=(1.2, 1.0))
