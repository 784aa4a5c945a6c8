"""Networks from segmentation-models-pytorch, by name; and what this machine runs them on."""

from difflib import get_close_matches
from inspect import signature
from typing import TYPE_CHECKING, Any, Literal

from perfuse.contract import Network
from perfuse.errors import RecipeError, ServerError

if TYPE_CHECKING:
    from torch import nn

Precision = Literal["fp32", "bf16"]


def build(network: Network, *, pretrained: bool = False) -> "nn.Module":
    """The network: float[b, planes, h, w] → logits float[b, 1, h, w]; h and w multiples of 32.

    pretrained: start from `network.encoder_weights`, downloading them when they are not in the cache; else the weights are
    random. Raises RecipeError for names that do not exist, naming the nearest, and ServerError when pretrained
    weights cannot be had.
    """
    import segmentation_models_pytorch as smp

    _check_names(network, list(smp.MODEL_ARCHITECTURES_MAPPING), list(smp.encoders.encoders))
    weights = network.encoder_weights if pretrained else None
    try:
        made: nn.Module = smp.create_model(
            network.architecture,
            encoder_name=network.encoder,
            encoder_weights=weights,
            in_channels=network.planes,
            classes=1,
            **_options(network, smp.MODEL_ARCHITECTURES_MAPPING[network.architecture.lower()]),
        )
    except (FileNotFoundError, ConnectionError, TimeoutError) as error:
        raise ServerError(
            f"The pretrained weights {weights!r} of encoder {network.encoder!r} are not in the cache and cannot be "
            f"downloaded: {error}. Go online, or start from random weights: --set network.encoder_weights=none"
        ) from error
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise RecipeError(f"The network {network!r} cannot be built: {error}") from error
    return made


def _options(network: Network, architecture: type) -> dict[str, Any]:
    if network.decoder_channels is None:
        return {}
    if "decoder_channels" not in signature(architecture).parameters:
        raise ValueError(f"{network.architecture} takes no decoder_channels")
    return {"decoder_channels": network.decoder_channels, "encoder_depth": len(network.decoder_channels)}


def _check_names(network: Network, architectures: list[str], encoders: list[str]) -> None:
    if network.architecture.lower() not in architectures:
        raise RecipeError(_unknown("architecture", network.architecture, architectures))
    if network.encoder.startswith("tu-"):
        import timm

        encoders = [f"tu-{name}" for name in timm.list_models()]
        if network.encoder.split(".")[0] not in encoders:
            raise RecipeError(_unknown("encoder", network.encoder, encoders))
    elif network.encoder not in encoders:
        raise RecipeError(_unknown("encoder", network.encoder, encoders))


def _unknown(what: str, name: str, there: list[str]) -> str:
    near = get_close_matches(name, there, n=5, cutoff=0.4) or sorted(there)[:20]
    return f"No {what} {name!r}. The nearest are: {', '.join(near)}."


def best_device() -> str:
    """`cuda` where there is a GPU, else `cpu`."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def resolve_precision(precision: Literal["auto", "fp32", "bf16"], device: str) -> Precision:
    """`auto` becomes bf16 where the device multiplies it natively, else fp32; what was asked for stays."""
    import torch

    if precision != "auto":
        return precision
    if device.startswith("cuda"):
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16" if native else "fp32"
