"""Keys that somebody gives and that change nothing, because another key switches them off."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from perfuse.errors import RecipeError
from perfuse.recipes.keys import flat
from perfuse.recipes.schema import Phase, Recipe


class Switch(NamedTuple):
    """Keys that count only where another key has certain values."""

    key: str
    on: Callable[[Any], bool]
    needed: str
    """What brings them to life, for people."""
    keys: tuple[str, ...]
    unless: Any = None
    """A value of theirs that says the same as the switch."""


def _chance(chance: str, *keys: str) -> Switch:
    return Switch(f"augmentation.{chance}", bool, "above 0", tuple(f"augmentation.{key}" for key in keys), 0)


SWITCHES = (
    _chance("warp.chance", "warp.shift", "warp.scale", "warp.rotate"),
    _chance("deformation.chance", "deformation.kinds", "deformation.strength"),
    _chance("brightness_contrast_chance", "brightness", "contrast"),
    _chance("gamma_chance", "gamma"),
    _chance("noise_chance", "noise"),
    _chance("blur_chance", "blur"),
    Switch("augmentation.blur", bool, "to gauss, motion or both", ("augmentation.blur_chance",)),
    Switch("sampling.order", "grid".__eq__, "to grid", ("sampling.overlap",)),
    Switch("sampling.order", "random".__eq__, "to random", ("sampling.foreground_share", "sampling.by_coverage")),
    Switch("optimiser", "sgd".__eq__, "to sgd", ("momentum",)),
    Switch(
        "normalisation.divisor",
        lambda divisor: divisor is None,
        "to none",
        ("normalisation.lower_percent", "normalisation.upper_percent"),
    ),
    Switch("init_from", lambda start: start is None, "to none", ("encoder_digest",)),
)


def check_used(recipe: Recipe, given: Sequence[set[str]]) -> None:
    """Raise RecipeError when a key was given, differs from its default, and changes nothing.

    given: dotted keys, layer by layer: of each file from its base on, of the settings. Who switches off, in a later layer, what
    an earlier one gives, may.
    """
    values, usual = flat(recipe.model_dump(mode="json")), flat(Recipe(name=recipe.name).model_dump(mode="json"))
    for number, layer in enumerate(given):
        later = set[str]().union(*given[number + 1 :])
        for switch in SWITCHES:
            if switch.on(values[switch.key]) or switch.key in later:
                continue
            for key in layer.intersection(switch.keys):
                if values[key] not in (usual[key], switch.unless):
                    raise RecipeError(
                        f"Recipe {recipe.name}: {key} = {values[key]} changes nothing while {switch.key} = "
                        f"{values[switch.key]}. Set {switch.key} {switch.needed}, or leave {key} at {usual[key]}."
                    )
        if any(key.split(".")[0] == "schedule" for key in layer):
            _check_phases(recipe)


def _check_phases(recipe: Recipe) -> None:
    for number, phase in enumerate(recipe.schedule):
        if phase.kind == "constant" and phase.end not in (phase.start, Phase.model_fields["end"].default):
            raise RecipeError(
                f"Recipe {recipe.name}: schedule.{number}.end = {phase.end:g} changes nothing: a constant phase stays at its start, "
                f"{phase.start:g}. Leave it out, or take kind linear or cosine."
            )
