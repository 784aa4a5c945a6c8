"""Weights from elsewhere into a network: read without running code, fitted by name and shape."""

import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from perfuse import storage
from perfuse.errors import RecipeError

if TYPE_CHECKING:
    from torch import Tensor, nn

PREFIXES = ("_orig_mod.", "module.", "model.", "network.")
"""What compiled, distributed and wrapped networks put in front of every name."""
SHOWN = 5


def read_weights(url: str) -> "dict[str, Tensor]":
    """The tensors of a state dict: .safetensors, or .pt and .pth of torch, also one level down among other things.

    Raises RecipeError for a file that holds none, or that would run code when it is read.
    """
    if url.endswith(".safetensors"):
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            found: dict[str, Tensor] = load(storage.read_bytes(url))
        except SafetensorError as error:
            raise RecipeError(f"{url} is no safetensors file: {error}") from error
        return found
    return _tensors(url, _unpickled(url))


def _unpickled(url: str) -> Any:
    from pickle import UnpicklingError

    import torch

    data = storage.read_bytes(url)
    try:
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (UnpicklingError, EOFError, RuntimeError) as error:
        raise RecipeError(
            f"{url} cannot be read as plain weights, and nothing else of a file is run here: {str(error).splitlines()[0]} "
            "Save it anew where you trust it: torch.save(network.state_dict(), …)"
        ) from error


def _tensors(url: str, saved: Any) -> "dict[str, Tensor]":
    if _is_state(saved):
        return dict(saved)
    states = {key: value for key, value in saved.items() if _is_state(value)} if isinstance(saved, Mapping) else {}
    if len(states) != 1:
        there = ", ".join(map(str, states)) or "none"
        raise RecipeError(f"{url} holds no single state dict; found: {there}. Save network.state_dict() alone.")
    return dict(next(iter(states.values())))


def _is_state(value: Any) -> bool:
    import torch

    return isinstance(value, Mapping) and bool(value) and all(isinstance(v, torch.Tensor) for v in value.values())


def fit_weights(network: "nn.Module", weights: "Mapping[str, Tensor]", source: str) -> None:
    """Load weights, whose names may all stand behind a wrapper's prefix.

    Raises RecipeError that says which names are missing, unexpected or of another shape.
    """
    wanted = network.state_dict()
    given = _without_prefix(weights, set(wanted))
    problems = [
        ("missing", [k for k in wanted if k not in given]),
        ("unexpected", [k for k in given if k not in wanted]),
        (
            "of another shape",
            [
                f"{k} {tuple(given[k].shape)}, not {tuple(wanted[k].shape)}"
                for k in wanted
                if k in given and given[k].shape != wanted[k].shape
            ],
        ),
    ]
    said = [f"{len(names)} {what}: {_some(names)}" for what, names in problems if names]
    if said:
        raise RecipeError(f"The weights of {source} do not fit the recipe's network. {'; '.join(said)}.")
    network.load_state_dict(given)


def _without_prefix(weights: "Mapping[str, Tensor]", wanted: set[str]) -> "dict[str, Tensor]":
    given = dict(weights)
    while given and not wanted & set(given):
        prefix = next((p for p in PREFIXES if all(k.startswith(p) for k in given)), None)
        if prefix is None:
            break
        given = {k.removeprefix(prefix): v for k, v in given.items()}
    return given


def _some(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")
