"""Weights from elsewhere: another training, a registered model, a published checkpoint."""

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from perfuse.bundle import Bundle, weights_digest
from perfuse.cli import build as cli
from perfuse.contract import Contract, Forward, Network
from perfuse.errors import RecipeError, RegistryError
from perfuse.importing import import_weights
from perfuse.models import build, fit_weights, read_weights
from perfuse.recipes import load_recipe
from perfuse.registry import load_bundle, register
from perfuse.tracking import Run
from perfuse.training import checkpoints, finished_bundle
from perfuse.training.initial import initial_weights, pinned
from perfuse.training.job import Source, TrainingJob
from perfuse.training.state import State

pytestmark = pytest.mark.usefixtures("one_thread")

SETTINGS = ["network.encoder=tu-test_resnet", "network.decoder_channels=16,16,8,8,8", "network.planes=1", "tile=64"]
RECIPE = load_recipe("quickstart", SETTINGS)


def weights(seed: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return build(RECIPE.network).state_dict()


@pytest.fixture
def run(tmp_path: Path) -> str:
    """A training, a1, at step 40, which was best at step 30."""
    course = {"position": 40}
    state = {
        "step": 40,
        "best_step": 30,
        "judged": True,
        "course": course,
        "averaged": weights(40),
        "best": weights(30),
    }
    checkpoints.save(str(tmp_path / "a1"), state)
    return str(tmp_path)


def job(storage: str, init_from: str, **network) -> TrainingJob:
    source = Source(url="nowhere", specimen="a", donor="a", label="human", scan_digest="", label_digest="")
    update = {"init_from": init_from, "network": RECIPE.network.model_copy(update=network)}
    recipe = RECIPE.model_copy(update=update)
    return TrainingJob(
        recipe=recipe, train=(source,), validation=(source,), folder=f"{storage}/new", key="", pixel_um=(50, 50)
    )


@pytest.mark.parametrize(
    ("wish", "name", "seed"), [("a1", "a1@30", 30), ("a1@30", "a1@30", 30), ("a1@40", "a1@40", 40)]
)
def test_a_training_starts_from_the_best_or_the_latest_of_another(run: str, wish: str, name: str, seed: int) -> None:
    assert pinned(wish, run) == name
    state = State(job(run, name), None, "cpu", "fp32")
    for key, value in weights(seed).items():
        torch.testing.assert_close(state.network.state_dict()[key], value, rtol=0, atol=0)
        torch.testing.assert_close(state.averaged.state_dict()[key], value, rtol=0, atol=0)
    assert state.origin["init_from"] == name


@pytest.mark.parametrize(
    ("wish", "said"), [("a1@35", r"30 \(the best\) and 40 \(the latest\)"), ("a2", "there is no training")]
)
def test_a_start_that_is_not_there_is_refused(run: str, wish: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        pinned(wish, run)


def test_the_digest_of_a_pretrained_encoder_survives_into_the_lineage(tmp_path, monkeypatch) -> None:
    published = {k.removeprefix("encoder.model."): v for k, v in weights(8).items() if k.startswith("encoder.model.")}
    colours = {k: v.repeat(1, 3, 1, 1) / 3 if k == "conv1.0.weight" else v for k, v in published.items()}
    save_file(colours, tmp_path / "tu-test_resnet.safetensors")
    monkeypatch.setenv("PERFUSE_ENCODER_WEIGHTS", str(tmp_path))
    made = job(str(tmp_path), "", encoder_weights="imagenet")
    made = made.model_copy(update={"recipe": made.recipe.model_copy(update={"init_from": None, "steps": 1})})
    state = State(made, None, "cpu", "fp32")
    encoder = {k.removeprefix("encoder."): v for k, v in state.network.state_dict().items() if k.startswith("encoder.")}
    state.step = state.course.position = 1
    state.keep_best(1.0)
    checkpoints.save(made.folder, state.as_dict())
    assert finished_bundle(made).lineage["origin"] == {
        "encoder": "tu-test_resnet",
        "encoder_weights": "imagenet",
        "encoder_sha256": weights_digest(encoder),
    }
    torch.testing.assert_close(
        encoder["model.layer1.0.conv1.weight"], published["layer1.0.conv1.weight"], rtol=0, atol=0
    )


def test_an_encoder_that_is_pinned_is_taken_and_another_is_refused_with_both_digests(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PERFUSE_ENCODER_WEIGHTS", str(tmp_path))
    published = {k.removeprefix("encoder.model."): v for k, v in weights(8).items() if k.startswith("encoder.model.")}
    published["conv1.0.weight"] = published["conv1.0.weight"].repeat(1, 3, 1, 1)
    save_file(published, tmp_path / "tu-test_resnet.safetensors")
    made = job(str(tmp_path), "", encoder_weights="imagenet")

    def digest(pinned: str | None) -> str:
        recipe = made.recipe.model_copy(update={"init_from": None, "encoder_digest": pinned})
        return str(State(made.model_copy(update={"recipe": recipe}), None, "cpu", "fp32").origin["encoder_sha256"])

    first = digest(None)
    assert digest(first) == first
    published["bn1.weight"][0] += 1e-3
    save_file(published, tmp_path / "tu-test_resnet.safetensors")
    other = digest(None)
    assert other != first
    with pytest.raises(RecipeError, match=rf"tu-test_resnet\.safetensors have the digest {other}.*pins.* {first}\."):
        digest(first)


def test_a_digest_that_pins_nothing_is_refused() -> None:
    pin = "encoder_digest=" + "0" * 64
    with pytest.raises(RecipeError, match="pins pretrained weights, and this network starts from none"):
        load_recipe("quickstart", [pin])
    assert load_recipe("sennet_13th", [pin]).encoder_digest == "0" * 64
    with pytest.raises(RecipeError, match="encoder_digest = 'imagenet'"):
        load_recipe("sennet_13th", ["encoder_digest=imagenet"])


def test_another_network_does_not_fit(run: str) -> None:
    with pytest.raises(
        RecipeError,
        match=r"a1@30 do not fit.*of another shape: encoder\.model\.conv1.*\(.*, 1, 3, 3\), not \(.*, 3, 3, 3\)",
    ):
        State(job(run, "a1@30", planes=3), None, "cpu", "fp32")


def test_a_training_starts_from_a_registered_model_whose_alias_is_pinned(run: str, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PERFUSE_WORKDIR", str(tmp_path / "work"))
    forward = Forward(network=RECIPE.network, voxel_size_um=(10, 100), tile=64)
    register(Bundle(Contract(forward=forward), weights(7), {}), "tubes", Run.start("tubes").id)
    name = pinned("models:/tubes@challenger", run)
    assert name == "models:/tubes/1"
    for key, value in initial_weights(job(run, name)).items():
        torch.testing.assert_close(value, weights(7)[key], rtol=0, atol=0)
    with pytest.raises(RegistryError, match="versions: 1"):
        pinned("models:/tubes/2", run)


@pytest.mark.parametrize(
    ("ending", "wrapped"),
    [
        (".safetensors", lambda s: s),
        (".pt", lambda s: {f"module.{k}": v for k, v in s.items()}),
        (".pth", lambda s: {"epoch": 3, "state_dict": {f"module.model.{k}": v for k, v in s.items()}}),
    ],
)
def test_published_weights_become_a_bundle(tmp_path, ending: str, wrapped) -> None:
    file = tmp_path / f"weights{ending}"
    (save_file if ending == ".safetensors" else torch.save)(wrapped(weights(3)), file)
    recipe = RECIPE.changed(window="max", blend="probability", turns="quarters", scales=(1.0, 2.0))
    bundle = import_weights(str(file), recipe, (45, 65), 51)
    assert list(bundle.weights) == list(weights(3))
    for key, value in weights(3).items():
        torch.testing.assert_close(bundle.weights[key], value, rtol=0, atol=0)
    assert bundle.contract.forward.voxel_size_um == (45, 65)
    wanted = ("tile", "overlap", "axes", "normalisation", "window", "blend", "turns", "scales")
    assert all(getattr(bundle.contract.forward, name) == getattr(recipe, name) for name in wanted)
    assert bundle.contract.decision.threshold == 51
    assert bundle.lineage["imported"] == file.name


class Evil:
    def __reduce__(self):
        return print, ("this code must not run",)


def test_a_file_that_would_run_code_is_refused(tmp_path, capsys) -> None:
    (tmp_path / "evil.pt").write_bytes(pickle.dumps({"a": Evil()}, protocol=2))
    torch.save({"a": Evil()}, tmp_path / "evil.pth")
    for name in ("evil.pt", "evil.pth"):
        with pytest.raises(RecipeError, match="cannot be read as plain weights"):
            read_weights(str(tmp_path / name))
    assert "must not run" not in capsys.readouterr().out


def test_what_does_not_fit_is_named() -> None:
    given = {k: v for k, v in weights(0).items() if not k.startswith("segmentation_head")} | {
        "aux.weight": torch.ones(1)
    }
    with pytest.raises(RecipeError, match=r"2 missing: segmentation_head\.0\.weight, .*1 unexpected: aux\.weight"):
        fit_weights(build(RECIPE.network), given, "it")


def test_the_verb_registers_a_challenger(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PERFUSE_WORKDIR", str(tmp_path / "work"))
    save_file(weights(5), tmp_path / "w.safetensors")
    words = ["model", "import", str(tmp_path / "w.safetensors"), "--recipe", "quickstart", "--name", "tubes"]
    options = [w for s in SETTINGS for w in ("--set", s)]
    ran = CliRunner().invoke(
        cli(), [*words, *options, "--voxel-size-um", "45", "65", "--threshold", "0.2", "--json"], catch_exceptions=False
    )
    assert ran.exit_code == 0, ran.output
    bundle = load_bundle("models:/tubes@challenger")
    assert bundle.uri == "models:/tubes/1"
    assert bundle.contract.decision.threshold == 51
    assert isinstance(bundle.contract.forward.network, Network)
    torch.testing.assert_close(bundle.weights["segmentation_head.0.weight"], weights(5)["segmentation_head.0.weight"])
