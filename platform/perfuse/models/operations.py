"""Floating point operations of networks, and the GPU-hours that they make: from shapes alone, where there is no GPU to measure on."""

from functools import lru_cache

from perfuse.contract import Network
from perfuse.errors import RecipeError
from perfuse.models.building import IMPOSSIBLE, build
from perfuse.models.machine import best_device

SUSTAINED = 50e12
"""Floating point operations a second that a data-centre GPU is taken to sustain in bf16."""
LEARNING = 3
"""A training step takes this many times the operations of an answer: forward, and twice that backward."""


def gpu_hours(operations: float) -> float:
    """Hours on a GPU that sustains `SUSTAINED`."""
    return operations / SUSTAINED / 3600


@lru_cache
def operations(network: Network, side: int) -> int:
    """Of the answer to one square crop, as PyTorch counts them: on shapes, or on a picture where those do not pass.

    Raises RecipeError for a network that answers neither here.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    problem = None
    for device in ("meta", best_device()):
        counter = FlopCounterMode(display=False)
        try:
            with counter, torch.inference_mode():
                build(network).to(device).eval()(torch.zeros((1, network.planes, side, side), device=device))
        except IMPOSSIBLE as error:
            problem = error
            continue
        return int(counter.get_total_flops())
    raise RecipeError(f"{network.module or network.encoder} does not answer crops of {side} pixels here: {problem}")
