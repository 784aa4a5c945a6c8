"""Networks from segmentation-models-pytorch and timm by name, or of one's own."""

import re
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perfuse.contract import Network
from perfuse.errors import RecipeError
from perfuse.models import pretrained as weights
from perfuse.models.machine import best_device
from perfuse.storage import digest_bytes

if TYPE_CHECKING:
    from torch import nn

    from perfuse.models.panels import Panels

IMPOSSIBLE = (KeyError, TypeError, ValueError, RuntimeError, IndexError, AssertionError, AttributeError)
"""What the libraries raise for arguments that do not go together."""
LARGEST = 1024
"""Pixels along an edge, of inputs that are tried to say which ones a network can see."""
ACTIVATION = re.compile("((Log)?Sigmoid|Hardsigmoid|(Log)?Softmax|Softplus|Tanh|Hardtanh|Relu)Backward")
PASSED_ON = re.compile(
    "(Alias|Cat|Clamp|Clone|Expand|Index(Select)?|Permute|PixelShuffle|Select|Slice|Split|(Uns|S)queeze|Stack|ToCopy|Transpose|"
    "Unbind|Upsample(Nearest|Bilinear|Bicubic)2D|(Unsafe)?View)Backward"
)
"""Operations, as autograd calls them, after which the values of an activation are still what they were."""


def build(network: Network, *, pretrained: bool = False) -> "Panels":
    """The network, with what stands in front of it: see `Panels`.

    pretrained: start from `network.encoder_weights`; else the weights are random. Raises RecipeError for names that do
    not exist, naming the nearest, and for what does not go together; ServerError when pretrained weights cannot be had.
    """
    from perfuse.models.panels import Panels

    channels, classes = (1, len(network.class_names)) if network.mosaic else (network.planes, network.logits)
    if network.module is not None:
        return Panels(_own(network.module, network.source_digest, channels, classes), network)
    return Panels(_published(network, channels, classes, pretrained=pretrained), network)


def build_shapes(network: Network) -> "Panels":
    """As `build`, on PyTorch's meta device: without memory for weights, unless it takes numbers to build it."""
    import torch

    try:
        with torch.device("meta"):
            return build(network).to("meta")
    except RecipeError:  # a few encoders of smp compute with tensors while they are built
        return build(network).to("meta")


def _published(network: Network, channels: int, classes: int, *, pretrained: bool) -> "nn.Module":
    import segmentation_models_pytorch as smp

    _check_names(network, list(smp.MODEL_ARCHITECTURES_MAPPING), list(smp.encoders.encoders))
    try:
        options = _options(network, smp.MODEL_ARCHITECTURES_MAPPING[network.architecture.lower()])
        with weights.of(network, pretrained=pretrained) as start:
            made: nn.Module = smp.create_model(
                network.architecture, network.encoder, in_channels=channels, classes=classes, **options, **start.options
            )
            start.fill(made)
    except RecipeError:
        raise
    except IMPOSSIBLE as error:
        raise RecipeError(
            f"{network.architecture} on {network.encoder} with {channels} input channels cannot be built: {error}"
        ) from error
    return made


def _options(network: Network, architecture: type) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if network.encoder_size is not None:
        if not network.encoder.startswith("tu-"):
            raise ValueError("encoder_size is for transformers of timm, tu-…")
        options["img_size"] = network.encoder_size
    if network.decoder_channels is not None:
        if "decoder_channels" not in signature(architecture).parameters:
            raise ValueError(f"{network.architecture} takes no decoder_channels")
        depth = len(network.decoder_channels)
        options |= {"decoder_channels": network.decoder_channels, "encoder_depth": depth}
    return options


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


def with_source(network: Network) -> Network:
    """The network with the digest of its own module's source, so that no other source is taken for it from then on."""
    if network.module is None:
        return network
    return network.model_copy(update={"source_digest": _source_digest(network.module)})


def _source_digest(module: str) -> str:
    place, _, name = module.partition(":")
    try:
        spec = find_spec(place) if name else None
    except (ImportError, ValueError):
        spec = None
    if spec is None or spec.origin is None:
        raise RecipeError(
            f"network.module = {module!r} is not found. Write package.module:Class, of a package that is installed or "
            "whose folder PYTHONPATH names."
        )
    return digest_bytes(Path(spec.origin).read_bytes())


def _own(module: str, expected: str | None, channels: int, classes: int) -> "nn.Module":
    if expected not in (None, _source_digest(module)):
        raise RecipeError(
            f"The source of {module} is not that which the network was trained with ({str(expected)[:16]}…). Bring that "
            "version back, or train anew."
        )
    place, _, name = module.partition(":")
    try:
        made: nn.Module = getattr(import_module(place), name)(in_channels=channels, classes=classes)
    except Exception as error:
        raise RecipeError(
            f"{module}(in_channels={channels}, classes={classes}) fails: {type(error).__name__}: {error}"
        ) from error
    return made


def check_size(network: Network, sizes: Sequence[int]) -> None:
    """Raise RecipeError when a published network cannot see square crops or tiles of these edges; it names those that it can.

    Shapes alone go through the network, and one picture where they do not pass. A network of one's own is not tried.
    """
    if network.module is not None:
        return
    shapes = build_shapes(network).eval()
    for size in sizes:
        if _problem(shapes, size) is None:
            continue
        problem = _problem(build(network).eval(), size)
        if problem is None:
            continue
        fitting = [str(n) for n in range(32, LARGEST + 1, 32) if _problem(shapes, n) is None]
        raise RecipeError(
            f"{network.architecture} on {network.encoder} cannot see crops and tiles of {size} pixels ({problem}). "
            f"It can see: {', '.join(fitting) or f'none up to {LARGEST}'}. Some transformers of timm can be made for another "
            "size: --set network.encoder_size=…"
        )


def _problem(made: "Panels", size: int) -> str | None:
    import torch

    device = next(made.parameters()).device
    try:
        with torch.inference_mode():
            made(torch.zeros(1, made.settings.planes, size, size, device=device))
    except IMPOSSIBLE as error:
        return str(error).split("\n")[0] or type(error).__name__
    return None


def check_logits(network: Network, size: int) -> None:
    """Raise RecipeError when a network of one's own has no parameters, answers another shape, or ends in an activation.

    Published ones have none. It is tried on shapes; on a picture, where they do not pass; not at all where that fails too,
    as for what needs a GPU.
    """
    if network.module is None:
        return
    for device in ("meta", best_device()):
        try:
            made = build(network).eval().to(device)
            if next(made.parameters(), None) is None:
                raise RecipeError(
                    f"{network.module} has no parameters, so there is nothing to train. Name a network that has."
                )
            ending = _ending(made, device, size)
        except RecipeError:
            raise
        except IMPOSSIBLE:
            continue
        if ending is not None:
            raise RecipeError(
                f"{network.module} ends in an activation ({ending}). Losses, blending and thresholds take logits, and apply the "
                "sigmoid themselves: answer what goes into the activation."
            )
        return


def _ending(made: "Panels", device: str, size: int) -> str | None:
    """The activation whose values a network answers, looked for from its end backwards."""
    import torch

    logits = made(torch.zeros(1, made.settings.planes, size, size, device=device))
    found = [logits.grad_fn]
    while found:
        node = found.pop()
        name = "" if node is None else node.name()
        if ending := ACTIVATION.match(name):
            return ending[1].lower()
        if node is not None and PASSED_ON.match(name):
            found += [before for before, _ in node.next_functions]
    return None
