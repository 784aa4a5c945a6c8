"""The in-process feeder: the same batches as anyone cuts, in order, in bounded memory, by threads that end."""

import threading
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfuse import sampling, volumes
from perfuse.errors import PlanError, RecipeError, ScanError
from perfuse.recipes import load_recipe
from perfuse.sampling import Cutter, feed, feeding, positions
from perfuse.sampling.resident import feed_resident
from perfuse.sampling.sources import opened
from perfuse.training import TrainingJob, plan_job

SHAPE = (40, 72, 130)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, make_scan: Any, tubes: Any) -> Path:
    folder = tmp_path_factory.mktemp("feed")
    for seed, specimen in enumerate("abv"):
        image, mask = tubes(seed, SHAPE)
        make_scan(folder, specimen, image, {"human": mask})
    return folder


def planned(folder: Path, *extra: str) -> TrainingJob:
    values = ["crop=32", "batch=9", "steps=40", "accumulate=2", "validation=v", *extra]
    return plan_job(load_recipe("quickstart", values), str(folder), str(folder / "runs"))


@pytest.mark.parametrize("order", ["random", "grid"])
@pytest.mark.parametrize(("rank", "world", "first"), [(0, 1, 0), (1, 2, 37)])
def test_the_feeder_gives_what_cut_gives(folder: Path, order: str, rank: int, world: int, first: int) -> None:
    job = planned(folder, f"sampling.order={order}")
    rows = sampling.rows(job, rank, world, first)
    wanted = chain.from_iterable(sampling.cut(job, row) for row in rows)
    fed = list(feed(job, rank, world, first))
    assert [int(batch["step"]) for batch in fed] == list(range(first, 80))
    for batch, other in zip(fed, wanted, strict=True):
        assert batch.keys() == other.keys()
        assert all(np.array_equal(batch[name], other[name]) for name in batch)


@given(batch=st.integers(1, 200), world=st.integers(1, 60))
def test_shares_make_up_the_batch_and_differ_by_one_at_most(batch: int, world: int) -> None:
    recipe = load_recipe("quickstart", [f"batch={batch}"])
    if world > batch:
        with pytest.raises(RecipeError, match=f"at most {batch}"):
            positions(recipe, 0, world)
        return
    shares = [positions(recipe, rank, world) for rank in range(world)]
    assert list(chain(*shares)) == list(range(batch))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_no_more_bricks_are_held_than_was_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = planned(folder)
    with Cutter(job) as cutter:
        brick = max(cutter.bytes_of(p) for step in range(80) for p in cutter.places(step, range(9)))
        monkeypatch.setattr(feeding, "BRICK_BYTES", 4 * brick)
        held = []
        for step in range(80):
            cutter.look_ahead(step, range(9))
            cutter.batch(step, range(9))
            held.append(sum(future.result().nbytes for future in cutter._bricks.values()))
        assert max(held) <= 4 * brick
        monkeypatch.setattr(feeding, "BRICK_BYTES", brick)
        with pytest.raises(PlanError, match="bricks of a step take"):
            cutter.look_ahead(0, range(9))


def test_a_brick_is_read_once_while_it_is_needed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Any] = []
    real = feeding.read_brick

    def counted(source: Any, place: Any, memory: Any) -> Any:
        read.append(place)
        return real(source, place, memory)

    monkeypatch.setattr(feeding, "read_brick", counted)
    crops = sum(len(batch["position"]) for batch in feed(planned(folder)))
    assert crops == 720
    assert 3 < len(read) == len(set(read)) <= 9, "at most three bricks for each of three groups of steps"


def test_whoever_leaves_early_leaves_no_thread(folder: Path) -> None:
    before = set(threading.enumerate())
    batches = feed(planned(folder))
    assert len(list(islice(batches, 2))) == 2
    batches.close()
    ours = [thread for thread in threading.enumerate() if thread not in before]
    for thread in ours:
        thread.join(5)
    assert not any(thread.is_alive() for thread in ours)


def test_a_damaged_chunk_is_told_to_whoever_feeds(tmp_path: Path, make_scan: Any, tubes: Any) -> None:
    for seed, specimen in enumerate("av"):
        image, mask = tubes(seed, SHAPE)
        scan = make_scan(tmp_path, specimen, image, {"human": mask})
    job = planned(tmp_path)
    opened.cache_clear()
    (shard,) = (path for path in (tmp_path / "a.ome.zarr" / "0" / "c").rglob("*") if path.is_file())
    stored = bytearray(shard.read_bytes())
    stored[: len(stored) // 2] = bytes(len(stored) // 2)
    shard.write_bytes(stored)
    with pytest.raises(ScanError, match=r"a\.ome\.zarr is damaged.*scan verify"):
        list(feed(job))
    assert scan.info.specimen == "v"


def test_scans_are_taken_as_far_as_they_are_annotated(tmp_path: Path, make_scan: Any, tubes: Any) -> None:
    image, mask = tubes(0, SHAPE)
    make_scan(tmp_path, "a", image, {"human": mask}, kind="sparse", coverage=0.25)
    for specimen in "bv":
        make_scan(tmp_path, specimen, image, {"human": mask})

    def share(*extra: str) -> float:
        with Cutter(planned(tmp_path, "batch=400", "steps=320", "sampling.foreground_share=0.2", *extra)) as cutter:
            places = [cutter.order.place(step, 50 * k) for step in range(0, 640, 32) for k in range(8)]
            return float(np.mean([place.source == 0 for place in places]))

    assert share() == pytest.approx(0.2, abs=0.09)
    assert share("sampling.by_coverage=false") == pytest.approx(0.5, abs=0.11)


def test_axes_are_taken_by_their_weights(folder: Path) -> None:
    with Cutter(planned(folder, "batch=400", "steps=320", "sampling.axis_weights=1,1,6")) as cutter:
        places = [cutter.order.place(step, 50 * k) for step in range(0, 640, 32) for k in range(8)]
    assert np.bincount([place.axis for place in places]) / len(places) == pytest.approx([1 / 8, 1 / 8, 3 / 4], abs=0.1)


def test_chunks_of_background_are_seldom_seen(tmp_path: Path, make_scan: Any) -> None:
    image = np.full((70, 70, 200), 100, np.uint16)
    image[:64, :64, :64] = np.random.default_rng(0).integers(100, 60_000, (64, 64, 64))
    mask = np.zeros(image.shape, np.uint8)
    for specimen in "av":
        scan = make_scan(tmp_path, specimen, image, {"human": mask})
        lowest = np.full((2, 2, 4, 2), 100, np.uint16)
        lowest[0, 0, 0, 1] = 60_000
        volumes.open_group(f"{scan.url}/perfuse", "r+").create_array("occupancy", data=lowest)
    opened.cache_clear()
    job = planned(tmp_path)
    source = opened(job.scans()[0], job.recipe.normalisation)
    rng = np.random.default_rng(0)
    inside = np.mean([(source.somewhere(rng) < 64).all() for _ in range(4000)])
    assert 0.97 < inside < 0.995, "two in a hundred lie anywhere"


@pytest.mark.parametrize("order", ["random", "grid"])
def test_bricks_that_go_and_come_again_are_the_same(
    tmp_path: Path, make_scan: Any, tubes: Any, monkeypatch: pytest.MonkeyPatch, order: str
) -> None:
    """In memory that others have used; and half of the chunks are not stored at all."""
    for seed, specimen in enumerate("abv"):
        image, mask = tubes(seed, (64, 64, 256))
        image[:, :, 64:128] = mask[:, :, 64:192] = 0
        make_scan(tmp_path, specimen, image, {"human": mask})
    still = [f"augmentation.{k}=0" for k in ("flips", "quarter_turns", "brightness", "contrast", "gamma", "noise")]
    job = planned(tmp_path, f"sampling.order={order}", "steps=35", *still)
    wanted = list(feed(job))
    with Cutter(job) as cutter:
        brick = max(cutter.bytes_of(p) for step in range(70) for p in cutter.places(step, range(9)))
    monkeypatch.setattr(feeding, "BRICK_BYTES", (3 if order == "random" else 8) * brick)
    for batch, other in zip(feed(job), wanted, strict=True):
        assert all(np.array_equal(batch[name], other[name]) for name in batch)
    for batch, other in zip(feed_resident(job, "cpu"), wanted, strict=True):
        assert all(np.array_equal(batch[name].numpy(), other[name]) for name in ("image", "target", "known"))
