"""Recipes of one's own: files over a base, functions, small versions; and what docs/training.md says of them."""

import re
from pathlib import Path

import pytest
import yaml

from perfuse import storage
from perfuse.errors import RecipeError
from perfuse.recipes import RECIPES, Recipe, differences, load_recipe, smoke
from perfuse.recipes.checking import check_network
from perfuse.recipes.keys import keys
from perfuse.recipes.loading import to_yaml

DOCS = Path(__file__).parents[2] / "docs" / "training.md"


def snippet(language: str) -> str:
    """The one block of code of a language in the section on recipes."""
    section = DOCS.read_text().split("\n## Recipes\n")[1].split("\n## ")[0]
    (found,) = re.findall(rf"```{language}\n(.*?)```", section, re.DOTALL)
    return str(found)


def test_the_file_in_the_docs_is_a_recipe_of_ten_lines(tmp_path: Path) -> None:
    text = snippet("yaml")
    assert len(text.splitlines()) <= 10
    (tmp_path / "thin.yaml").write_text(text)
    recipe, base = load_recipe(str(tmp_path / "thin.yaml")), load_recipe("sennet_3rd")
    assert recipe.name == "thin"
    assert recipe.network == base.network.changed(encoder="tu-tf_efficientnetv2_s", planes=3)
    assert recipe.augmentation == base.augmentation.changed(noise=0.2)
    assert [(term.kind, term.weight) for term in recipe.losses] == [("bce", 0.5), ("surface_dice", 0.5)]
    changed = {key.split(".")[0] for key in differences(recipe, base)}
    assert changed == {"name", "network", "augmentation", "losses", "steps"}


def test_the_function_in_the_docs_is_a_recipe_of_ten_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = snippet("python")
    assert len([line for line in text.splitlines() if line]) <= 10
    (tmp_path / "mine.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    recipe, base = load_recipe("mine:thin"), RECIPES["sennet_3rd"]()
    assert recipe == base.changed(
        name="thin", network=base.network.changed(encoder="tu-tf_efficientnetv2_s", planes=3), steps=20_000
    )


def test_a_base_lies_beside_its_file_and_lists_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "base.yaml").write_text("base: sennet_5th\nnetwork: {encoder: resnet18}\nsteps: 7\n")
    (tmp_path / "below" / "top.yaml").write_text("base: ../base.yaml\nlosses: [{kind: bce}]\nnetwork: {planes: 5}\n")
    recipe = load_recipe(str(tmp_path / "below" / "top.yaml"), ["batch=3"])
    assert (recipe.name, recipe.steps, recipe.batch, len(recipe.losses)) == ("top", 7, 3, 1)
    assert (recipe.network.encoder, recipe.network.planes, recipe.network.input_scale) == ("resnet18", 5, 2)


def test_settings_reach_what_a_file_leaves_out(tmp_path: Path) -> None:
    (tmp_path / "few.yaml").write_text("batch: 4\naugmentation: {warp: {chance: 1}}\n")
    settings = ["network.planes=3", "losses.0.weight=2", "augmentation.warp.rotate=45", "axes=z,y"]
    recipe = load_recipe(str(tmp_path / "few.yaml"), settings)
    assert set(differences(recipe, Recipe(name="few"))) == {
        "batch",
        "augmentation.warp.chance",
        "augmentation.warp.rotate",
        "axes",
        "network.planes",
        "losses.0.weight",
    }


def test_a_file_switches_off_what_its_base_says_and_says_nothing_in_vain(tmp_path: Path) -> None:
    (tmp_path / "turned.yaml").write_text("augmentation: {warp: {chance: 1, rotate: 45}}\n")
    (tmp_path / "off.yaml").write_text("base: turned.yaml\naugmentation: {warp: {chance: 0}}\n")
    assert load_recipe(str(tmp_path / "off.yaml")).augmentation.warp.chance == 0
    (tmp_path / "vain.yaml").write_text("base: off.yaml\naugmentation: {warp: {rotate: 30}}\n")
    with pytest.raises(RecipeError, match=r"warp\.rotate = 30"):
        load_recipe(str(tmp_path / "vain.yaml"))
    assert load_recipe(str(tmp_path / "vain.yaml"), ["augmentation.warp.chance=0.5"]).augmentation.warp.rotate == 30


def test_a_recipe_and_its_base_lie_at_a_url() -> None:
    storage.write_bytes("memory://recipes/base.yaml", b"base: sennet_5th\nsteps: 7\n")
    storage.write_bytes("memory://recipes/top/mine.yaml", b"base: ../base.yaml\nbatch: 3\n")
    recipe = load_recipe("memory://recipes/top/mine.yaml")
    assert (recipe.name, recipe.steps, recipe.batch, recipe.criterion) == ("mine", 7, 3, "mean_surface_dice")
    with pytest.raises(RecipeError, match=r"memory://recipes/absent\.yaml is no readable recipe"):
        load_recipe("memory://recipes/absent.yaml")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("steps: 5\nnetwork: {encodr: resnet18}\n", r"Did you mean network\.encoder\?"),
        ("losses: [{kind: dice, weigth: 2}]\n", r"Did you mean losses\.0\.weight\?"),
        ("losses: [{weight: 2}]\n", r"losses\.0\.kind: Field required"),
        ("network: {planes: 2}\n", r"network: planes must be odd"),
        ("steps: 0\nbatch: 0\n", r"batch = 0.*; steps = 0"),
        ("base: sennet_4th\n", r"Unknown recipe 'sennet_4th'\. Did you mean sennet_"),
        ("base: 3\n", r"base = 3 names no recipe"),
        ("base: own.yaml\n", r"own base"),
        ("- 1\n", "keys with values"),
        ("a: [\n", "no readable recipe"),
        ("a: 2020-13-45\n", "no readable recipe"),
        ("steps: !!bool x\n", "no readable recipe"),
        ("steps: !!timestamp x\n", "no readable recipe"),
        ("steps: !!int ''\n", "no readable recipe"),
    ],
)
def test_a_file_that_cannot_work_is_refused_with_what_could(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.yaml").write_text(text)
    with pytest.raises(RecipeError, match=said):
        load_recipe("own.yaml")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nowhere:recipe", "ModuleNotFoundError"),
        ("broken:absent", "AttributeError"),
        ("broken:wrong", "returned 3"),
        ("broken:fails", "NameError"),
    ],
)
def test_a_function_that_gives_no_recipe_is_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, said: str
) -> None:
    (tmp_path / "broken.py").write_text("def wrong():\n    return 3\ndef fails():\n    return nothing\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match=said):
        load_recipe(name)


SHRUNK = {
    "network.encoder",
    "network.encoder_size",
    "network.encoder_weights",
    "network.decoder_channels",
    "crop",
    "tile",
    "batch",
    "steps",
    "validate_every",
    "checkpoint_every",
    "learning_rate",
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_small_recipe_is_the_same_but_small(name: str) -> None:
    recipe = load_recipe(name)
    small = smoke(recipe)
    assert small == load_recipe(name, smoke=True)
    assert set(differences(recipe, small)) <= SHRUNK
    assert Recipe.model_validate(small.model_dump()) == smoke(small)
    assert small.network.encoder_weights is None
    assert small.crop * small.network.input_scale * (2 if small.network.mosaic else 1) <= 128
    assert check_network(small) < 13e6


@pytest.mark.parametrize(("scales", "tile"), [("0.75,1", 32 * 4), ("1,1.5", 64), ("0.25,2", 128)])
def test_a_small_recipe_is_seen_at_all_sizes_of_the_whole(scales: str, tile: int, tmp_path: Path) -> None:
    (tmp_path / "sizes.yaml").write_text(f"base: sennet_5th\nscales: [{scales}]\n")
    assert load_recipe(str(tmp_path / "sizes.yaml"), smoke=True).tile == tile


def test_settings_go_over_the_small_recipe() -> None:
    assert load_recipe("sennet_3rd", ["steps=7", "crop=64"], smoke=True).crop == 64


def test_how_a_scan_is_seen_at_inference_is_in_the_recipe_and_digests_of_before_stay(tmp_path: Path) -> None:
    seen = {"axis_weights": (2, 1, 0), "axis_fusion": "max", "resample_um": 63.08, "skip_background": True}
    before = load_recipe("quickstart")
    assert seen.keys() <= set(keys())
    assert not seen.keys() & before.model_dump().keys(), "a digest of before knows none of them"
    (tmp_path / "all.yaml").write_text(to_yaml(before))
    assert seen.keys() <= yaml.safe_load(to_yaml(before)).keys()
    assert load_recipe(str(tmp_path / "all.yaml")) == before
    (tmp_path / "some.yaml").write_text(
        "base: quickstart\nname: quickstart\naxis_weights: [2, 1, 0]\nsampling: {axis_weights: [1, 1, 5]}"
    )
    settings = ["axis_fusion=max", "resample_um=63.08", "skip_background=true"]
    recipe = load_recipe(str(tmp_path / "some.yaml"), settings)
    assert recipe.sampling.axis_weights == (1, 1, 5)
    assert seen.items() <= dict(recipe.forward((50, 50))).items()
    assert differences(before, recipe)["resample_um"] == (None, 63.08)
    assert load_recipe("quickstart", ["axes=z", "axis_weights=3"]).forward((50, 50)).axis_weights == (3,)
    with pytest.raises(RecipeError, match=r"axis_weights \(1, 2\): one for each of 3 axes"):
        load_recipe("quickstart", ["axis_weights=1,2"])


def test_the_keys_reach_into_lists_and_what_may_be_absent() -> None:
    assert {"steps", "network.encoder", "network.standardise.low", "losses.0.weight", "schedule.0.end"} <= set(keys())
