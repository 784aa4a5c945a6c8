"""Recipes from their name or a YAML file, with settings over them; every refusal says what would be allowed."""

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from perfuse.errors import RecipeError
from perfuse.recipes.built_in import RECIPES
from perfuse.recipes.schema import Recipe

FILES = (".yaml", ".yml")


def load_recipe(name: str, settings: Sequence[str] = ()) -> Recipe:
    """A built-in recipe, or that of a YAML file, with `key=value` settings over it; keys of what is nested by dots.

    Values are words, none for no value, a,b for a list, or YAML in brackets: losses=[{kind: dice}].
    Raises RecipeError that lists the valid choices.
    """
    if name.lower().endswith(FILES):
        values = _from_file(Path(name))
    elif name in RECIPES:
        values = RECIPES[name]().model_dump(mode="json")
    else:
        raise RecipeError(f"Unknown recipe {name!r}. Built in: {', '.join(RECIPES)}. A file's name ends in .yaml.")
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise RecipeError(f"--set takes key=value, e.g. steps=100 or network.encoder=resnet34; got {setting!r}.")
        _set(values, key.strip(), text.strip())
    return _checked(name, values)


def to_yaml(recipe: Recipe) -> str:
    """A recipe as YAML, in the order of its fields; `load_recipe` reads it back."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def differences(a: Recipe, b: Recipe) -> dict[str, tuple[Any, Any]]:
    """Where two recipes differ: values of both by dotted key."""
    left, right = (_flat(r.model_dump(mode="json")) for r in (a, b))
    return {
        k: (left.get(k), right.get(k))
        for k in [*left, *(k for k in right if k not in left)]
        if left.get(k) != right.get(k)
    }


def _from_file(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RecipeError(
            f"{path} is no readable recipe: {error}. `perfuse recipe show quickstart` prints one."
        ) from error
    if not isinstance(values, dict):
        raise RecipeError(
            f"{path} holds no recipe: keys with values are wanted, as `perfuse recipe show quickstart` prints."
        )
    return {"name": path.stem, **values}


def _checked(name: str, values: dict[str, Any]) -> Recipe:
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            raise RecipeError(f"Recipe {name}: {_unknown(place)}") from error
        raise RecipeError(f"Recipe {name}: {place or 'recipe'} = {first['input']!r}: {first['msg']}.") from error


def _set(values: Any, key: str, text: str) -> None:
    """Replace one value of a recipe, before it is validated."""
    *above, last = key.split(".")
    try:
        for part in above:
            values = values[_index(values, part)]
        place = _index(values, last)
        nested = isinstance(values[place], dict)
    except (KeyError, IndexError, TypeError, ValueError):
        raise RecipeError(_unknown(key)) from None
    given = _value(text)
    if nested and not isinstance(given, dict):
        raise RecipeError(_unknown(key))
    if isinstance(given, str) and (isinstance(values[place], list) or "," in given):
        given = [item.strip() for item in given.split(",") if item.strip()]
    values[place] = given


def _index(values: Any, part: str) -> Any:
    return int(part) if isinstance(values, list) else part


def _value(text: str) -> Any:
    """A word, which pydantic then reads; None; or what is written as a YAML list or mapping."""
    if text.lower() == "none":
        return None
    if not text.startswith(("[", "{")):
        return text
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"{text!r} is neither a list [a, b] nor a mapping {{key: value}}: {error}") from error


def _flat(values: Any, above: str = "") -> dict[str, Any]:
    if isinstance(values, dict):
        return {k: v for name, value in values.items() for k, v in _flat(value, f"{above}{name}.").items()}
    if isinstance(values, list) and any(isinstance(v, dict) for v in values):
        return {k: v for at, value in enumerate(values) for k, v in _flat(value, f"{above}{at}.").items()}
    return {above.rstrip("."): values}


def keys(model: type[BaseModel] = Recipe, above: str = "") -> list[str]:
    """All keys that can be set, dotted."""
    found: list[str] = []
    for name, info in model.model_fields.items():
        kind = info.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            found += keys(kind, f"{above}{name}.")
        else:
            found.append(above + name)
    return found


def _unknown(key: str) -> str:
    near = get_close_matches(key, keys(), n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    return f"Unknown key {key!r}.{hint} There are: {', '.join(keys())}."
