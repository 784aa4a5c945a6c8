"""The keys of a recipe, and what was meant by one that is none of them."""

import re
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any, get_args, get_origin

from pydantic import BaseModel

from perfuse.recipes.schema import Recipe

ITEM = re.compile(r"\.\d+(?=\.|$)")
"""The number of an item of a list, as in losses.1.weight."""
DERIVED = "network.classes"
"""Follows from `labels`."""


def keys(model: type[BaseModel] = Recipe, above: str = "") -> list[str]:
    """All keys that can be set, dotted; those of a list's items as of its first, losses.0.kind."""
    found: list[str] = []
    for name, info in model.model_fields.items():
        if above + name == DERIVED:
            continue
        found.append(above + name)
        for inner in _models_in(info.annotation):
            found += keys(inner, f"{above}{name}.{'0.' if get_origin(info.annotation) is tuple else ''}")
    return found


def _models_in(kind: Any) -> list[type[BaseModel]]:
    return [k for k in (kind, *get_args(kind)) if isinstance(k, type) and issubclass(k, BaseModel)]


def is_section(key: str) -> bool:
    """True for a key that is nothing but others below it."""
    return any(k.startswith(f"{ITEM.sub('.0', key)}.") for k in keys())


def unknown_key(key: str, there: Sequence[str] | None = None) -> str:
    """Says that a key does not exist, which is nearest, and which there are beside it: of a recipe, or of what has the keys `there`."""
    there, asked = there or keys(), ITEM.sub(".0", key)
    section = asked
    while section and not any(k.startswith(f"{section}.") for k in there):
        section = section.rpartition(".")[0]
    prefix = f"{section}." if section else ""
    beside = [k for k in there if k.startswith(prefix) and "." not in k.removeprefix(prefix)]
    listed = f"There are: {', '.join(_numbered(k, key) for k in beside)}."
    if section == asked:
        return f"{key!r} holds several values. {listed}"
    elsewhere = [k for k in there if k.endswith(f".{asked}")]
    near = elsewhere or get_close_matches(asked, there, n=1)
    hint = f" Did you mean {_numbered(near[0], key)}?" if near else ""
    return f"Unknown key {key!r}.{hint} {listed}"


def _numbered(key: str, like: str) -> str:
    number = ITEM.search(like)
    return ITEM.sub(number.group() if number else ".0", key)


def flat(values: Any, above: str = "") -> dict[str, Any]:
    """The values of nested mappings and lists of mappings, by dotted key."""
    if isinstance(values, dict):
        return {k: v for name, value in values.items() for k, v in flat(value, f"{above}{name}.").items()}
    if isinstance(values, list) and any(isinstance(v, dict) for v in values):
        return {k: v for at, value in enumerate(values) for k, v in flat(value, f"{above}{at}.").items()}
    return {above.rstrip("."): values}
