"""What this machine runs networks on, and in which numbers."""

from typing import Literal

from perfuse.errors import RecipeError

Precision = Literal["fp32", "bf16", "fp16"]


def best_device() -> str:
    """`cuda` where there is a GPU, else `cpu`."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def resolve_precision(precision: Literal["auto", "fp32", "bf16", "fp16"], device: str) -> Precision:
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
