"""A grid: each crop once an epoch, in an order of its own, from bricks that are read for many."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from perfuse import organ_statistics
from perfuse.geometry import move_axis
from perfuse.recipes import Sampling, load_recipe
from perfuse.sampling import Cutter
from perfuse.sampling.grid_order import GridOrder
from perfuse.training import TrainingJob, plan_job

SHAPE = (40, 72, 90)
GRID = ["crop=32", "batch=7", "steps=5", "validation=v", "sampling.order=grid"]

Seen = tuple[int, int, int, int, int]
"""Source, axis, middle plane, row and column in the scan."""


def seen(order: GridOrder, index: int) -> Seen:
    place, window = order.crop(index)
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
            for position in range(7):
                place, window = cutter.order.crop(step * 7 + position)
                assert cutter.order.place(step, position) == place
                assert cutter.order.window(step, position, cutter.read(place).result()) == window
        assert len({cutter.order.place(step, p) for step in range(5) for p in range(7)}) <= 8, "few bricks, many crops"


def test_crops_outside_the_organ_are_left_out(tmp_path: Path, make_scan: Any) -> None:
    image, none = np.zeros((130, 130, 130), np.uint16), np.zeros((130, 130, 130), np.uint8)
    organ = none.copy()
    organ[70:120, 10:60, 70:120] = 255
    for specimen in "av":
        organ_statistics.refresh(make_scan(tmp_path, specimen, image, {"human": none, "organ": organ}))
    order = GridOrder(planned(tmp_path, "axes=y"))
    found = [seen(order, k) for k in range(order.length)]
    assert {crop[3:] for crop in found} == {(z, x) for z in (64, 96, 98) for x in (64, 96, 98)}, "from 64 on: chunk 1"
    assert {plane for _, _, plane, _, _ in found} == set(range(126)), (
        "the last brick's planes lie in chunks without organ"
    )


def test_half_a_million_panels_take_the_memory_of_their_bricks() -> None:
    """The 13th place's two kidneys: planning enumerates bricks only."""
    from perfuse.sampling import grid_order

    counts = []
    for shape in ((2279, 1303, 912), (501, 1706, 1510)):
        for axis in range(3):
            height, width = (n for a, n in enumerate(shape) if a != axis)
            rows, columns = (grid_order._groups(n, 256, round(256 * 0.6)) for n in (height, width))
            counts.append((shape[axis] * sum(map(len, rows)) * sum(map(len, columns)), len(rows) * len(columns)))
    assert sum(crops for crops, _ in counts) == pytest.approx(490_000, rel=0.05)


def test_what_a_grid_cannot_do_is_refused() -> None:
    with pytest.raises(ValidationError, match="order=grid sees every crop once"):
        Sampling(order="grid", oblique=0.5)
    with pytest.raises(ValidationError, match="scale goes from the smaller"):
        Sampling(scale=(1.2, 1.0))
