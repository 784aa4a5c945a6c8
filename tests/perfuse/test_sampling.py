import hashlib
import json
from collections import Counter
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from perfuse import organ_statistics, sampling
from perfuse.augmentation import augment
from perfuse.errors import RecipeError
from perfuse.normalisation import bounds, normalise
from perfuse.recipes import load_recipe
from perfuse.sampling.sources import opened
from perfuse.training import TrainingJob, plan_job

SHAPE = (40, 72, 90)
SETTINGS = ["crop=32", "batch=12", "steps=21", "validation=v"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, make_scan, tubes) -> Path:
    folder = tmp_path_factory.mktemp("scans")
    for seed, specimen in enumerate(("a", "b", "v")):
        image, mask = tubes(seed, SHAPE)
        make_scan(folder, specimen, image, {"human": mask})
    return folder


@pytest.fixture(scope="module")
def job(folder) -> TrainingJob:
    changes = ["warp.chance=.7", "warp.rotate=45", "deformation.chance=.7", "blur=gauss,motion", "blur_chance=.5"]
    recipe = load_recipe("quickstart", [*SETTINGS, *(f"augmentation.{c}" for c in changes)])
    return plan_job(recipe, str(folder), str(folder / "runs"))


def _feed(job: TrainingJob, rank: int = 0, world: int = 1, first: int = 0):
    return chain.from_iterable(sampling.cut(job, row) for row in sampling.rows(job, rank, world, first))


def _digests(job: TrainingJob, rank: int = 0, world: int = 1, first: int = 0) -> dict[int, Counter[str]]:
    """Of the augmented crops, by step."""
    found = {}
    for batch in _feed(job, rank, world, first):
        crops = [torch.from_numpy(batch[k]) for k in ("image", "target", "known")]
        varied = augment(*crops, job.recipe.augmentation, job.recipe.seed, int(batch["step"]), batch["position"])
        found[int(batch["step"])] = Counter(
            hashlib.sha256(b"".join(part.numpy().tobytes() for part in crop)).hexdigest()
            for crop in zip(*varied, strict=True)
        )
    return found


@pytest.fixture(scope="module")
def alone(job) -> dict[int, Counter[str]]:
    return _digests(job)


def test_a_batch_is_what_the_recipe_says(job) -> None:
    batches = list(_feed(job))
    assert [int(b["step"]) for b in batches] == list(range(21))
    for batch in batches:
        assert batch["image"].shape == (12, 3, 32, 32)
        assert batch["target"].shape == batch["known"].shape == (12, 1, 32, 32)
        assert all(batch[k].dtype == np.float32 for k in ("image", "target", "known"))
        assert set(np.unique(batch["target"])) <= {0, 1}
        assert batch["known"].all()
        assert batch["position"].tolist() == list(range(12))


@settings(max_examples=12, deadline=None)
@given(world=st.integers(1, 12), first=st.integers(0, 21))
def test_any_number_of_workers_sees_the_same_crops_from_any_step_on(job, alone, world: int, first: int) -> None:
    ranks = [_digests(job, rank, world, first) for rank in range(world)]
    together = {step: sum((r[step] for r in ranks), Counter()) for step in ranks[0]}
    assert together == {step: crops for step, crops in alone.items() if step >= first}
    assert all(r[step].total() in (12 // world, -(-12 // world)) for r in ranks for step in r)


def test_another_seed_gives_other_crops(job, folder) -> None:
    other = plan_job(load_recipe("quickstart", [*SETTINGS, "seed=1"]), str(folder), str(folder / "runs"))
    seen = [{crop.tobytes() for batch in _feed(which) for crop in batch["image"]} for which in (job, other)]
    assert len(seen[0] & seen[1]) < 0.1 * len(seen[0])


def test_rows_are_descriptors(job) -> None:
    rows = list(sampling.rows(job, 1, 3, 5))
    assert json.loads(json.dumps(rows)) == rows
    assert TrainingJob.model_validate_json(job.model_dump_json()) == job


def test_more_workers_than_crops_are_refused(job) -> None:
    with pytest.raises(RecipeError, match="batch = 12 cannot be shared by 13 workers"):
        next(sampling.rows(job, 0, 13, 0))


@pytest.mark.parametrize("axis", "zyx")
def test_crops_are_cut_from_the_scan_along_the_axis(tmp_path, make_scan, tubes, axis: str) -> None:
    for seed, specimen in enumerate("av"):
        image, mask = tubes(seed, (20, 40, 36) if axis == "z" else (36, 36, 36))
        scan = make_scan(tmp_path, specimen, image, {"human": mask})
        if specimen == "a":
            volume, truth, first = image, mask, scan
    recipe = load_recipe("quickstart", [*SETTINGS, f"axes={axis}", "steps=4"])
    normal = normalise(volume, bounds(first, recipe.normalisation), recipe.normalisation)
    wanted = [(i.tobytes(), t.tobytes()) for i, t in _pairs(normal, truth, "zyx".index(axis))]
    for batch in _feed(plan_job(recipe, str(tmp_path), str(tmp_path))):
        for image, target in zip(batch["image"], batch["target"], strict=True):
            assert (image[1].tobytes(), target[0].tobytes()) in wanted


def _pairs(normal, truth, axis):
    parts = (np.moveaxis(v, axis, 0) for v in (normal, truth.astype(np.float32) / 255))
    images, targets = (np.lib.stride_tricks.sliding_window_view(p, (32, 32), (1, 2)) for p in parts)
    return zip(images.reshape(-1, 32, 32), targets.reshape(-1, 32, 32), strict=True)


def test_the_foreground_share_brings_crops_to_rare_vessels(tmp_path, make_scan, tubes) -> None:
    image, _ = tubes(0, SHAPE)
    mask = np.zeros(SHAPE, np.uint8)
    mask[20, 40, 40:44] = 255
    for specimen in "av":
        make_scan(tmp_path, specimen, image, {"human": mask})

    def share(wanted: float) -> float:
        recipe = load_recipe("quickstart", [*SETTINGS, f"sampling.foreground_share={wanted}", "axes=z"])
        batches = _feed(plan_job(recipe, str(tmp_path), str(tmp_path)))
        return float(np.mean([b["target"].any((1, 2, 3)).mean() for b in batches]))

    assert share(1.0) == 1
    assert share(0.0) < 0.2


def test_bricks_are_read_around_the_organ(tmp_path, make_scan, tubes) -> None:
    """Away from vessels, too; and another organ mask is another job."""
    image, none = np.zeros((130, 130, 130), np.uint16), np.zeros((130, 130, 130), np.uint8)
    organ, recipe = none.copy(), load_recipe("quickstart", ["crop=32", "batch=12", "steps=40", "validation=v"])
    organ[70:120, 10:60, 70:128] = 255
    for specimen in "av":
        scan = make_scan(tmp_path, specimen, image, {"human": none})
    everywhere = plan_job(recipe, str(tmp_path), str(tmp_path))
    for specimen in "av":
        scan = make_scan(tmp_path / "organ", specimen, image, {"human": none, "organ": organ})
        organ_statistics.refresh(scan)
    job = plan_job(recipe, str(tmp_path / "organ"), str(tmp_path))
    assert job.key != everywhere.key
    source = opened(job.scans()[0], recipe.normalisation)
    places = np.stack([source.somewhere(np.random.default_rng(k)) for k in range(400)])
    assert (scan.organ_share()[tuple((places // scan.image.chunks).astype(int).T)] > 0).all()
    assert places.min(0).tolist() == pytest.approx([64, 0, 64], abs=2)
    again = np.stack([source.somewhere(np.random.default_rng(k)) for k in range(400)])
    assert np.array_equal(places, again)


def test_what_is_not_marked_in_a_sparse_label_is_unknown(tmp_path, make_scan, tubes) -> None:
    image, mask = tubes(0, SHAPE)
    make_scan(tmp_path, "a", image, {"human": mask}, kind="sparse", coverage=0.5)
    make_scan(tmp_path, "v", *[tubes(1, SHAPE)[0]], {"human": tubes(1, SHAPE)[1]})
    job = plan_job(load_recipe("quickstart", SETTINGS), str(tmp_path), str(tmp_path))
    for batch in _feed(job):
        assert (batch["target"][batch["known"] == 1] == 1).all()
        assert (batch["known"] == 0).any()


def test_a_soft_label_stays_soft(tmp_path, make_scan, tubes) -> None:
    image, _ = tubes(0, SHAPE)
    soft = np.random.default_rng(0).integers(0, 256, SHAPE).astype(np.uint8)
    make_scan(tmp_path, "a", image, {"round1": soft}, kind="soft")
    make_scan(tmp_path, "v", image, {"human": soft})
    recipe = load_recipe("quickstart", [*SETTINGS, "labels=human,round1"])
    batch = next(iter(_feed(plan_job(recipe, str(tmp_path), str(tmp_path)))))
    assert len(np.unique(batch["target"])) > 200
    assert np.array_equal(np.rint(batch["target"] * 255) / np.float32(255), batch["target"])


def test_a_scan_smaller_than_a_crop_is_mirrored_and_the_mirrored_is_unknown(tmp_path, make_scan, tubes) -> None:
    for seed, specimen in enumerate("av"):
        image, mask = tubes(seed, (2, 20, 40))
        make_scan(tmp_path, specimen, image, {"human": mask})
    recipe = load_recipe("quickstart", [*SETTINGS, "axes=z", "network.planes=5"])
    batch = next(iter(_feed(plan_job(recipe, str(tmp_path), str(tmp_path)))))
    assert (batch["known"][:, :, :20] == 1).all()
    assert (batch["known"][:, :, 20:] == 0).all()
    assert np.array_equal(batch["image"][:, :, 20:], batch["image"][:, :, 8:20][:, :, ::-1])
