"""Recipes from a name, a YAML file or a function, with settings over them; every refusal says what would be allowed."""

import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_core import to_jsonable_python

from perfuse import storage
from perfuse.errors import RecipeError
from perfuse.recipes.built_in import RECIPES
from perfuse.recipes.keys import flat, is_section, unknown_key
from perfuse.recipes.schema import Recipe
from perfuse.recipes.smoke import smoke as shrunk
from perfuse.recipes.unused import check_used
from perfuse.written import parsed, read_mapping

FILES = (".yaml", ".yml")


def load_recipe(name: str, settings: Sequence[str] = (), *, smoke: bool = False) -> Recipe:
    """A built-in recipe, that of a YAML file, or of a function `module:function`, with `key=value` settings over it.

    A file's `base` names the recipe that it changes; a base file lies relative to it. smoke: made small, before the settings.
    Keys of what is nested by dots. Values are words, none or null for no value, a,b for a list, or YAML in brackets:
    losses=[{kind: dice}]. Raises RecipeError that lists the valid choices.
    """
    given: list[set[str]] = []
    values = _named(name, given)
    if smoke:
        values = _values(shrunk(_checked(name, values)))
    given.append(set())
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise RecipeError(f"--set takes key=value, e.g. steps=100 or network.encoder=resnet34; got {setting!r}.")
        given[-1] |= _set(values, key.strip(), text.strip())
    recipe = _checked(name, values)
    check_used(recipe, given)
    return recipe


def to_yaml(recipe: Recipe) -> str:
    """A recipe as YAML, in the order of its fields; `load_recipe` reads it back."""
    return yaml.safe_dump(_values(recipe), sort_keys=False, allow_unicode=True)


def differences(a: Recipe, b: Recipe) -> dict[str, tuple[Any, Any]]:
    """Where two recipes differ: values of both by dotted key."""
    left, right = (flat(_values(r)) for r in (a, b))
    return {
        k: (left.get(k), right.get(k))
        for k in [*left, *(k for k in right if k not in left)]
        if left.get(k) != right.get(k)
    }


def _values(recipe: Recipe) -> dict[str, Any]:
    """JSON-able, all keys, also those that digests leave out at their defaults."""
    return {key: to_jsonable_python(value) for key, value in recipe}


def _named(name: str, given: list[set[str]], above: tuple[str, ...] = ()) -> dict[str, Any]:
    """A recipe's values; to `given` it adds the keys of each file, from the base on, that does not give all there are."""
    if name in above:
        raise RecipeError(f"A recipe cannot be its own base: {' → '.join((*above, name))}.")
    if name.lower().endswith(FILES):
        return _from_file(name, given, above)
    if ":" in name:
        return _from_function(name)
    if name in RECIPES:
        return _values(RECIPES[name]())
    near = get_close_matches(name, RECIPES, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise RecipeError(
        f"Unknown recipe {name!r}.{hint} Built in: {', '.join(RECIPES)}. A file's name ends in .yaml; a function is "
        "module:function."
    )


def _from_file(name: str, given: list[set[str]], above: tuple[str, ...]) -> dict[str, Any]:
    try:
        values = read_mapping(name)
    except (OSError, ValueError) as error:
        raise RecipeError(
            f"{name} is no readable recipe: {error}. `perfuse recipe show quickstart` prints one."
        ) from error
    base, called = values.pop("base", None), Path(name).stem
    if base is None:
        under = _values(Recipe(name=called))
    elif isinstance(base, str):
        base = storage.beside(name, base) if base.lower().endswith(FILES) else base
        under = _named(base, given, (*above, name))
    else:
        raise RecipeError(f"{name}: base = {base!r} names no recipe. Built in: {', '.join(RECIPES)}.")
    if not Recipe.model_fields.keys() <= values.keys():
        given.append(set(flat(values)))
    return _merged(under, {"name": called, **values})


def _from_function(name: str) -> dict[str, Any]:
    """What a function of the user's own returns; its module is looked for in the current folder too."""
    module, _, function = name.partition(":")
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        made = getattr(import_module(module), function)()
    except Exception as error:  # it is the user's code
        raise RecipeError(
            f"Recipe {name}: {type(error).__name__}: {error}. Wanted is module:function, a function without arguments that returns a "
            "perfuse.recipes.Recipe, in this folder or installed."
        ) from error
    finally:
        sys.path.remove(here)
    if not isinstance(made, Recipe):
        raise RecipeError(f"Recipe {name}: the function returned {made!r}, not a perfuse.recipes.Recipe.")
    return _values(made)


def _merged(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Sections are merged key by key; all else, lists too, is replaced."""
    both = {k: _merged(under[k], v) for k, v in over.items() if isinstance(v, dict) and isinstance(under.get(k), dict)}
    return under | over | both


def _checked(name: str, values: dict[str, Any]) -> Recipe:
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        faults = "; ".join(_fault(dict(fault)) for fault in error.errors())
        raise RecipeError(f"Recipe {name}: {faults.rstrip('.')}.") from error


def _fault(fault: dict[str, Any]) -> str:
    place = ".".join(map(str, fault["loc"])) or "recipe"
    if fault["type"] == "extra_forbidden":
        return unknown_key(place)
    said = fault["msg"].removeprefix("Value error, ")
    return f"{place}: {said}" if isinstance(fault["input"], dict) else f"{place} = {fault['input']!r}: {said}"


def _set(values: Any, key: str, text: str) -> set[str]:
    """Replace one value of a recipe; that it takes the value is checked with the whole. Returns the dotted keys given."""
    *above, last = key.split(".")
    try:
        for part in above:
            at = _index(values, part)
            if values[at] is None:
                values[at] = {}
            values = values[at]
        place = _index(values, last)
        before = values[place] if isinstance(values, list) else values.get(place)
    except IndexError:
        raise RecipeError(
            f"{key}: there is no such item; the list holds {len(values)}. Give all of them: key=[{{…}}, {{…}}]"
        ) from None
    except (KeyError, AttributeError, TypeError, ValueError):
        raise RecipeError(unknown_key(key)) from None
    given = _value(text)
    if isinstance(before, dict) and not isinstance(given, dict) and is_section(key):
        raise RecipeError(unknown_key(key))
    if isinstance(given, str) and (isinstance(before, (list, dict)) or "," in given):
        given = [item.strip() for item in given.split(",") if item.strip()]
    values[place] = given
    return set(flat({key: given}))


def _index(values: Any, part: str) -> Any:
    if not isinstance(values, list):
        return part
    if not part.isdecimal():
        raise KeyError(part)
    return int(part)


def _value(text: str) -> Any:
    """A word, which pydantic then reads; None, said as none or null; or what is written as a YAML list or mapping."""
    if text.lower() in ("none", "null"):
        return None
    if not text.startswith(("[", "{")):
        return text
    try:
        return parsed(text)
    except ValueError as error:
        raise RecipeError(f"{text!r} is neither a list [a, b] nor a mapping {{key: value}}: {error}") from error
