"""Several classes: crops, augmentation, losses and the network keep them apart; one class is what it was."""

import hashlib
from collections import Counter
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from perfuse import sampling
from perfuse.augmentation import augment
from perfuse.contract import Contract, Decision, Forward, Network
from perfuse.errors import RecipeError
from perfuse.losses import combined
from perfuse.models.panels import Panels
from perfuse.recipes import Recipe, load_recipe, to_yaml
from perfuse.recipes.schema import LOSS_SETTINGS, Loss
from perfuse.sampling.resident import feed_resident, resident_bytes
from perfuse.training import TrainingJob, engine, finished_bundle, plan_job
from perfuse.training.local import train_local

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPE = (40, 72, 90)
CLASSES = "labels={dim: [human-dim], bright: [human-bright]}"
SETTINGS = ["crop=32", "batch=8", "steps=12", "validation=v", "normalisation.divisor=65535"]
FOUR = ["network.planes=4", "network.outputs=all"]


def test_a_recipe_names_its_classes_and_one_class_is_written_as_before() -> None:
    two, one = load_recipe("quickstart", [CLASSES, *FOUR]), load_recipe("quickstart", FOUR)
    assert two.classes == {"bright": ("human-bright",), "dim": ("human-dim",)}
    assert (two.segmenter.classes, two.segmenter.logits) == (("bright", "dim"), 8)
    assert one.classes == {"": ("human",)}
    assert one.segmenter == one.network
    assert "classes" not in one.model_dump()["network"]
    assert Network().model_dump().keys() == one.network.model_dump().keys()
    assert Recipe.model_validate_json(two.model_dump_json()) == two
    swapped = load_recipe("quickstart", ["labels={bright: [human-bright], dim: [human-dim]}", *FOUR])
    assert swapped.segmenter == two.segmenter, "the order of writing does not matter"


def test_files_and_settings_reach_each_class(tmp_path: Path) -> None:
    (tmp_path / "two.yaml").write_text(to_yaml(load_recipe("quickstart", [CLASSES])))
    (tmp_path / "three.yaml").write_text("base: two.yaml\nlabels: {rim: [human-rim]}\n")
    three = load_recipe(str(tmp_path / "three.yaml"), ["labels.dim=round1,human-dim"])
    assert three.classes == {"bright": ("human-bright",), "dim": ("round1", "human-dim"), "rim": ("human-rim",)}
    assert load_recipe(str(tmp_path / "two.yaml"), ["labels=human"]).labels == ("human",)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("labels={vessel: [human]}", "at least 2"),
        ("labels={a: [human], b: []}", r"labels\.classes\.b"),
        ("labels={a/b: [human], c: [human]}", "match pattern"),
        ("network.classes=a,b", "follows from labels"),
    ],
)
def test_what_cannot_be_is_refused(setting: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        load_recipe("quickstart", [setting])


def test_thresholds_are_of_the_classes_of_the_network() -> None:
    forward = Forward(network=Network(classes=("a", "b")), voxel_size_um=(1, 2))
    assert Contract(forward=forward, decision=Decision(threshold={"a": 7, "b": 9}))
    with pytest.raises(ValueError, match="the classes are a, b"):
        Contract(forward=forward, decision=Decision(threshold={"a": 7}))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, make_scan: Any) -> Path:
    """Noise, and what is bright and dim in it; b is labelled for what is bright alone, and that sparsely."""
    folder = tmp_path_factory.mktemp("classes")
    for seed, specimen in enumerate("abv"):
        image = np.random.default_rng(seed).integers(0, 65535, SHAPE).astype(np.uint16)
        bright, dim = ((mask * 255).astype(np.uint8) for mask in (image > 60_000, image < 30_000))
        if specimen == "b":
            make_scan(folder, specimen, image, {"human-bright": bright}, kind="sparse", coverage=0.5)
        else:
            make_scan(folder, specimen, image, {"human-bright": bright, "human-dim": dim})
    return folder


def planned(folder: Path, *extra: str) -> TrainingJob:
    return plan_job(load_recipe("quickstart", [*SETTINGS, CLASSES, *extra]), str(folder), str(folder / "runs"))


def test_targets_come_class_by_class_and_a_class_without_label_is_unknown(folder: Path) -> None:
    job = planned(folder, *FOUR)
    assert [[None if s is None else s.label for s in scan] for scan in job.scans()] == [
        ["human-bright", "human-dim"],
        ["human-bright", None],
    ]
    seen = Counter()
    with sampling.Cutter(job) as cutter:
        for step in range(job.recipe.batches):
            batch = cutter.batch(step, range(8))
            assert batch["target"].shape == batch["known"].shape == (8, 8, 32, 32)
            for position in range(8):
                image, target, known = (batch[name][position] for name in ("image", "target", "known"))
                source = cutter.order.place(step, position).source
                seen[source] += 1
                (bright, dim), (known_bright, known_dim) = np.split(target, 2), np.split(known, 2)
                inside = known_bright == 1
                np.testing.assert_array_equal(bright[inside], (image > 60_000 / 65535)[inside])
                if source == 0:
                    np.testing.assert_array_equal(known_dim, known_bright)
                    np.testing.assert_array_equal(dim[inside], (image < 30_000 / 65535)[inside])
                else:
                    assert not known_dim.any()
                    assert bright[inside].all(), "the label is sparse"
    assert min(seen[0], seen[1]) > 0


def digests(job: TrainingJob, rank: int, world: int, first: int) -> dict[int, Counter[str]]:
    found = {}
    for batch in chain.from_iterable(sampling.cut(job, row) for row in sampling.rows(job, rank, world, first)):
        crops = zip(*(batch[name] for name in ("image", "target", "known")), strict=True)
        found[int(batch["step"])] = Counter(
            hashlib.sha256(b"".join(part.tobytes() for part in crop)).hexdigest() for crop in crops
        )
    return found


@pytest.mark.parametrize(("world", "first"), [(2, 0), (3, 7)])
def test_any_number_of_workers_sees_the_same_crops(folder: Path, world: int, first: int) -> None:
    job = planned(folder, *FOUR)
    alone, ranks = digests(job, 0, 1, 0), [digests(job, rank, world, first) for rank in range(world)]
    together = {step: sum((r[step] for r in ranks), Counter()) for step in ranks[0]}
    assert together == {step: crops for step, crops in alone.items() if step >= first}


@pytest.mark.parametrize("extra", [FOUR, ["sampling.order=grid"], ["sampling.oblique=1"], ["sampling.scale=0.8,1.4"]])
def test_crops_that_are_cut_where_the_scans_stay_are_the_same(folder: Path, extra: list[str]) -> None:
    job = planned(folder, *extra)
    for ours, theirs in zip(feed_resident(job, "cpu"), sampling.feed(job), strict=True):
        for name in ("target", "known"):
            assert ours[name].shape == theirs[name].shape
            assert np.mean(ours[name].numpy() != theirs[name]) < (
                1e-3 if "ob" in extra[0] or "sc" in extra[0] else 1e-9
            )
    voxels = int(np.prod(SHAPE))
    assert resident_bytes(job) == voxels * (2 + 1 + 1) + voxels * (2 + 2)


def test_foreground_is_of_each_class_alike(tmp_path: Path, make_scan: Any) -> None:
    image = np.random.default_rng(0).integers(0, 65535, (40, 64, 64)).astype(np.uint16)
    rare, common = np.zeros(image.shape, np.uint8), np.zeros(image.shape, np.uint8)
    rare[20, 30, 30:32], common[:, :, 20:] = 255, 255
    for specimen in "av":
        make_scan(tmp_path, specimen, image, {"human-bright": rare, "human-dim": common})
    job = planned(tmp_path, "sampling.foreground_share=1", "axes=z", "batch=32", "steps=320")
    with sampling.Cutter(job) as cutter:
        targets = np.concatenate([cutter.batch(step, range(32))["target"] for step in range(0, 320, 32)])
    assert targets[:, 0].any((1, 2)).mean() == pytest.approx(0.5, abs=0.2)


def test_a_class_that_nobody_labelled_is_named(folder: Path) -> None:
    with pytest.raises(RecipeError, match="Class 'rim': no scan for train has one of its labels human-rim"):
        plan_job(
            load_recipe("quickstart", [*SETTINGS, "labels={rim: [human-rim], dim: [human-dim]}"]),
            str(folder),
            str(folder / "runs"),
        )


def test_augmentation_turns_planes_of_each_class_among_themselves() -> None:
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.random((6, 3, 32, 32), np.float32))
    targets, knowns = (torch.from_numpy((rng.random((6, 6, 32, 32)) > 0.3).astype(np.float32)) for _ in range(2))
    changes = [f"augmentation.{c}" for c in ("warp.chance=.7", "warp.rotate=45", "deformation.chance=.7")]
    varied = load_recipe("quickstart", changes).augmentation
    _, together, known = augment(images, targets, knowns, varied, 0, 0, range(6), classes=2)
    for k in (slice(0, 3), slice(3, 6)):
        _, alone, seen = augment(images, targets[:, k], knowns[:, k], varied, 0, 0, range(6))
        assert torch.equal(together[:, k], alone)
        assert torch.equal(known[:, k], seen)


LOSSES = [Loss(kind=kind) for kind in LOSS_SETTINGS if kind != "boundary_bce"]
LOSSES += [Loss(kind="boundary_bce", volumetric=True, weight=0.3)]


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999), planes=st.integers(1, 3))
def test_two_classes_of_one_label_lose_what_one_class_loses(seed: int, planes: int) -> None:
    rng = np.random.default_rng(seed)
    shape = (2, planes, 8, 8)
    target, known = (torch.from_numpy((rng.random(shape) > 0.4).astype(np.float64)) for _ in range(2))
    logits = torch.from_numpy(rng.standard_normal(shape)).requires_grad_()
    one, parts = combined(LOSSES, logits, target, known)
    (wanted,) = torch.autograd.grad(one, logits)
    twice = [torch.cat([part, part], 1) for part in (logits, target, known)]
    two, both = combined(LOSSES, *twice, classes=2)
    (gradient,) = torch.autograd.grad(two, logits)
    torch.testing.assert_close(two, one, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(gradient, wanted, rtol=1e-7, atol=1e-9)
    assert all(torch.isclose(both[name], parts[name]) for name in parts)


def test_a_class_is_a_volume_of_its_own_and_an_unknown_one_adds_nothing() -> None:
    rng = np.random.default_rng(1)
    logits = torch.from_numpy(rng.standard_normal((2, 4, 8, 8))).requires_grad_()
    target, known = torch.from_numpy((rng.random((2, 4, 8, 8)) > 0.5).astype(float)), torch.ones(2, 4, 8, 8).double()
    known[:, 2:] = 0
    for loss in LOSSES:
        both, _ = combined([loss], logits, target, known, classes=2)
        alone, _ = combined([loss], logits[:, :2], target[:, :2], known[:, :2])
        torch.testing.assert_close(both, alone / 2)
        (gradient,) = torch.autograd.grad(both, logits)
        assert not gradient[:, 2:].any()
    known[:] = 1
    both, _ = combined(LOSSES, logits, target, known, classes=2)
    each = [combined(LOSSES, *(part[:, k : k + 2] for part in (logits, target, known)))[0] for k in (0, 2)]
    torch.testing.assert_close(both, sum(each) / 2)


class Signed(torch.nn.Module):
    """Answers what it sees, and minus that, in channels of their own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, -x], 1)


@pytest.mark.parametrize("mosaic", [False, True])
def test_logits_come_class_by_class_of_each_its_planes(mosaic: bool) -> None:
    panels = torch.rand(2, 4, 32, 32)
    made = Panels(Signed(), Network(planes=4, outputs="all", mosaic=mosaic, classes=("a", "b")))
    assert torch.equal(made(panels), torch.cat([panels, -panels], 1))


TWIN = """
import torch

class Twin(torch.nn.Module):
    def __init__(self, in_channels, classes):
        super().__init__()
        self.same = classes // in_channels
        self.body = torch.nn.Conv2d(in_channels, in_channels, 3, padding=1)

    def forward(self, x):
        return torch.cat([self.body(x)] * self.same, 1)
"""


def test_a_training_of_one_label_as_two_classes_is_that_of_one(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From crops through augmentation, losses and steps to validation; the network answers both classes alike."""
    (tmp_path / "twin_of_test_classes.py").write_text(TWIN)
    monkeypatch.syspath_prepend(tmp_path)
    network = ["network.module=twin_of_test_classes:Twin", "network.planes=3", "network.outputs=all"]
    common = [*SETTINGS, *network, "sampling.order=grid", "tile=32", "axes=z,x", "steps=4", "validate_every=4"]
    told: list[dict[int, dict[str, float]]] = []
    weights, varied = [], []
    monkeypatch.setattr(
        engine, "augment", lambda *crops, **how: varied.append(how["classes"]) or augment(*crops, **how)
    )
    for labels in ("labels=human-bright", "labels={a: [human-bright], b: [human-bright]}"):
        job = plan_job(load_recipe("quickstart", [*common, labels]), str(folder), str(tmp_path / "runs"))
        told.append({})
        train_local(job, lambda step, metrics, _: told[-1].update({step: metrics}))
        weights.append(finished_bundle(job).weights)
    assert varied == [1] * 4 + [2] * 4
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=1e-5, atol=1e-7)
    one, two = (metrics[4] for metrics in told)
    for name in ("loss", "bce_loss", "dice_loss", "val_dice", "val_surface_dice", "val_threshold"):
        assert two[name] == pytest.approx(one[name], rel=1e-4), name
    assert two["val_dice.a"] == two["val_dice.b"]
