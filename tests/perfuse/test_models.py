import pytest
import torch

from perfuse.contract import Network
from perfuse.errors import RecipeError, ServerError
from perfuse.models import build, resolve_precision

SMALL = Network(encoder="resnet18", encoder_weights="imagenet", decoder_channels=(16, 16, 8, 8, 8))


@pytest.mark.parametrize("planes", [1, 3])
@pytest.mark.parametrize("architecture", ["unet", "unetplusplus"])
def test_a_network_answers_one_logit_a_pixel(architecture: str, planes: int) -> None:
    network = build(SMALL.model_copy(update={"architecture": architecture, "planes": planes})).eval()
    with torch.inference_mode():
        logits = network(torch.randn(2, planes, 64, 96))
    assert logits.shape == (2, 1, 64, 96)
    assert logits.min() < 0, "logits, not probabilities"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"encoder": "resnet81"}, "resnet18"),
        ({"encoder": "tu-resnet81"}, "tu-resnet18"),
        ({"architecture": "unett"}, "unet, "),
        ({"decoder_channels": (8, 8, 8, 8, 8, 8)}, "cannot be built"),
        ({"architecture": "fpn"}, "decoder_channels"),
    ],
)
def test_a_network_that_does_not_exist_is_refused(change, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        build(SMALL.model_copy(update=change))


def test_offline_pretrained_weights_are_refused_with_a_way_out(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ServerError, match=r"--set network[.]encoder_weights=none"):
        build(SMALL, pretrained=True)


def test_precision_is_chosen_only_when_nobody_did() -> None:
    assert resolve_precision("fp32", "cpu") == "fp32"
    assert resolve_precision("bf16", "cpu") == "bf16"
    assert resolve_precision("auto", "cpu") in {"fp32", "bf16"}
