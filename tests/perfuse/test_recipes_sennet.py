"""The built-in systems of SenNet + HOA 2023 beside what their write-ups state and their published code shows."""

import re

import pytest
import torch

from perfuse.recipes import RECIPES
from perfuse.recipes.keys import flat
from perfuse.training.optimisation import learning_rate

THIRD = {
    "network.planes": 1,
    "axes": ["z", "y", "x"],
    "normalisation.lower_percent": 0.1,
    "normalisation.upper_percent": 99.9,
    "normalisation.clip": 0,
    "network.standardise.low": -3,
    "network.standardise.high": 5,
    "network.standardise.slope": 1e-3,
    "crop": 512,
    "sampling.order": "grid",
    "sampling.overlap": 0,
    "augmentation.flips": 0.5,
    "augmentation.quarter_turns": 0.5,
    "augmentation.warp.chance": 0.95,
    "augmentation.warp.shift": 0.3,
    "augmentation.warp.scale": [0.55, 1.05],
    "augmentation.warp.rotate": 45,
    "augmentation.blur_chance": 0.1,
    "augmentation.brightness_contrast_chance": 1,
    "augmentation.gamma_chance": 0.8,
    "augmentation.deformation.chance": 0.8,
    "augmentation.deformation.kinds": ["elastic", "grid", "optical"],
    "augmentation.sharpen_chance": 0.5,
    "augmentation.noise": 0.5,
    "losses.0.kind": "dice",
    "losses.0.smooth": 1,
    "optimiser": "adamw",
    "learning_rate": 1e-4,
    "clip_value": 5,
    "blend": "probability",
}
FIFTH = {
    "network.planes": 1,
    "axes": ["z", "y", "x"],
    "normalisation.divisor": 256 * 256,
    "network.standardise.slope": 1,
    "crop": 512,
    "sampling.order": "grid",
    "sampling.overlap": 256 / 512,
    "augmentation.flips": 0.5,
    "augmentation.warp.chance": 0.7,
    "augmentation.warp.shift": 0.1,
    "augmentation.warp.scale": [0.75, 1.25],
    "augmentation.warp.rotate": 25,
    "augmentation.brightness": 0.25,
    "augmentation.contrast": 0.25,
    "augmentation.brightness_contrast_chance": 0.5,
    "augmentation.deformation.chance": 0.2,
    "augmentation.deformation.kinds": ["grid", "elastic"],
    "optimiser": "adamw",
    "learning_rate": 3e-4,
    "steps": 120_000,
    "batch": 16,
    "blend": "logit",
    "criterion": "mean_surface_dice",
}
STATED: dict[str, dict[str, object]] = {
    "sennet_3rd": {**THIRD, "network.architecture": "unet", "network.encoder": "se_resnext101_32x4d"},
    "sennet_3rd_v2s": {**THIRD, "network.architecture": "unet", "network.encoder": "tu-tf_efficientnetv2_s"},
    "sennet_3rd_v2l": {**THIRD, "network.architecture": "unetplusplus", "network.encoder": "tu-tf_efficientnetv2_l"},
    "sennet_3rd_maxvit": {**THIRD, "network.architecture": "unet", "network.encoder": "tu-maxvit_large_tf_512"},
    "sennet_5th": {
        **FIFTH,
        "network.encoder": "tu-tf_efficientnetv2_m",
        "network.input_scale": 2,
        "losses.0.kind": "boundary_bce",
        "losses.0.weight": 0.9,
        "losses.0.boundary": 1,
        "losses.0.volumetric": False,
        "losses.1.kind": "dice",
        "losses.1.weight": 0.01,
        "losses.2.kind": "focal",
        "losses.2.weight": 2 * 0.09,
        "losses.2.alpha": 0.5,
    },
    "sennet_5th_dpn68": {
        **FIFTH,
        "network.encoder": "dpn68",
        "network.input_scale": 2,
        "losses.0.kind": "tversky",
        "losses.0.alpha": 0.5,
        "losses.0.beta": 1,
    },
    "sennet_5th_maxvit": {
        **FIFTH,
        "network.encoder": "tu-maxvit_base_tf_512",
        "network.input_scale": 1,
        "losses.0.kind": "bce",
    },
    "sennet_13th": {
        "network.encoder": "tu-maxvit_tiny_tf_512",
        "network.planes": 4,
        "network.mosaic": True,
        "network.outputs": "all",
        "crop": 256,
        "axes": ["z", "y", "x"],
        "normalisation.lower_percent": 2,
        "normalisation.upper_percent": 98,
        "sampling.order": "grid",
        "sampling.overlap": 0.4,
        "overlap": 0.1,
        "augmentation.flips": 0.5,
        "augmentation.quarter_turns": 1,
        "augmentation.brightness_contrast_chance": 1,
        "augmentation.contrast": 0,
        "augmentation.blur": ["gauss", "motion"],
        "augmentation.blur_chance": 0.9,
        "augmentation.each_plane": True,
        "losses.0.kind": "dice",
        "optimiser": "adamw",
        "learning_rate": 1e-4,
        "batch": 16,
        "accumulate": 2,
        "turns": "quarters",
        "window": "max",
    },
}


@pytest.mark.parametrize("name", STATED)
def test_the_sennet_systems_are_those_of_the_write_ups(name: str) -> None:
    recipe = RECIPES[name]()
    values = flat(recipe.model_dump(mode="json"))
    assert {key: values[key] for key in STATED[name]} == STATED[name]
    terms = [key for key in STATED[name] if re.fullmatch(r"losses\.\d\.kind", key)]
    assert (len(recipe.losses), recipe.ema_decay > 0) == (len(terms), name.startswith("sennet_5th"))


def test_learning_rates_of_the_sennet_systems_go_as_in_the_write_ups() -> None:
    third, fifth, thirteenth = (RECIPES[f"sennet_{n}"]() for n in ("3rd", "5th", "13th"))
    cycle = [learning_rate(third.changed(steps=1000), step) for step in range(1000)]
    assert cycle == pytest.approx(one_cycle(1e-4, 1000), abs=1e-6)
    assert (cycle[0], max(cycle), cycle[-1]) == pytest.approx((4e-6, 1e-4, 4e-10), rel=1e-3)
    assert [learning_rate(fifth, s) for s in (0, fifth.steps - 1)] == pytest.approx([3e-4, 3e-5])
    ninth_epoch = thirteenth.steps * 9 // 15
    assert learning_rate(thirteenth, ninth_epoch - 1) == 1e-4
    assert learning_rate(thirteenth, thirteenth.steps - 1) == pytest.approx(1e-6)
    assert learning_rate(thirteenth, ninth_epoch + 30_000) < 9e-5


def one_cycle(rate: float, steps: int) -> list[float]:
    """The learning rates of PyTorch's own schedule."""
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))])
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps, cycle_momentum=False)
    rates = []
    for _ in range(steps):
        rates += schedule.get_last_lr()
        optimiser.step()
        schedule.step() if len(rates) < steps else None
    return rates
