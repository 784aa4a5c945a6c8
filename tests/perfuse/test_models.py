import platform
import re
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from perfuse.contract import Network
from perfuse.errors import RecipeError, ServerError
from perfuse.models import build, check_at_hand, check_size, resolve_precision, with_source
from perfuse.recipes import Recipe, load_recipe
from perfuse.recipes.checking import check_network

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = Network(encoder="resnet18", encoder_weights="imagenet", decoder_channels=(16, 16, 8, 8, 8))
OWN = """
import torch

class Pixelwise(torch.nn.Module):
    def __init__(self, in_channels, classes):
        super().__init__()
        self.mix = torch.nn.Conv2d(in_channels, classes, 1)

    def forward(self, x):
        return self.mix(x)

class Module(Pixelwise):
    def __init__(self, in_channels, classes):
        super().__init__(in_channels, classes)
        self.mix = torch.nn.Sequential(self.mix, torch.nn.Sigmoid())

class Functional(Pixelwise):
    def forward(self, x):
        return torch.nn.functional.interpolate(self.mix(x).sigmoid(), x.shape[-2:], mode="bilinear")

class AtInference(Pixelwise):
    def forward(self, x):
        return self.mix(x) if self.training else self.mix(x).sigmoid()

class OfTwo(Pixelwise):
    def __init__(self, in_channels, classes):
        super().__init__(in_channels, 2 * classes)

    def forward(self, x):
        return torch.softmax(self.mix(x).unsqueeze(2), 1)[:, 1:].squeeze(2)

class Partly(Pixelwise):
    def forward(self, x):
        logits = self.mix(x)
        return torch.cat([logits[:, :, :1], torch.tanh(logits[:, :, 1:])], 2)

class Attentive(Pixelwise):
    def forward(self, x):
        return self.mix(x * x.mean((2, 3), keepdim=True).sigmoid()) * x.mean().sigmoid()

class Counting(Pixelwise):  # by values, which shapes alone do not give
    def forward(self, x):
        return torch.sigmoid(self.mix(x) * len(x.unique()))

class Bare(torch.nn.Identity):
    pass

class Coarse(Pixelwise):
    def forward(self, x):
        return self.mix(x)[..., ::2, ::2]
"""


def changed(**fields) -> Network:
    return Network.model_validate(SMALL.model_dump() | fields)


@pytest.mark.parametrize("planes", [1, 3])
@pytest.mark.parametrize("architecture", ["unet", "unetplusplus"])
def test_a_network_answers_one_logit_a_pixel(architecture: str, planes: int) -> None:
    network = build(changed(architecture=architecture, planes=planes)).eval()
    with torch.inference_mode():
        logits = network(torch.randn(2, planes, 64, 96))
    assert logits.shape == (2, 1, 64, 96)
    assert logits.min() < 0, "logits, not probabilities"


@pytest.mark.parametrize(
    "encoder",
    [
        "tu-maxvit_tiny_tf_512",
        "tu-tf_efficientnetv2_b0",
        "se_resnext50_32x4d",
        "dpn68",
        "tu-resnest14d",
        "tu-regnety_002",
        "mit_b0",
        "vgg11",
        "tu-convnext_atto",
    ],
)
def test_the_smallest_of_each_family_learns_from_three_planes(encoder: str) -> None:
    size = 64 if "maxvit" in encoder else None
    network = build(changed(encoder=encoder, planes=3, outputs="all", encoder_size=size)).train()
    logits = network(torch.randn(2, 3, 64, 64))
    assert logits.shape == (2, 3, 64, 64)
    logits.square().mean().backward()
    gradients = [p.grad for p in network.encoder.parameters() if p.grad is not None]
    assert all(bool(g.isfinite().all()) for g in gradients)
    assert gradients[0].any(), "what sees the planes first learns"


@pytest.mark.parametrize("architecture", ["fpn", "linknet", "pan", "deeplabv3plus", "manet", "upernet", "segformer"])
def test_other_architectures_answer_too(architecture: str) -> None:
    network = build(changed(architecture=architecture, decoder_channels=None, planes=5)).eval()
    with torch.inference_mode():
        assert network(torch.randn(1, 5, 128, 128)).shape == (1, 1, 128, 128)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"encoder": "resnet81"}, "resnet18"),
        ({"encoder": "tu-resnet81"}, "tu-resnet18"),
        ({"architecture": "unett"}, "unet, "),
        ({"architecture": "fpn"}, "decoder_channels"),
        ({"encoder_size": 64}, "cannot be built: encoder_size is for"),
        ({"encoder": "tu-resnet18", "encoder_size": 64}, "cannot be built.*img_size"),
    ],
)
def test_a_network_that_does_not_exist_is_refused(change, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        build(changed(**change))


def test_an_encoder_of_fixed_windows_says_what_it_can_see() -> None:
    maxvit = changed(encoder="tu-maxvit_tiny_tf_512")
    with pytest.raises(RecipeError, match=r"of 384 pixels .*It can see: 512, 1024\. .*encoder_size"):
        check_size(maxvit, (512, 384))
    check_size(maxvit.model_copy(update={"encoder_size": 384}), (384,))
    check_size(changed(planes=4, outputs="all", mosaic=True), (32, 256))


@pytest.fixture
def ours(tmp_path, monkeypatch) -> str:
    (tmp_path / "endings_of_test_models.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    return "endings_of_test_models"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Module", r"Module ends in an activation \(sigmoid\)\. Losses.* take logits"),
        ("Functional", r"\(sigmoid\)"),
        ("AtInference", r"\(sigmoid\)"),
        ("OfTwo", r"\(softmax\)"),
        ("Partly", r"\(tanh\)"),
        ("Counting", r"\(sigmoid\)"),
        ("Bare", "Bare has no parameters, so there is nothing to train"),
        ("Coarse", r"must answer in the shape \(1, 1, 32, 32\); it answers \(1, 1, 16, 16\)"),
    ],
)
def test_a_network_that_answers_no_logits_is_refused_before_it_trains(ours: str, name: str, said: str) -> None:
    recipe = load_recipe("quickstart", [f"network.module={ours}:{name}", "network.planes=1", "crop=32"])
    with pytest.raises(RecipeError, match=said):
        check_network(recipe)


@pytest.mark.parametrize("name", ["Pixelwise", "Attentive"])
def test_activations_inside_a_network_are_its_own_affair(ours: str, name: str) -> None:
    check_network(load_recipe("quickstart", [f"network.module={ours}:{name}", "network.planes=1", "crop=32"]))


@pytest.mark.parametrize("encoder", ["mit_b0", "efficientnet-b0", "tu-resnest14d"])
def test_a_recipe_is_checked_with_encoders_of_any_family(encoder: str) -> None:
    """Some compute numbers while they are built, which shapes alone do not give."""
    network = Network(encoder=encoder, encoder_weights=None)
    weights = sum(p.numel() for p in build(network).parameters())
    assert check_network(Recipe(name="r", network=network)) == weights


def test_a_network_of_ones_own_is_pinned_by_its_source(tmp_path, monkeypatch) -> None:
    file = tmp_path / "ours_of_test_models.py"
    file.write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    network = with_source(changed(module="ours_of_test_models:Pixelwise", planes=4, outputs="all"))
    made = build(network)
    x = torch.randn(1, 4, 6, 6)
    torch.testing.assert_close(made(x), made.network.mix(x), rtol=0, atol=0)
    assert list(made.state_dict()) == ["mix.weight", "mix.bias"]
    with pytest.raises(RecipeError, match="must answer in the shape"):
        build(changed(module="ours_of_test_models:Coarse", planes=1))(x[:, :1])
    file.write_text(OWN + "\n# changed\n")
    with pytest.raises(RecipeError, match="The source of ours_of_test_models:Pixelwise is not that"):
        build(network)


@pytest.mark.parametrize("module", ["nowhere_at_all:Net", "nowhere.at.all:Net", "os", "perfuse.errors:Nothing"])
def test_a_module_that_is_not_there_is_refused(module: str) -> None:
    with pytest.raises(RecipeError, match=r"PYTHONPATH|Nothing"):
        build(changed(module=module))


def test_offline_pretrained_weights_are_refused_with_the_command_that_brings_them(monkeypatch, tmp_path) -> None:
    monkeypatch.delenv("PERFUSE_ENCODER_WEIGHTS", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        ServerError, match=r"hf download smp-hub/resnet18\.imagenet .*--revision \w+.*encoder_weights=none"
    ):
        build(SMALL, pretrained=True)
    with pytest.raises(ServerError, match=r"hf download timm/resnet18\.\w+ model\.safetensors"):
        build(changed(encoder="tu-resnet18"), pretrained=True)
    with pytest.raises(RecipeError, match=r"imagnet.*Available options are.*imagenet"):
        build(changed(encoder_weights="imagnet"), pretrained=True)


def test_whether_pretrained_weights_are_at_hand_is_known_beforehand(monkeypatch, tmp_path) -> None:
    monkeypatch.delenv("PERFUSE_ENCODER_WEIGHTS", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    command = r"hf download timm/resnet18\.a1_in1k model\.safetensors"
    network = changed(encoder="tu-resnet18")
    assert re.search(rf"not in the cache yet\. .*{command}", check_at_hand(network))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ServerError, match=rf"this machine is offline\. .*{command}"):
        check_at_hand(network)
    for kept in ("snapshots/1/model.safetensors", "refs/main"):
        file = tmp_path / "models--timm--resnet18.a1_in1k" / kept
        file.parent.mkdir(parents=True)
        file.write_text("1")
    assert not check_at_hand(network)
    assert not check_at_hand(changed(encoder_weights=None))
    assert not check_at_hand(changed(encoder="tu-legacy_seresnet18"))
    monkeypatch.setenv("PERFUSE_ENCODER_WEIGHTS", str(tmp_path))
    with pytest.raises(RecipeError, match=rf"holds no .*tu-resnet18\.safetensors.*{command}"):
        check_at_hand(network)
    (tmp_path / "tu-resnet18.safetensors").touch()
    assert not check_at_hand(network)


@pytest.mark.parametrize("encoder", ["resnet18", "tu-resnet18"])
def test_pretrained_weights_come_from_a_folder_of_ones_own(encoder: str, monkeypatch, tmp_path) -> None:
    """Published for three colours, they become those of one plane by the sum over the colours."""
    published = build(changed(encoder=encoder, planes=3)).encoder.state_dict()
    first = "conv1.weight" if encoder == "resnet18" else "model.conv1.weight"
    save_file(
        {k.removeprefix("model."): v.contiguous() for k, v in published.items()}, tmp_path / f"{encoder}.safetensors"
    )
    monkeypatch.setenv("PERFUSE_ENCODER_WEIGHTS", str(tmp_path))
    found = build(changed(encoder=encoder), pretrained=True).encoder.state_dict()
    torch.testing.assert_close(found.pop(first), published.pop(first).sum(1, keepdim=True))
    for name, value in published.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=0)
    with pytest.raises(RecipeError, match=r"holds no .*resnet34\.safetensors.*hf download"):
        build(changed(encoder="resnet34"), pretrained=True)


def test_precision_is_chosen_only_when_nobody_did() -> None:
    assert resolve_precision("fp32", "cpu") == "fp32"
    assert resolve_precision("bf16", "cpu") == "bf16"
    assert resolve_precision("auto", "cpu") in {"fp32", "bf16"}
    with pytest.raises(RecipeError, match="needs a GPU"):
        resolve_precision("fp16", "cpu")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is about glibc's allocator")
def test_memory_of_freed_arrays_is_kept_for_the_next() -> None:
    script = (
        "import resource, sys, torch\n"
        "from perfuse.models import keep_freed_memory\n"
        "if sys.argv[1:]: keep_freed_memory()\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "for _ in range(16): torch.ones(2**24)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)\n"
    )

    def faults(*words: str) -> int:
        return int(subprocess.run([sys.executable, "-c", script, *words], check=True, capture_output=True).stdout)

    assert faults() > 4 * faults("kept")


def test_weights_that_no_encoder_of_timm_has_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"in1k21: an encoder of timm has its weights in its name.*imagenet or none"):
        build(changed(encoder="tu-resnet18", encoder_weights="in1k21"), pretrained=True)
