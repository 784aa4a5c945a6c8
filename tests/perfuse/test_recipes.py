from pathlib import Path

import pytest
from pydantic import ValidationError

from perfuse.contract import Standardisation
from perfuse.errors import RecipeError
from perfuse.recipes import RECIPES, Recipe, load_recipe, to_yaml


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
    taken = ["network.decoder_channels=none", "network.encoder_weights=None", "holdout=", "normalisation.knee=null"]
    recipe = load_recipe("vesselnn", taken)
    assert recipe.network.decoder_channels is None
    assert recipe.network.encoder_weights is None
    assert recipe.holdout == ()
    assert recipe.normalisation.knee is None
    assert load_recipe("sennet_3rd", ["turns=none"]).turns == "none", "a choice of that name is no missing value"


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
        ("axes=[2020-13-45]", "neither a list"),
        ("axes=z,z", "name each axis once"),
        ("voxel_size_range=inf", "voxel_size_range = 'inf': .*finite"),
        ("network.planes=2", "odd"),
        ("crop=100", "multiple of 32"),
        ("name.x.y=1", "Unknown key 'name.x.y'"),
        ("losses.-1.weight=2", r"Did you mean losses\.0\.weight\?"),
        ("learning_rate=inf", "finite number"),
        ("losses.0.weight=inf", "finite number"),
        ("network.standardise={high: .inf}", "finite number"),
        ("schedule=[{kind: constant, share: inf}]", "finite number"),
    ],
)
def test_what_cannot_be_set_is_refused_with_what_can(setting: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        load_recipe("quickstart", [setting])


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("quickstart", ["augmentation.warp.rotate=45"], r"warp\.rotate = 45.* Set augmentation\.warp\.chance above 0"),
        ("quickstart", ["augmentation.warp={scale: [0.8, 1]}"], r"warp\.scale = "),
        ("quickstart", ["augmentation.blur=gauss"], r"Set augmentation\.blur_chance above 0"),
        ("quickstart", ["augmentation.blur_chance=0.5"], r"Set augmentation\.blur to gauss"),
        ("quickstart", ["augmentation.deformation.strength=0.1"], r"Set augmentation\.deformation\.chance above 0"),
        ("quickstart", ["augmentation.gamma=0.5", "augmentation.gamma_chance=0"], r"gamma = 0\.5 changes nothing"),
        ("quickstart", ["sampling.overlap=0.5"], r"Set sampling\.order to grid"),
        ("sennet_3rd", ["sampling.foreground_share=0.9"], r"Set sampling\.order to random"),
        ("quickstart", ["sampling.by_coverage=false", "sampling.order=grid"], r"Set sampling\.order to random"),
        ("quickstart", ["momentum=0.5"], "Set optimiser to sgd"),
        ("sennet_5th", ["normalisation.lower_percent=3"], r"Set normalisation\.divisor to none"),
        ("sennet_3rd", [f"encoder_digest={'0' * 64}", "init_from=run"], "Set init_from to none"),
        ("quickstart", ["schedule=[{kind: constant, share: 1, end: 0.1}]"], r"schedule\.0\.end = 0\.1 changes nothing"),
    ],
)
def test_a_setting_that_changes_nothing_is_refused_with_what_it_needs(
    name: str, settings: list[str], said: str
) -> None:
    with pytest.raises(RecipeError, match=said):
        load_recipe(name, settings)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("sennet_5th", ["augmentation.warp.chance=0"]),
        ("sennet_5th", ["sampling.order=random"]),
        ("perfuse_base", ["normalisation.divisor=65536"]),
        ("quickstart", ["augmentation.gamma=0", "augmentation.gamma_chance=0"]),
        ("quickstart", ["sampling.foreground_share=0.7", "sampling.order=grid"]),
        ("quickstart", ["augmentation.warp.rotate=45", "augmentation.warp.chance=1"]),
        ("quickstart", ["schedule=[{kind: constant, share: 1, start: 0.5}]"]),
    ],
)
def test_what_a_base_says_may_be_switched_off_and_what_counts_be_set(
    name: str, settings: list[str], tmp_path: Path
) -> None:
    recipe = load_recipe(name, settings)
    (tmp_path / f"{name}.yaml").write_text(to_yaml(recipe))
    assert load_recipe(str(tmp_path / f"{name}.yaml")) == recipe


def test_an_unknown_recipe_names_those_there_are() -> None:
    with pytest.raises(RecipeError, match="quickstart, vesselnn"):
        load_recipe("quickstrat")


def test_a_loss_without_weight_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"losses\.0\.weight = '0': .*greater than 0"):
        load_recipe("quickstart", ["losses.0.weight=0"])


def test_a_recipe_cannot_change() -> None:
    with pytest.raises(ValidationError):
        load_recipe("quickstart").steps = 3  # type: ignore[misc]
