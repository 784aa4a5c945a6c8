import pytest
from pydantic import ValidationError

from perfuse.errors import RecipeError
from perfuse.recipes import RECIPES, Recipe, load_recipe


@pytest.mark.parametrize("name", RECIPES)
def test_a_built_in_recipe_runs_offline_and_survives_json(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.network.encoder_weights is None
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


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
        ],
    )
    assert (recipe.steps, recipe.learning_rate, recipe.axes) == (7, 1e-4, ("z", "y"))
    assert (recipe.network.encoder, recipe.network.encoder_weights) == ("resnet34", "imagenet")
    assert recipe.network.decoder_channels == (64, 32, 16, 16, 8)
    assert recipe.holdout == ("2020-31", "b")
    assert recipe.augmentation.flips == 0


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
