from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from perfuse.contract import Standardisation
from perfuse.errors import RecipeError
from perfuse.recipes import RECIPES, Recipe, load_recipe, to_yaml
from perfuse.training.optimisation import learning_rate


@pytest.mark.parametrize("name", RECIPES)
def test_a_built_in_recipe_survives_json_and_yaml(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe
    (tmp_path / "copy.yaml").write_text(to_yaml(recipe))
    assert load_recipe(str(tmp_path / "copy.yaml")) == recipe


@pytest.mark.parametrize("name", ["quickstart", "vesselnn"])
def test_what_runs_offline_loads_no_weights(name: str) -> None:
    assert load_recipe(name).network.encoder_weights is None


def test_the_sennet_systems_are_those_of_the_write_ups() -> None:
    third, fifth, thirteenth = (RECIPES[f"sennet_{n}"]() for n in ("3rd", "5th", "13th"))
    assert third.augmentation.warp.scale == (0.55, 1.05)
    cycle = [learning_rate(third.changed(steps=1000), step) for step in range(1000)]
    assert cycle == pytest.approx(one_cycle(1e-4, 1000), abs=1e-6)
    assert (cycle[0], max(cycle), cycle[-1]) == pytest.approx((4e-6, 1e-4, 4e-10), rel=1e-3)
    assert [(t.kind, t.weight) for t in fifth.losses] == [("boundary_bce", 0.9), ("dice", 0.01), ("focal", 0.18)]
    assert [learning_rate(fifth, s) for s in (0, fifth.steps - 1)] == pytest.approx([3e-4, 3e-5])
    ninth_epoch = thirteenth.steps * 9 // 15
    assert learning_rate(thirteenth, ninth_epoch - 1) == 1e-4
    assert learning_rate(thirteenth, thirteenth.steps - 1) == pytest.approx(1e-6)
    assert learning_rate(thirteenth, ninth_epoch + 30_000) < 9e-5
    assert (thirteenth.crop * 2, thirteenth.batch * thirteenth.accumulate) == (512, 32)


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


def test_settings_replace_values_of_every_kind() -> None:
    recipe = load_recipe(
        "quickstart",
        [
            "steps=7",
            "learning_rate=1e-4",
            "network.encoder=resnet34",
            "network.encoder_weights=imagenet",
            "network.decoder_channels=64,32,16,16,8",
            "axes=z,y",
            "holdout=2020-31,b",
            "augmentation.flips=0",
            "losses.1.weight=0.25",
            "schedule=[{kind: linear, share: 1, end: 0}]",
            "network.standardise.low=-2",
        ],
    )
    assert (recipe.steps, recipe.learning_rate, recipe.axes) == (7, 1e-4, ("z", "y"))
    assert (recipe.network.encoder, recipe.network.encoder_weights) == ("resnet34", "imagenet")
    assert recipe.network.decoder_channels == (64, 32, 16, 16, 8)
    assert recipe.holdout == ("2020-31", "b")
    assert recipe.augmentation.flips == 0
    assert [term.weight for term in recipe.losses] == [0.5, 0.25]
    assert [(p.kind, p.start, p.end) for p in recipe.schedule] == [("linear", 1, 0)]
    assert recipe.network.standardise == Standardisation(low=-2)


def test_none_and_nothing_take_values_away() -> None:
    recipe = load_recipe("quickstart", ["network.decoder_channels=none", "network.encoder_weights=None", "holdout="])
    assert recipe.network.decoder_channels is None
    assert recipe.network.encoder_weights is None
    assert recipe.holdout == ()


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("stepz=1", "Did you mean steps"),
        ("network.encodr=x", "network.encoder"),
        ("network=unet", "network.architecture"),
        ("steps.more=1", "Unknown key 'steps.more'"),
        ("steps", "key=value"),
        ("steps=many", "steps = 'many'"),
        ("steps=0", "greater than or equal to 1"),
        ("axes=z,q", "'z', 'y' or 'x'"),
        ("labels=", "labels"),
        ("losses.1.weigth=2", r"Did you mean losses\.1\.weight\? There are: losses\.1\.kind, "),
        ("losses.7.weight=2", "no such item; the list holds 2"),
        ("losses=[{kind: bce, wieght: 2}]", r"Did you mean losses\.0\.weight"),
        ("losses.0.kind=dyce", "'boundary_bce', 'dice'"),
        ("network.standardise.lwo=-2", r"Did you mean network\.standardise\.low\?"),
        ("encoder=resnet34", r"Did you mean network\.encoder\?"),
        ("axes=[z", "neither a list"),
        ("network.planes=2", "odd"),
        ("crop=100", "multiple of 32"),
    ],
)
def test_what_cannot_be_set_is_refused_with_what_can(setting: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        load_recipe("quickstart", [setting])


def test_an_unknown_recipe_names_those_there_are() -> None:
    with pytest.raises(RecipeError, match="quickstart, vesselnn"):
        load_recipe("quickstrat")


def test_a_loss_without_weight_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"losses\.0\.weight = '0': .*greater than 0"):
        load_recipe("quickstart", ["losses.0.weight=0"])


def test_a_recipe_cannot_change() -> None:
    with pytest.raises(ValidationError):
        load_recipe("quickstart").steps = 3  # type: ignore[misc]
