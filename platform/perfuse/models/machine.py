"""What this machine runs networks on, and in which numbers."""

import ctypes
import os
import platform
from typing import Literal

from perfuse.contract import Numbers
from perfuse.errors import RecipeError

Precision = Literal["fp32", "bf16", "fp16"]

MALLOPT = {"M_ARENA_MAX": (-8, 1), "M_MMAP_MAX": (-4, 0), "M_TRIM_THRESHOLD": (-1, 2**31 - 1)}
"""Numbers of glibc's malloc.h, and values: one heap for all threads, large arrays in it too, none of it given back."""


def best_device() -> str:
    """`cuda` where there is a GPU, else `cpu`."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def device_name(device: str) -> str:
    """What people call it: the GPU's model, or the CPU with its cores."""
    import torch

    return f"CPU of {os.cpu_count()} cores" if device == "cpu" else torch.cuda.get_device_name(device)


def resolve_precision(precision: Numbers, device: str) -> Precision:
    """`auto` becomes bf16 where the device multiplies it natively, else fp32; what was asked for stays.

    Raises RecipeError for fp16 on a CPU, which would be slower than any other.
    """
    import torch

    if precision == "fp16" and device == "cpu":
        raise RecipeError("precision = fp16 needs a GPU, and there is none here. Use auto, bf16 or fp32.")
    if precision != "auto":
        return precision
    if device.startswith("cuda"):
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16" if native else "fp32"


def keep_freed_memory() -> None:
    """Let this process keep the memory that a network's activations leave, for the next layer's.

    glibc hands freed arrays of some megabytes back to the kernel, which fills them with zeros when they are asked for again:
    on CPUs a tenth to a quarter of an inference's time, and up to a fifth of a training's (bench/results/allocation.md). Elsewhere than on
    Linux with glibc this does nothing.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        for option, value in MALLOPT.values():
            libc.mallopt(option, value)
