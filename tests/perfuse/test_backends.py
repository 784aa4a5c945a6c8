"""Backends answer alike up to what their numbers can hold; the one that was chosen stays, and says what it costs."""

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from timm.layers import BatchNormAct2d, ScaledStdConv2d
from torch import nn
from typer.testing import CliRunner

from perfuse.bundle import Bundle, Ensemble
from perfuse.catalog import ModelRef, Scan
from perfuse.cli import build as build_cli
from perfuse.contract import Contract, Forward, Network
from perfuse.errors import ContractError, PerfuseError
from perfuse.geometry import Box
from perfuse.inference import backends, choosing, predict, prepare, trial
from perfuse.inference.engine import Engine
from perfuse.inference.estimate import estimate
from perfuse.inference.logits import ONE
from perfuse.inference.options import seen_otherwise
from perfuse.inference.prediction import plan
from perfuse.inference.slab import PLANES
from perfuse.models import build
from perfuse.models.folding import folded

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = Network(encoder="tu-test_resnet", encoder_weights=None, decoder_channels=(8, 8, 8))
PICTURES = torch.rand(PLANES, 1, 64, 64, generator=torch.Generator().manual_seed(0))


def used(module: nn.Module) -> nn.Module:
    """With statistics of normalisation that are not those of a fresh network."""
    torch.manual_seed(0)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            for values in (part.running_mean, part.bias, part.weight):
                nn.init.normal_(values, std=0.5)
            nn.init.uniform_(part.running_var, 0.3, 2.0)
    return module.eval()


def left(module: nn.Module) -> int:
    return sum(isinstance(part, nn.BatchNorm2d) for part in module.modules())


@pytest.mark.parametrize("architecture", ["unet", "unetplusplus"])
@pytest.mark.parametrize("encoder", ["tu-test_resnet", "tu-test_efficientnet"])
def test_folding_leaves_no_normalisation_and_the_same_logits(architecture: str, encoder: str) -> None:
    """One architecture is traced whole, the other by its parts; one encoder has activations in its normalisations."""
    network = used(build(TINY.changed(architecture=architecture, encoder=encoder)))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with torch.inference_mode():
        plain, other = network(PICTURES), folded(network.network)(PICTURES)
    assert left(network) > 0
    assert left(folded(network.network)) == 0
    assert (plain - other).abs().max() < 1e-4 * plain.abs().max()
    assert plain.std() > 0
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


class Twice(nn.Module):
    """What must not be folded: a convolution that serves two normalisations, and one whose output is used once more."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        make = ScaledStdConv2d if kind == "standardised" else nn.Conv2d
        self.kind, self.convolution = kind, make(1, 4, 3, padding=1)
        self.first, self.second = BatchNormAct2d(4), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        seen = self.convolution(x)
        if self.kind == "used":
            return self.first(seen) + seen
        if self.kind == "shared":
            return self.first(seen) + self.second(self.convolution(x + 1))
        return self.first(seen)


@pytest.mark.parametrize(("kind", "stay"), [("used", 2), ("shared", 2), ("standardised", 2), ("simple", 1)])
def test_what_cannot_be_folded_stays(kind: str, stay: int) -> None:
    module = used(Twice(kind))
    made = folded(module)
    assert left(made) == stay
    with torch.inference_mode():
        torch.testing.assert_close(made(PICTURES), module(PICTURES))


@pytest.fixture
def bundle() -> Bundle:
    network = used(build(TINY))
    return Bundle(
        Contract(forward=Forward(network=TINY, voxel_size_um=(10, 100), tile=64, axes=("z",))),
        network.state_dict(),
        {},
        "m",
    )


@pytest.fixture
def scan(tmp_path: Any, make_scan: Any, tubes: Any) -> Scan:
    return make_scan(tmp_path, "organ", tubes(0, (40, 70, 66))[0], {})


def engine(bundle: Bundle, backend: backends.Backend) -> Engine:
    network = build(TINY)
    network.load_state_dict(bundle.weights)
    return Engine.of(network, bundle.contract.forward, "cpu", backend)


def test_a_compiled_network_gives_the_same_bits_wherever_it_stands(bundle: Bundle) -> None:
    """Compiled in a process of its own, then here by two threads, and with pictures at other places of the batch."""
    if reason := backends.why_not_compiled("cpu"):
        pytest.skip(reason)
    images = PICTURES.numpy()
    task = trial.Task(backend="compiled-fp32", device="cpu", threads=1)
    found = trial.trial_elsewhere(bundle, images, task, 200)
    assert not isinstance(found, str), found
    seconds, answer = found
    assert seconds.first > seconds.batch > 0
    assert np.abs(answer - engine(bundle, "eager-fp32").logits(images)).max() <= 1
    assert answer.std() > ONE / 100
    torch.set_num_threads(2)
    np.testing.assert_array_equal(engine(bundle, "compiled-fp32").logits(images[::-1].copy())[::-1], answer)


def test_a_compilation_that_takes_too_long_or_fails_says_so(bundle: Bundle) -> None:
    task = trial.Task(backend="compiled-fp32", device="cpu", threads=1)
    assert trial.trial_elsewhere(bundle, PICTURES.numpy(), task, 0.5) == "not ready within 0 s"
    other = task.model_copy(update={"device": "nowhere"})
    assert "device type" in str(trial.trial_elsewhere(bundle, PICTURES.numpy(), other, 100))


def test_eager_bits_do_not_depend_on_the_place_in_a_batch(bundle: Bundle) -> None:
    images = PICTURES.numpy()
    for backend in ("eager-fp32", "eager-bf16"):
        made = engine(bundle, backend)
        np.testing.assert_array_equal(made.logits(images[::-1].copy())[::-1], made.logits(images))


def measured(monkeypatch: pytest.MonkeyPatch, scan: Scan, bundle: Bundle, batches: int, **taken: float) -> Any:
    """What is chosen when backends take so long; a compiled one 40 s before its first answer."""
    answer = np.zeros((PLANES, 1, 64, 64), np.int32)
    asked: list[float] = []

    def elsewhere(_bundle: Bundle, _images: Any, task: trial.Task, limit: float) -> Any:
        asked.append(limit)
        return trial.Seconds(first=40, batch=taken[task.backend.replace("-", "_")]), answer

    def here(made: Engine, _images: Any) -> Any:
        return trial.Seconds(first=1, batch=taken[made.backend.replace("-", "_")]), answer

    monkeypatch.setattr(choosing, "trial", here)
    monkeypatch.setattr(choosing, "trial_elsewhere", elsewhere)
    monkeypatch.setattr(backends, "resolve_precision", lambda asked, device: "bf16")
    return choosing.choose(scan, bundle, 128, "cpu", batches), asked


@pytest.mark.parametrize(
    ("batches", "compiled", "expected", "limits"),
    [
        (299, 0.1, "eager-bf16", []),
        (350, 0.1, "eager-bf16", []),  # a tenth of 350 × 0.5 s is too short to compile
        (1000, 0.1, "compiled-bf16", [50]),
        (10_000, 0.497, "eager-bf16", [300]),  # 30 s saved for 40
        (10_000, 0.6, "eager-bf16", [300]),
    ],
)
def test_compiling_must_pay(
    scan: Scan,
    bundle: Bundle,
    monkeypatch: pytest.MonkeyPatch,
    batches: int,
    compiled: float,
    expected: str,
    limits: list[float],
) -> None:
    taken = {"eager_fp32": 0.7, "eager_bf16": 0.5, "compiled_bf16": compiled}
    choice, asked = measured(monkeypatch, scan, bundle, batches, **taken)
    assert choice.backend == expected
    assert asked == pytest.approx(limits)
    assert set(choice.seconds) == ({"eager-bf16"} if batches < choosing.FEW else {"eager-fp32", "eager-bf16"}) | (
        {"compiled-bf16"} if limits else set()
    )


def test_the_choice_stays_while_it_can_be_done_here(
    scan: Scan, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    taken = {"eager_fp32": 0.7, "eager_bf16": 0.5, "compiled_bf16": 0.1}
    first, _ = measured(monkeypatch, scan, bundle, 1000, **taken)
    assert "m on cpu: compiled-bf16 (a batch: eager-fp32 0.7 s, eager-bf16 0.5 s, compiled-bf16 0.1 s)" in (
        capsys.readouterr().err
    )
    assert prepare(scan.url, bundle, "soft").members[0].choice == first
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    assert choosing.remembered(scan, bundle, "cpu") is None
    other, asked = measured(monkeypatch, scan, bundle, 1000, **taken)
    assert (other.backend, asked) == ("eager-bf16", [])
    assert "no C++ compiler" in other.unused["compiled-bf16"]
    with pytest.raises(PerfuseError, match="compiled-bf16 asks: there is no C"):
        engine(bundle, "compiled-bf16")


def test_a_small_job_does_not_bind_a_large_one(scan: Scan, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """FEW so small that the whole is a large job; half precision is measured to be slower than float32."""

    def key(roi: Box | None = None, **changes: Any) -> str:
        return prepare(scan.url, bundle.with_forward(bundle.contract.forward.changed(**changes)), "soft", roi=roi).key

    def here(made: Engine, images: Any) -> Any:
        asked.append(made.backend)
        return trial.Seconds(first=1, batch=1 if made.backend == "eager-bf16" else 0.5), np.zeros((8, 1, 64, 64), int)

    asked: list[str] = []
    monkeypatch.setattr(choosing, "trial", here)
    monkeypatch.setattr(backends, "resolve_precision", lambda asked, device: "bf16")
    monkeypatch.setattr(choosing, "FEW", 15)
    look = Box((0, 0, 0), (8, 20, 20))
    first = key(look)
    assert (key(look), asked) == (first, ["eager-bf16"])
    monkeypatch.setattr(choosing, "COMPILING", (0.1, 300.0))
    monkeypatch.setattr(choosing, "trial_elsewhere", lambda *_: "not ready")
    large = key()
    assert asked == ["eager-bf16", "eager-fp32", "eager-bf16"]
    chosen = choosing.remembered(scan, bundle, "cpu")
    assert (chosen.backend, chosen.unused) == ("eager-fp32", {"compiled-fp32": "not ready"})
    assert key() == large
    assert key(look) != first, "what was measured holds for small jobs too"
    assert len(asked) == 3


def test_work_that_is_begun_keeps_its_backend(scan: Scan, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    predict(scan.url, bundle, "one", keep_scratch=True)
    chosen = choosing.remembered(scan, bundle, "cpu")
    more = bundle.with_forward(bundle.contract.forward.changed(axes=("z", "y", "x")))
    monkeypatch.setattr(choosing, "FEW", 20)
    count = len(chosen.seconds)
    assert prepare(scan.url, more, "all").members[0].choice == chosen
    CliRunner().invoke(build_cli(), ["scan", "clean", scan.url], catch_exceptions=False)
    again = prepare(scan.url, more, "all").members[0].choice
    assert (count, len(again.seconds)) == (1, len(backends.eager_backends("auto", "cpu")))


def test_half_precision_is_refused_where_there_is_no_gpu(scan: Scan, bundle: Bundle) -> None:
    asked = seen_otherwise(bundle, ["precision=fp16"])
    assert backends.eager_backends("fp16", "cuda") == ["eager-fp16"]
    for work in (prepare, estimate):
        with pytest.raises(PerfuseError, match="fp16 needs a GPU"):
            work(scan if work is estimate else scan.url, asked, "soft")


def test_a_plan_takes_the_time_of_what_was_chosen_and_writes_nothing(scan: Scan, bundle: Bundle) -> None:
    before = {path: path.stat().st_mtime_ns for path in Path(scan.url).rglob("*")}
    first = estimate(scan, bundle, "soft")
    assert {path: path.stat().st_mtime_ns for path in Path(scan.url).rglob("*")} == before
    assert first.backends == (backends.usual("auto", "cpu"),)
    assert first.network_seconds > 0
    assert first.tiles == plan(scan, bundle.contract.forward).tiles
    seconds = {"eager-fp32": trial.Seconds(first=9, batch=0.5), "eager-bf16": trial.Seconds(first=9, batch=3)}
    choice = choosing.Choice(backend="eager-fp32", seconds=seconds, unused={}, largest_difference=0.25, swapped=0.5)
    choosing.remember(scan, bundle, "cpu", choice)
    assert estimate(Scan.open(scan.url), bundle, "soft").network_seconds == pytest.approx(0.5 * first.tiles / PLANES)
    other = Bundle(Contract(forward=bundle.contract.forward.changed(overlap=0.0)), bundle.weights, {})
    choosing.remember(scan, other, "cpu", choice)
    both = estimate(Scan.open(scan.url), Ensemble((bundle, other), 128), "soft")
    assert both.network_seconds == pytest.approx(2 * 0.5 * first.tiles / PLANES)
    assert (both.backends, both.largest_difference, both.swapped) == (("eager-fp32",) * 2, 0.25, 0.5)


class Pausing(nn.Module):
    """Takes its time for each picture."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(self.seconds * len(x))
        return x


@pytest.mark.parametrize(("seconds", "seen"), [(0.0, PLANES), (0.12, 1)])
def test_a_plan_looks_at_as_many_pictures_as_there_is_time_for(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, seconds: float, seen: int
) -> None:
    """All of a quick network; of one that takes 3 · 0.12 s for one picture, which is asked three times, no second one in a second."""
    monkeypatch.setattr(trial, "GLIMPSE", 5.0 if seen > 1 else 1.0)
    slow = Engine(Pausing(seconds), bundle.contract.forward, "cpu", "eager-fp32")
    taken, answer = trial.glimpse(slow, PICTURES.numpy())
    assert len(answer) == seen
    assert PLANES * seconds <= taken.batch < PLANES * (seconds + 0.1)


def test_another_backend_is_another_prediction(scan: Scan, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = []
    for backend in ("eager-fp32", "eager-bf16"):
        choice = choosing.Choice(backend=backend, seconds={}, unused={}, largest_difference=0, swapped=0)
        monkeypatch.setattr("perfuse.inference.preparing.choose", lambda *_, choice=choice: choice)
        keys.append(prepare(scan.url, bundle, "soft").key)
    assert len(set(keys)) == 2


def test_numerics_are_those_of_probabilities_and_each_class_threshold() -> None:
    logits = np.zeros((1, 4, 1, 2), np.int32)  # two classes of two planes each
    other = logits.copy()
    other[0, 1, 0, 0], other[0, 2, 0, 1] = -10, ONE
    difference, swapped = choosing.compared(other, logits, {"a": 128, "b": 190}, ("a", "b"))
    assert difference == pytest.approx(1 / (1 + math.exp(-1)) - 0.5)
    assert swapped == 1 / 8, "0.5 becomes 0.4976 at 128; 0.731 stays below 190"
    assert choosing.compared(other, logits, {"a": 128, "b": 180}, ("a", "b"))[1] == 2 / 8


def test_a_label_says_how_it_was_computed(scan: Scan, bundle: Bundle) -> None:
    (info,) = predict(scan.url, bundle, "soft")
    (lineage,) = info.lineage["backends"]
    assert info.model.backend == lineage["backend"] == backends.usual("auto", "cpu")
    assert 0 <= lineage["swapped"] < 0.2
    assert 0 < lineage["largest_difference"] < 0.2
    old = info.model.model_dump(mode="json")
    old["precision"] = old.pop("backend")
    assert ModelRef.model_validate(old) == info.model


def test_logits_that_are_no_numbers_are_refused(bundle: Bundle) -> None:
    weights = {name: value * math.nan if name.endswith("bias") else value for name, value in bundle.weights.items()}
    broken = Bundle(bundle.contract, weights, {})
    with pytest.raises(ContractError, match="eager-fp32"):
        engine(broken, "eager-fp32").logits(PICTURES.numpy())
