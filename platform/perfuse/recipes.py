"""Recipes: typed, complete descriptions of a training. A recipe is a function; a variation is a few fields over another."""

from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Any, cast, get_args, get_origin

from pydantic import BaseModel, Field, ValidationError, model_validator

from perfuse.contract import Axis, Frozen, Network, Normalisation
from perfuse.errors import RecipeError


class Augmentation(Frozen):
    """Random changes of a crop; each is a pure function of seed, step and position."""

    flip_and_turn: bool = True
    """Any of the eight symmetries of the square; the planes in either order."""
    zoom: float = Field(1.0, ge=1, le=2)
    """Vessels up to this factor larger or smaller."""
    intensity: float = Field(0.15, ge=0, le=1)
    """Brightness and contrast move by up to this share."""
    gamma: float = Field(0.2, ge=0, le=3)
    """Gamma between 1 / (1 + g) and 1 + g."""
    noise: float = Field(0.05, ge=0, le=1)
    """Standard deviation of added noise, at most; 1 is the contrast window."""


class Recipe(Frozen):
    """All that decides a training, besides the voxels."""

    name: str
    labels: tuple[str, ...] = Field(("human",), min_length=1)
    """Labels in order of preference: each scan takes the first that it holds."""
    train: tuple[str, ...] = ()
    """Specimens to train on; empty: all labelled ones of other donors than validation and holdout."""
    validation: tuple[str, ...] = ()
    """Specimens that choose checkpoint and threshold; empty: one labelled donor, the last by name."""
    holdout: tuple[str, ...] = ()
    """Specimens that nothing may see, with all else of their donors."""
    network: Network = Network()
    normalisation: Normalisation = Normalisation()
    axes: tuple[Axis, ...] = Field(("z", "y", "x"), min_length=1)
    voxel_size_range: float = Field(1.5, ge=1)
    """Inference is allowed on pixels this factor finer or coarser than those trained on."""
    crop: int = Field(128, ge=32, multiple_of=32)
    batch: int = Field(16, ge=1)
    steps: int = Field(1000, ge=1)
    validate_every: int = Field(200, ge=1)
    checkpoint_every: int = Field(50, ge=1)
    """Steps that a killed training may lose."""
    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(1e-2, ge=0)
    warmup_steps: int = Field(20, ge=0)
    clip_norm: float = Field(1.0, gt=0)
    ema_decay: float = Field(0.98, ge=0, lt=1)
    bce: float = Field(0.5, ge=0)
    dice: float = Field(0.5, ge=0)
    foreground_share: float = Field(0.7, ge=0, le=1)
    """Share of crops that are laid over a vessel voxel."""
    augmentation: Augmentation = Augmentation()
    seed: int = Field(0, ge=0)
    tile: int = Field(256, ge=32, multiple_of=32)
    overlap: float = Field(0.25, ge=0, le=0.75)

    @model_validator(mode="after")
    def _some_loss(self) -> "Recipe":
        if self.bce + self.dice <= 0:
            raise ValueError("bce and dice cannot both be 0: there would be no loss")
        return self


def quickstart() -> Recipe:
    """Phantoms on two cores: a minute and a half a round. Random initial weights, so that it runs without a network."""
    return Recipe(
        name="quickstart",
        network=Network(encoder="resnet18", encoder_weights=None, planes=3, decoder_channels=(64, 48, 32, 16)),
        crop=128,
        batch=16,
        steps=110,
        validate_every=110,
        learning_rate=2e-3,
        ema_decay=0.94,
        tile=128,
    )


def vesselnn() -> Recipe:
    """Thin anisotropic two-photon stacks, as VesselNN's: planes along z only. Random initial weights: runs offline.

    Stacks of different studies differ in contrast far more than in shape: dim vessels are lifted over a knee.
    """
    return quickstart().model_copy(
        update={
            "name": "vesselnn",
            "axes": ("z",),
            "normalisation": Normalisation(knee=0.3),
            "voxel_size_range": 2.0,
            "crop": 192,
            "batch": 8,
            "steps": 120,
            "validate_every": 40,
            "learning_rate": 1e-3,
            "ema_decay": 0.99,
            "augmentation": Augmentation(zoom=1.6, intensity=0.3, gamma=1.5),
            "tile": 256,
        }
    )


RECIPES: dict[str, Callable[[], Recipe]] = {"quickstart": quickstart, "vesselnn": vesselnn}


def load_recipe(name: str, settings: Sequence[str] = ()) -> Recipe:
    """A built-in recipe with `key=value` settings over it; nested keys by dots, lists by commas, `none` for no value.

    Raises RecipeError that lists the valid choices.
    """
    if name not in RECIPES:
        raise RecipeError(f"Unknown recipe {name!r}. Built in: {', '.join(RECIPES)}.")
    values = RECIPES[name]().model_dump()
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise RecipeError(f"--set takes key=value, e.g. steps=100 or network.encoder=resnet34; got {setting!r}.")
        _set(values, Recipe, key.strip(), text.strip())
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "recipe"
        raise RecipeError(f"Recipe {name}: {place} = {first['input']!r}: {first['msg']}.") from error


def _set(values: dict[str, Any], model: type[BaseModel], key: str, text: str, above: str = "") -> None:
    """Replace one value of a recipe, before it is validated."""
    part, dot, rest = key.partition(".")
    kind = model.model_fields[part].annotation if part in model.model_fields else None
    nested = isinstance(kind, type) and issubclass(kind, BaseModel)
    if kind is None or nested != bool(dot):
        raise RecipeError(_unknown(above + key, _keys(Recipe)))
    if nested:
        _set(values[part], cast("type[BaseModel]", kind), rest, text, f"{above}{part}.")
    else:
        values[part] = _value(kind, text)


def _keys(model: type[BaseModel], above: str = "") -> list[str]:
    keys: list[str] = []
    for name, info in model.model_fields.items():
        kind = info.annotation
        nested = isinstance(kind, type) and issubclass(kind, BaseModel)
        keys += _keys(cast("type[BaseModel]", kind), f"{above}{name}.") if nested else [above + name]
    return keys


def _unknown(key: str, there: list[str]) -> str:
    near = get_close_matches(key, there, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    return f"Unknown key {key!r}.{hint} There are: {', '.join(there)}."


def _value(kind: Any, text: str) -> Any:
    """What pydantic then checks: None, a list of words, or the word."""
    options = get_args(kind) if type(None) in get_args(kind) else (kind,)
    if text.lower() == "none" and type(None) in options:
        return None
    if any(get_origin(option) is tuple for option in options):
        return [item.strip() for item in text.split(",") if item.strip()]
    return text
