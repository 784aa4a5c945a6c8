"""Gradient checkpointing: the same gradients and statistics, fewer activations held."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from perfuse.contract import Network
from perfuse.errors import RecipeError
from perfuse.models import build
from perfuse.models.panels import Panels
from perfuse.training.recomputing import hold_fewer_activations, statistics_held

pytestmark = pytest.mark.usefixtures("one_thread")


@contextmanager
def bytes_saved() -> Iterator[list[int]]:
    """Of distinct tensors that are held for the backward pass."""
    held: dict[int, int] = {}
    total: list[int] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield total
    total.append(sum(held.values()))


def learned(network: Panels, *, size: int) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], int]:
    """Gradients, state, and bytes that were held besides the weights."""
    torch.manual_seed(1)
    image = torch.randn(2, network.settings.planes, size, size)
    weights = sum(p.untyped_storage().nbytes() for p in network.parameters())
    with bytes_saved() as held:
        loss = network.train()(image).square().mean()
    with statistics_held(network):
        loss.backward()
    gradients = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    return gradients, network.state_dict(), held[0] - weights


@pytest.mark.parametrize(
    ("encoder", "size", "share"),
    [
        ("resnet18", 64, 0.6),
        ("efficientnet-b0", 64, 0.5),
        ("densenet121", 64, 0.6),
        ("dpn68", 64, 0.5),
        ("vgg11_bn", 64, 0.6),
        ("mit_b0", 64, 0.6),
        ("tu-convnext_atto", 64, 0.6),
        ("tu-tf_efficientnetv2_b0", 64, 0.5),
        ("tu-maxvit_tiny_tf_512", 64, 0.5),
    ],
)
def test_every_family_gets_the_same_gradients_and_statistics_from_fewer_activations(
    encoder: str, size: int, share: float
) -> None:
    fixed = size if "maxvit" in encoder else None
    settings = Network(encoder=encoder, encoder_weights=None, encoder_size=fixed, decoder_channels=(16, 16, 8, 8, 8))
    torch.manual_seed(0)
    plain, thrifty = build(settings), build(settings)
    thrifty.load_state_dict(plain.state_dict())
    hold_fewer_activations(thrifty)
    assert list(thrifty.state_dict()) == list(plain.state_dict())
    gradients, state, held = learned(plain, size=size)
    again, other, less = learned(thrifty, size=size)
    assert gradients.keys() == again.keys()
    for name, value in gradients.items():
        torch.testing.assert_close(again[name], value, rtol=1e-4, atol=1e-6)
    for name, value in state.items():
        torch.testing.assert_close(other[name], value, rtol=0, atol=0)
    assert less < share * held, f"{less / held:.2f}"


def test_a_network_of_single_layers_is_refused(tmp_path, monkeypatch) -> None:
    (tmp_path / "flat_of_test_recomputing.py").write_text(
        "from torch.nn import Conv2d, Sequential\n"
        "class Flat(Sequential):\n"
        "    def __init__(self, in_channels, classes):\n"
        "        super().__init__(Conv2d(in_channels, 4, 1), Conv2d(4, classes, 1))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RecipeError, match=r"flat_of_test_recomputing:Flat consists of single layers"):
        hold_fewer_activations(build(Network(module="flat_of_test_recomputing:Flat")))
