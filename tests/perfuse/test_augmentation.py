"""Laws of `augment` as a whole; what each change computes is checked in test_augmentation_changes.py."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from perfuse import sampling
from perfuse.augmentation import augment
from perfuse.augmentation.turns import turn
from perfuse.recipes import Augmentation, load_recipe
from perfuse.recipes.schema import Deformation, Warp
from perfuse.training import engine, plan_job

N = 32
STILL = Augmentation(flips=0, quarter_turns=0, brightness=0, contrast=0, gamma=0, noise=0)
WARP = Warp(chance=0.8, shift=0.3, scale=(0.55, 1.5), rotate=45)
MOVING = STILL.model_copy(
    update={"flips": 0.5, "quarter_turns": 1, "warp": WARP, "deformation": Deformation(chance=0.8)}
)
ALL = Augmentation(
    warp=WARP,
    deformation=Deformation(chance=0.8),
    brightness_contrast_chance=0.8,
    gamma_chance=0.8,
    blur=("gauss", "motion"),
    blur_chance=0.5,
    sharpen_chance=0.5,
    noise_chance=0.8,
)
SEEDS = st.integers(0, 2**32 - 1)


def crops(b: int = 6, planes: int = 3, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Smooth images, masks of two values, and some unknown corners."""
    rng = np.random.default_rng(seed)
    image = np.repeat(np.repeat(rng.random((b, planes, N // 8, N // 8)), 8, 2), 8, 3)
    target = image[:, planes // 2 : planes // 2 + 1] > 0.5
    known = np.ones_like(target)
    known[::2, :, : N // 4, : N // 4] = False
    image, target, known = (torch.from_numpy(part.astype(np.float32)) for part in (image, target, known))
    return image, target, known


@given(seed=SEEDS, step=st.integers(0, 10**6))
@settings(deadline=None, max_examples=20)
def test_settings_without_changes_keep_all_bits(seed: int, step: int) -> None:
    for before, after in zip(crops(), augment(*crops(), STILL, seed, step, range(6)), strict=True):
        assert torch.equal(before, after)


@given(seed=SEEDS, places=st.lists(st.integers(0, 40), min_size=1, max_size=6, unique=True), each_plane=st.booleans())
@settings(deadline=None, max_examples=15)
def test_a_crop_varies_by_its_own_place_alone(seed: int, places: list[int], each_plane: bool) -> None:
    """Whatever the batch is that it lies in; to the last bit; and what is given stays as it is."""
    asked = ALL.model_copy(update={"each_plane": each_plane})
    given_crops = [part[torch.tensor(places) % 6] for part in crops()]
    kept = [part.clone() for part in given_crops]
    together = augment(*given_crops, asked, seed, 3, places)
    for row, place in enumerate(places):
        alone = augment(*(part[row : row + 1] for part in given_crops), asked, seed, 3, [place])
        assert all(torch.equal(a[0], t[row]) for a, t in zip(alone, together, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(given_crops, kept, strict=True))


def test_places_steps_and_seeds_vary_differently() -> None:
    same = [part[:1].repeat(8, 1, 1, 1) for part in crops()]
    images = [*augment(*same, ALL, 0, 0, range(8))[0]]
    images += [augment(*(p[:1] for p in same), ALL, seed, step, [0])[0][0] for seed, step in ((1, 0), (0, 1))]
    assert len({image.numpy().tobytes() for image in images}) == 10


@given(seed=SEEDS, warps=st.booleans())
@settings(deadline=None, max_examples=20)
def test_image_and_label_move_together(seed: int, warps: bool) -> None:
    asked = MOVING if warps else STILL.model_copy(update={"flips": 0.5, "quarter_turns": 1.0})
    _, target, known = crops(seed=seed)
    image, label, seen = augment(target.repeat(1, 3, 1, 1), target, known, asked, seed, 0, range(6))
    assert set(label.unique().tolist()) <= {0, 1}
    assert set(seen.unique().tolist()) <= {0, 1}
    assert torch.equal((image[:, 1:2] >= 0.5).float(), label)
    assert image.dtype == label.dtype == seen.dtype == torch.float32
    assert warps or torch.equal(image[:, 1:2], label)


@given(seed=SEEDS)
@settings(deadline=None, max_examples=20)
def test_what_is_known_has_only_known_sources(seed: int) -> None:
    _, target, known = crops()
    image, _, seen = augment(known.repeat(1, 3, 1, 1), target, known, MOVING, seed, 0, range(6))
    assert (image[:, :1][seen == 1] >= 1 - 2e-3).all()
    whole = torch.ones_like(known)
    smaller = STILL.model_copy(update={"warp": Warp(chance=1, scale=(0.5, 0.5))})
    seen = augment(target, target, whole, smaller, seed, 0, range(6))[2]
    assert torch.equal(seen, torch.nn.functional.pad(whole[..., : N // 2, : N // 2], [N // 4] * 4))


def test_soft_labels_stay_soft_beside_hard_ones() -> None:
    soft = 0.2 + 0.6 * torch.rand(8, 1, N, N, generator=torch.Generator().manual_seed(0))
    hard = (soft > 0.5).float()
    mixed = torch.cat((soft[..., : N // 2], hard[..., N // 2 :]), -1)
    turned = STILL.model_copy(update={"warp": Warp(chance=1, rotate=20)})
    image, label, _ = augment(soft, soft, hard, turned, 0, 0, range(8))
    assert torch.equal(image, label), "bilinear, as the image"
    label = augment(soft, mixed, hard, turned, 0, 0, range(8))[1]
    middle = slice(N // 4, 3 * N // 4)
    assert ((label[:, :, middle, : N // 4] > 0) & (label[:, :, middle, : N // 4] < 1)).all()
    assert set(label[:, :, middle, -N // 4 :].unique().tolist()) == {0, 1}


@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("mirrored", [(p, r, c) for p in (0, 1) for r in (0, 1) for c in (0, 1)])
def test_turns_are_those_of_numpy(turns: int, mirrored: tuple[int, int, int]) -> None:
    crop = crops()[0][0]
    wanted = np.flip(np.rot90(crop.numpy(), turns, (1, 2)), [axis for axis in range(3) if mirrored[axis]])
    turn(crop, turns, *map(bool, mirrored), out=(out := torch.empty_like(crop)))
    assert np.array_equal(out.numpy(), wanted)


def test_turns_and_mirrors_come_as_often_as_asked() -> None:
    crop = torch.arange(2.0 * 4).reshape(1, 2, 2, 2)
    many = crop.repeat(2000, 1, 1, 1)

    def seen(flips: float, turns: float) -> dict[bytes, float]:
        asked = STILL.model_copy(update={"flips": flips, "quarter_turns": turns})
        images = augment(many, many, many, asked, 0, 0, range(2000))[0]
        found, counts = np.unique([i.numpy().tobytes() for i in images], return_counts=True)
        return dict(zip(found.tolist(), counts / 2000, strict=True))

    assert list(seen(0.5, 1).values()) == pytest.approx([1 / 16] * 16, abs=0.03)
    assert sorted(seen(0, 0.5).values()) == pytest.approx([1 / 8] * 3 + [5 / 8], abs=0.03)
    assert max(seen(0.1, 0).values()) == pytest.approx(0.9**3, abs=0.03)


@pytest.mark.parametrize(
    ("changed", "share"),
    [
        ({"warp": Warp(chance=0.3, rotate=30)}, 0.3),
        ({"deformation": Deformation(chance=0.3)}, 0.3),
        ({"brightness": 0.2, "brightness_contrast_chance": 0.3}, 0.3),
        ({"gamma": 0.5, "gamma_chance": 0.3}, 0.3),
        ({"blur": ("motion",), "blur_chance": 0.3}, 0.3),
        ({"sharpen_chance": 0.3}, 0.3),
        ({"noise": 0.1, "noise_chance": 0.3}, 0.3),
    ],
)
def test_each_change_has_its_chance_and_others_keep_their_bits(changed: dict[str, object], share: float) -> None:
    rng = torch.Generator().manual_seed(0)
    image = torch.rand(1, 1, N, N, generator=rng).repeat(300, 1, 1, 1)
    varied = augment(image, image, image, STILL.model_copy(update=changed), 0, 0, range(300))[0]
    same = (varied == image).all(-1).all(-1)[:, 0]
    assert 1 - same.float().mean().item() == pytest.approx(share, abs=0.08)


@pytest.mark.parametrize("each_plane", [True, False])
def test_planes_change_in_intensity_each_or_all_alike(each_plane: bool) -> None:
    still = {"warp": Warp(), "deformation": Deformation(), "noise": 0.0, "each_plane": each_plane}
    image, target, known = crops(planes=1)
    same = image.repeat(1, 4, 1, 1)
    varied = augment(same, target, known, ALL.model_copy(update=still), 0, 0, range(6))[0]
    apart = [not torch.equal(varied[:, 0], varied[:, plane]) for plane in (1, 2, 3)]
    assert apart == [each_plane] * 3


def test_panels_of_which_all_planes_are_targets_turn_their_planes_together() -> None:
    target = (crops(planes=4)[0] > 0.5).float()
    image, label, known = augment(target, target, torch.ones_like(target), MOVING, 0, 0, range(6))
    assert label.shape == known.shape == target.shape
    assert torch.equal((image >= 0.5).float(), label)


def test_training_sees_augmented_crops(tmp_path, make_scan, tubes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where augmentation left nothing known, there is nothing to lose; it is told step and positions."""
    for seed, specimen in enumerate("av"):
        image, mask = tubes(seed, (40, 40, 40))
        make_scan(tmp_path, specimen, image, {"human": mask})
    small = ["crop=32", "batch=4", "steps=2", "validation=v", "network.decoder_channels=16,8,8", "seed=5"]
    job = plan_job(load_recipe("quickstart", small), str(tmp_path), str(tmp_path / "runs"))
    seen, losses = [], []

    def unknown(images, targets, knowns, *place, classes, standardised):
        seen.append((*place[:3], list(place[3])))
        return images, targets, torch.zeros_like(knowns)

    monkeypatch.setattr(engine, "augment", unknown)
    feed = [batch for row in sampling.rows(job, 1, 2, 0) for batch in sampling.cut(job, row)]
    engine.train(job, lambda step: feed, rank=1, report=lambda step, metrics, _: losses.append(metrics["loss"]))
    assert seen == [(job.recipe.augmentation, 5, step, [2, 3]) for step in (0, 1)]
    assert losses == [0, 0]
