"""Pretrained encoders: from a folder or URL of one's own, or as the libraries publish them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from perfuse import settings, storage
from perfuse.contract import Network
from perfuse.errors import RecipeError, ServerError

if TYPE_CHECKING:
    from torch import Tensor, nn

PUBLISHED = "imagenet"
"""What encoder_weights says of an encoder of timm, whose weights are named by its name."""


@dataclass(frozen=True)
class Start:
    """How an encoder gets its first weights."""

    options: dict[str, Any]
    """For `smp.create_model`."""
    encoder: "nn.Module | None" = field(default=None)
    """An encoder whose weights are taken over."""

    def fill(self, network: "nn.Module") -> None:
        """Bring the weights into a network that was made with `options`, where that is still to be done."""
        if self.encoder is not None:
            encoder: nn.Module = network.encoder  # type: ignore[assignment]
            encoder.load_state_dict(self.encoder.state_dict())


@contextmanager
def of(network: Network, *, pretrained: bool) -> Iterator[Start]:
    """The first weights of a network's encoder: random, of PERFUSE_ENCODER_WEIGHTS, or published.

    Raises ServerError, with the command that downloads them, when published weights are not at hand.
    """
    if not pretrained or network.encoder_weights is None:
        yield Start({"encoder_weights": None})
        return
    kept, timm = settings.encoder_weights_url(), network.encoder.startswith("tu-")
    if kept is not None:
        state = _kept(network, kept)
        yield _from_timm(state) if timm else _from_smp(network, state)
        return
    if timm and network.encoder_weights != PUBLISHED:
        raise RecipeError(
            f"network.encoder_weights = {network.encoder_weights}: an encoder of timm has its weights in its name, as in "
            f"tu-resnet18.a1_in1k; say {PUBLISHED} or none."
        )
    try:
        yield Start({"encoder_weights": True if timm else network.encoder_weights})
    except (FileNotFoundError, ConnectionError, TimeoutError) as error:
        raise ServerError(_not_cached(network, f"and cannot be downloaded ({type(error).__name__})")) from error


def check_at_hand(network: Network) -> str:
    """What to do where the published weights of a network's encoder are to be downloaded yet; empty: nothing is.

    Looks into PERFUSE_ENCODER_WEIGHTS, or else the cache, and asks no network. Raises RecipeError or ServerError where they
    cannot come: not in the one, or not in the other of a machine that is said to be offline.
    """
    if network.encoder_weights is None or network.module is not None:
        return ""
    kept = settings.encoder_weights_url()
    if kept is not None:
        if not storage.exists(_place(network, kept)):
            raise _not_kept(network, kept)
        return ""
    from huggingface_hub import constants, try_to_load_from_cache

    if _is_elsewhere(network):
        return ""
    repository, files, revision = _published(network)
    if all(isinstance(try_to_load_from_cache(repository, f, revision=revision), str) for f in files):
        return ""
    if constants.HF_HUB_OFFLINE:
        raise ServerError(_not_cached(network, "and this machine is offline"))
    return _not_cached(network, "yet")


def _not_cached(network: Network, why: str) -> str:
    return (
        f"The pretrained weights of encoder {network.encoder!r} are not in the cache {why}. Where there is a network: "
        f"{_download(network)} – then bring the cache here, or the file model.safetensors as {network.encoder}.safetensors into "
        "a folder or URL that PERFUSE_ENCODER_WEIGHTS names. Or start from random weights: --set network.encoder_weights=none"
    )


def _not_kept(network: Network, url: str) -> RecipeError:
    return RecipeError(
        f"PERFUSE_ENCODER_WEIGHTS holds no {_place(network, url)}. Where there is a network: {_download(network)} – and bring "
        f"model.safetensors here as {network.encoder}.safetensors."
    )


def source(network: Network) -> str:
    """Where the pretrained weights of a network's encoder are taken from, for people."""
    kept = settings.encoder_weights_url()
    return f"the libraries' cache ({_download(network)})" if kept is None else _place(network, kept)


def _place(network: Network, url: str) -> str:
    return storage.join(url, f"{network.encoder}.safetensors")


def _from_timm(state: "dict[str, Tensor]") -> Start:
    return Start({"encoder_weights": True, "pretrained_cfg_overlay": {"state_dict": state}})


def _from_smp(network: Network, state: "dict[str, Tensor]") -> Start:
    import segmentation_models_pytorch as smp

    depth = len(network.decoder_channels) if network.decoder_channels else 5
    encoder: nn.Module = smp.encoders.get_encoder(network.encoder, in_channels=3, depth=depth, weights=None)
    encoder.load_state_dict(state)
    encoder.set_in_channels(1 if network.mosaic else network.planes, pretrained=True)  # type: ignore[operator]
    return Start({"encoder_weights": None}, encoder)


def _kept(network: Network, url: str) -> "dict[str, Tensor]":
    from safetensors import SafetensorError
    from safetensors.torch import load

    place = _place(network, url)
    try:
        state: dict[str, Tensor] = load(storage.read_bytes(place))
    except FileNotFoundError as error:
        raise _not_kept(network, url) from error
    except SafetensorError as error:
        raise RecipeError(
            f"{place} is no safetensors file: {error}. Download it again: {_download(network)}"
        ) from error
    return state


def _download(network: Network) -> str:
    """The command that brings published weights into the cache."""
    repository, files, revision = _published(network)
    return f"hf download {repository} {' '.join(files)}{f' --revision {revision}' if revision else ''}"


def _is_elsewhere(network: Network) -> bool:
    """True for the few encoders of timm whose weights are published as a mere file, and cached otherwise."""
    import timm

    published = timm.models.get_pretrained_cfg(network.encoder.removeprefix("tu-"))
    return (
        network.encoder.startswith("tu-") and published is not None and bool(published.url) and not published.hf_hub_id
    )


def _published(network: Network) -> tuple[str, tuple[str, ...], str | None]:
    """Repository, files and revision of published weights."""
    if network.encoder.startswith("tu-"):
        import timm

        published = timm.models.get_pretrained_cfg(network.encoder.removeprefix("tu-"))
        if published is None or not published.hf_hub_id:
            raise RecipeError(
                f"No pretrained weights of {network.encoder!r} are published. Use --set network.encoder_weights=none"
            )
        return published.hf_hub_id, ("model.safetensors",), None
    import segmentation_models_pytorch as smp

    published = smp.encoders.encoders[network.encoder]["pretrained_settings"]
    if network.encoder_weights not in published:
        raise RecipeError(
            f"Encoder {network.encoder!r} has no weights {network.encoder_weights!r}; there are: {', '.join(published)}."
        )
    found = published[network.encoder_weights]
    return found["repo_id"], ("config.json", "model.safetensors"), found["revision"]
