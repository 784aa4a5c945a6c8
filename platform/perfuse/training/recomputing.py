"""Gradient checkpointing: activations are computed again instead of being held (Chen et al. 2016, arXiv:1604.06174)."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from perfuse.errors import RecipeError
from perfuse.models.panels import Panels

LISTS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def hold_fewer_activations(network: Panels) -> None:
    """Let a network hold what goes into its stages and blocks, encoder and decoder alike, and compute the rest again.

    Raises RecipeError for a network that has no such parts.
    """
    parts = [part for child in network.network.children() for part in _blocks(child) or [child] if _is_composite(part)]
    if not parts:
        raise RecipeError(
            f"gradient_checkpointing: {network.settings.module} consists of single layers, so nothing could be computed "
            "again. Build it of modules of several layers, or use a smaller batch with accumulate."
        )
    for part in parts:
        part.forward = partial(checkpoint, part.forward, use_reentrant=False)


@contextmanager
def statistics_held(network: nn.Module) -> Iterator[None]:
    """While gradients are computed: what is computed again counts no second time in the running statistics of batches."""
    before = statistics(network)
    yield
    put_back(network, before)


def statistics(network: nn.Module) -> list[torch.Tensor]:
    """A copy of what a network counts of the batches that it sees."""
    return [buffer.clone() for buffer in network.buffers()]


@torch.no_grad()
def put_back(network: nn.Module, before: list[torch.Tensor]) -> None:
    """As if the network had seen nothing since its `statistics` were copied."""
    for buffer, value in zip(network.buffers(), before, strict=True):
        buffer.copy_(value)


def _blocks(module: nn.Module) -> list[nn.Module]:
    """Items of its outermost lists of modules that consist of several layers."""
    if isinstance(module, LISTS):
        return [item for item in module.children() if _is_composite(item)]
    return [block for child in module.children() for block in _blocks(child)]


def _is_composite(module: nn.Module) -> bool:
    return any(True for _ in module.children()) and any(True for _ in module.parameters())
