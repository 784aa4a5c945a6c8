"""The engine on batches of its own, without scans: what a step does, by plain comparisons."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from perfuse.errors import RecipeError
from perfuse.models.building import with_source
from perfuse.recipes import load_recipe
from perfuse.training import TrainingJob, checkpoints, engine, is_finished
from perfuse.training.job import Source

pytestmark = pytest.mark.usefixtures("one_thread")

NORMLESS = """
import torch

class Net(torch.nn.Module):
    seen = []

    def __init__(self, in_channels, classes):
        super().__init__()
        self.encoder = torch.nn.Conv2d(in_channels, 4, 3, padding=1)
        self.head = torch.nn.Conv2d(4, classes, 3, padding=1)

    def forward(self, x):
        encoded = self.encoder(x)
        self.seen.append((self.training, encoded.dtype))
        return self.head(encoded.relu())
"""
BASE = [
    "network.planes=1",
    "losses=[{kind: bce}]",
    "crop=32",
    "tile=32",
    "steps=4",
    "validate_every=100",
    "optimiser=sgd",
    "learning_rate=0.5",
    "clip_norm=none",
    "precision=fp32",
    "ema_decay=0",
    "augmentation={flips: 0, quarter_turns: 0, brightness: 0, contrast: 0, gamma: 0, noise: 0}",
]
PLAIN = [*BASE, "network.module=normless_of_test_engine:Net"]
NORMED = [*BASE, "network.encoder=tu-test_resnet", "network.decoder_channels=16,16,8,8,8"]
ONE_PLAIN_STEP = [
    "steps=1",
    "batch=2",
    "momentum=0",
    "weight_decay=0",
    "learning_rate=1",
    "schedule=[{kind: constant, share: 1}]",
]
"""By the gradients themselves."""
MakeJob = Callable[..., TrainingJob]
State = dict[str, Any]


@pytest.fixture(autouse=True)
def _score(monkeypatch) -> None:
    monkeypatch.setattr(engine, "validate", lambda job, network: ({"val_score": 0.5}, {}))


@pytest.fixture(scope="module")
def modules(tmp_path_factory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("modules")
    (folder / "normless_of_test_engine.py").write_text(NORMLESS)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield folder


@pytest.fixture
def make(tmp_path, modules) -> MakeJob:
    source = Source(url="nowhere", specimen="a", donor="a", label="human", scan_digest="", label_digest="")

    def job(base: list[str], *settings: str) -> TrainingJob:
        recipe = load_recipe("quickstart", [*base, *settings])
        recipe = recipe.model_copy(update={"network": with_source(recipe.network)})
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        return TrainingJob(
            recipe=recipe, train=(source,), validation=(source,), folder=str(folder), key="", pixel_um=(50, 50)
        )

    return job


def batches(job: TrainingJob, first: int) -> Iterator[dict[str, Any]]:
    """The crops of a training in a row, cut into batches from the number `first` on: the more known, the later in a step; first none."""
    size = job.recipe.batch
    step = size * job.recipe.accumulate
    for number in range(first, job.recipe.batches):
        parts = []
        for at in range(number * size, (number + 1) * size):
            rng = np.random.default_rng(at)
            image = rng.random((job.recipe.network.planes, 32, 32), np.float32)
            known = rng.random((1, 32, 32)) < (at % step / step) ** 4
            parts.append((image, (image[:1] > 0.8).astype(np.float32), known.astype(np.float32)))
        image, target, known = (np.stack(p) for p in zip(*parts, strict=True))
        place = {"step": np.asarray(number), "position": np.arange(size)}
        yield place | {"image": image, "target": target, "known": known}


def trained(job: TrainingJob, **about: Any) -> State:
    engine.train(job, lambda first: batches(job, first), **{"report": lambda *_: None} | about)
    state = checkpoints.load(job.folder)
    assert state is not None
    return state


def initial(job: TrainingJob) -> State:
    torch.manual_seed(job.recipe.seed)
    return engine.State(job, None, "cpu", "fp32").as_dict()


def assert_close(a: State, b: State, **tolerance: float) -> None:
    for name, value in a["network"].items():
        torch.testing.assert_close(value, b["network"][name], **tolerance)


def test_batches_that_are_accumulated_are_one_large_batch(make) -> None:
    """Also where they know different shares of their pixels, the first none; and the loss that is reported."""
    losses = []

    def report(step: int, metrics: dict[str, float], _: Any) -> None:
        losses.append(metrics["loss"])

    large = trained(make(PLAIN, "batch=6"), report=report)
    assert_close(trained(make(PLAIN, "batch=2", "accumulate=3"), report=report), large, rtol=1e-5, atol=1e-7)
    assert losses[:2] == pytest.approx(losses[2:], rel=1e-5)
    assert not torch.allclose(trained(make(PLAIN, "batch=2"))["network"]["head.bias"], large["network"]["head.bias"])


RANK = """
import json, sys
import torch, torch.distributed as dist
sys.path[:0] = json.loads(sys.argv[1])
from test_engine_shares import batches, engine
from perfuse.training import TrainingJob
job = TrainingJob.model_validate_json(open(sys.argv[2]).read())
rank, world = int(sys.argv[3]), int(sys.argv[4])
engine.validate = lambda job, network: ({"val_score": 0.5}, {})
dist.init_process_group("gloo", init_method="file://" + sys.argv[5], rank=rank, world_size=world)
low, high = rank * job.recipe.batch // world, (rank + 1) * job.recipe.batch // world
share = lambda first: ({k: v[low:high] if v.ndim else v for k, v in b.items()} for b in batches(job, first))
engine.train(job, share, rank=rank, world=world, report=lambda *_: None, wrap=torch.nn.parallel.DistributedDataParallel)
dist.destroy_process_group()
"""


@pytest.mark.parametrize(
    ("world", "settings", "steps"),
    [
        (3, ["frozen_encoder_steps=1", "clip_norm=0.5"], 4),
        (2, ["steps=40", "converged=0.2", "schedule=[{kind: constant, share: 1}]"], 12),
    ],
)
def test_ranks_of_uneven_shares_take_the_steps_of_one_process(make, modules, world, settings, steps: int) -> None:
    """Of one batch, with all pixels that any of theirs knows. Also the same number, as the loss of all ranks has converged."""
    alone, together = make(PLAIN, "batch=14", *settings), make(PLAIN, "batch=7", "accumulate=2", *settings)
    (modules / "test_engine_shares.py").write_text(Path(__file__).read_text())
    (modules / "rank.py").write_text(RANK)
    (modules / "job.json").write_text(together.model_dump_json())
    words = [sys.executable, modules / "rank.py", json.dumps([str(modules), *sys.path]), modules / "job.json"]
    ranks = [subprocess.Popen([*words, str(r), str(world), f"{together.folder}/meet"]) for r in range(world)]
    assert [rank.wait(120) for rank in ranks] == [0] * world
    state, whole = checkpoints.load(together.folder), trained(alone)
    assert state is not None
    assert state["step"] == whole["step"] == steps
    assert_close(state, whole, rtol=1e-4, atol=1e-6)


def test_a_training_that_is_interrupted_converges_at_the_same_step(make) -> None:
    settings = ["batch=2", "steps=40", "converged=0.1", "checkpoint_every=3"]
    settings.append("schedule=[{kind: constant, share: 3}, {kind: linear, share: 1, end: 0}]")
    job, undisturbed = make(PLAIN, *settings), make(PLAIN, *settings)
    whole, seen = trained(undisturbed), []
    for stop_after in (5, 3, 2):
        trained(job, stop=lambda: not seen.append(1) and len(seen) % 10 == stop_after)  # noqa: B023
        seen.clear()
    assert checkpoints.latest_step(job.folder) == 10 < whole["step"] < 40
    assert not is_finished(job)
    again = trained(job)
    assert_close(again, whole, rtol=0, atol=0)
    assert {k: again[k] for k in ("step", "course")} == {k: whole[k] for k in ("step", "course")}
    assert trained(job, report=None)["step"] == whole["step"], "what is finished takes no further step"


def test_gradients_are_clipped_by_value(make) -> None:
    job = make(PLAIN, "clip_value=1e-5", *ONE_PLAIN_STEP)
    before, after = initial(job), trained(job)
    moved = torch.cat([(after["network"][k] - v).abs().ravel() for k, v in before["network"].items()])
    assert moved.max() == pytest.approx(1e-5, rel=0.02)
    assert (moved > 0.9e-5).float().mean() > 0.5


def test_a_frozen_encoder_keeps_weights_and_statistics_until_it_may_learn(make) -> None:
    job = make(NORMED, "batch=2", "frozen_encoder_steps=2", "steps=3")
    before, after = initial(job)["network"], {}

    def stop() -> bool:
        after[len(after)] = 0
        return len(after) == 2

    frozen = trained(job, stop=stop)["network"]
    inside = [k for k in before if k.startswith("encoder.")]
    assert all(torch.equal(frozen[k], before[k]) for k in inside)
    assert not torch.equal(frozen["segmentation_head.0.weight"], before["segmentation_head.0.weight"])
    free = trained(job)["network"]
    changed = [k for k in inside if not torch.equal(free[k], before[k])]
    assert any(k.endswith("running_mean") for k in changed)
    assert len(changed) > len(inside) / 2


def test_a_wish_to_stop_is_a_checkpoint_of_that_step_and_costs_nothing(make) -> None:
    settings = ["batch=2", "accumulate=2", "steps=5", "ema_decay=0.9"]
    job, undisturbed = make(NORMED, *settings), make(NORMED, *settings)
    seen = []
    engine.train(
        job,
        lambda first: batches(job, first),
        report=lambda *_: None,
        stop=lambda: not seen.append(1) and len(seen) == 3,
    )
    assert checkpoints.latest_step(job.folder) == 3
    again, whole = trained(job), trained(undisturbed)
    assert_close(again, whole, rtol=0, atol=0)
    for name, value in whole["averaged"].items():
        torch.testing.assert_close(again["averaged"][name], value, rtol=0, atol=0)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_network_computes_in_the_precision_of_the_recipe(make, precision: str) -> None:
    job = make(PLAIN, "batch=2", f"precision={precision}")
    from normless_of_test_engine import Net

    Net.seen.clear()
    trained(job)
    wanted = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    assert {dtype for training, dtype in Net.seen if training} == {wanted}


def test_fp16_on_a_cpu_is_refused(make) -> None:
    with pytest.raises(RecipeError, match="needs a GPU"):
        trained(make(PLAIN, "precision=fp16"))


def test_a_compiled_network_takes_the_same_steps_under_the_same_names(make, monkeypatch) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    plain, compiled = trained(make(PLAIN, "batch=2")), trained(make(PLAIN, "batch=2", "compiled=true"))
    assert list(compiled["network"]) == list(plain["network"])
    assert_close(compiled, plain, rtol=1e-4, atol=1e-6)


def test_a_network_that_cannot_be_compiled_is_one_message(make, monkeypatch) -> None:
    def no_compiler(graph: Any, inputs: Any) -> Any:
        raise FileNotFoundError("g++")

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=no_compiler))
    with pytest.raises(RecipeError, match=r"g\+\+.*--set compiled=false"):
        trained(make(PLAIN, "batch=2", "compiled=true"))


def test_gradient_checkpointing_holds_fewer_activations_for_the_same_steps(make) -> None:
    settings = ["batch=2", "steps=2"]
    held, states = [], []
    for wish in ("false", "true"):
        total = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, total=total: total.append(t.nbytes) or t, lambda t: t):
            states.append(trained(make(NORMED, *settings, f"gradient_checkpointing={wish}")))
        held.append(sum(total))
    assert_close(states[0], states[1], rtol=1e-5, atol=1e-6)
    assert held[1] < held[0]
    assert states[0]["network"]["encoder.model.bn1.num_batches_tracked"] == 2


def test_each_plane_of_a_panel_learns_its_own_target(make) -> None:
    job = make(
        PLAIN, "network.planes=4", "network.outputs=all", "batch=2", "steps=30", "optimiser=adamw", "learning_rate=0.03"
    )
    losses = {}

    def four(first: int) -> Iterator[dict[str, Any]]:
        for batch in batches(job, first):
            odd = np.ones_like(batch["image"]) * (np.arange(4) % 2).reshape(1, 4, 1, 1)
            yield batch | {"target": odd.astype(np.float32), "known": np.ones_like(batch["image"])}

    engine.train(job, four, report=lambda step, metrics, _: losses.update({step: metrics["loss"]}))
    assert losses[30] < 0.2 < losses[1]


def test_a_crop_that_the_network_cannot_see_is_refused_before_the_first_step(make) -> None:
    pan = ["network.architecture=pan", "network.encoder=resnet18", "network.decoder_channels=none"]
    with pytest.raises(
        RecipeError, match=r"pan on resnet18 cannot see crops and tiles of 64 pixels.*It can see: 128, "
    ):
        trained(make([*BASE, *pan], "crop=128", "tile=64"))


def test_the_average_of_weights_follows_them_slowly(make) -> None:
    """After one step the decay is (1 + 1) / (10 + 1): the memory is short at first."""
    job = make(PLAIN, "ema_decay=0.9", "steps=1", "batch=2")
    before, after = initial(job)["network"], trained(job)
    for name, value in after["averaged"].items():
        torch.testing.assert_close(value, before[name].lerp(after["network"][name], 1 - 2 / 11))
    assert any((value != after["network"][name]).any() for name, value in after["averaged"].items())


def test_gradients_are_clipped_by_norm(make) -> None:
    job = make([word for word in PLAIN if word != "clip_norm=none"], "clip_norm=1e-3", *ONE_PLAIN_STEP)
    before, after = initial(job), trained(job)
    moved = torch.cat([(after["network"][k] - v).ravel() for k, v in before["network"].items()])
    assert moved.norm() == pytest.approx(1e-3, rel=0.01)
