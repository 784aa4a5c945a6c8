"""What a training would take is what it takes; nothing is written to say it."""

from pathlib import Path
from typing import Any

import pytest

from perfuse.recipes import load_recipe
from perfuse.sampling import feed, feeding
from perfuse.training import TrainingJob, plan_job
from perfuse.training.planning import plan_training

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPE = (40, 72, 130)
TINY = ["network.encoder=tu-test_resnet", "network.decoder_channels=16,8,8,8,8", "crop=32", "batch=6", "steps=40"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, make_scan: Any, tubes: Any) -> Path:
    folder = tmp_path_factory.mktemp("plan")
    for seed, specimen in enumerate("abv"):
        image, mask = tubes(seed, SHAPE)
        sparse = {"kind": "sparse", "coverage": 0.65} if specimen == "a" else {}
        make_scan(folder, specimen, image, {"human": mask}, **sparse)
    return folder


def planned(folder: Path, *extra: str) -> TrainingJob:
    return plan_job(load_recipe("quickstart", [*TINY, "validation=v", *extra]), str(folder), str(folder / "runs"))


@pytest.mark.parametrize("order", ["random", "grid"])
def test_the_plan_names_what_is_read(folder: Path, order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    job, read = planned(folder, f"sampling.order={order}"), []
    real = feeding.read_brick
    monkeypatch.setattr(feeding, "read_brick", lambda *about: read.append(real(*about)) or read[-1])
    crops = sum(len(batch["position"]) for batch in feed(job))
    plan = plan_training(job)
    assert plan.crops == crops == 240
    assert len(read) <= plan.bricks <= len(read) + 2, "a brick that is drawn twice in a row is read once"
    assert sum(brick.nbytes for brick in read) <= plan.read_bytes <= 1.5 * sum(4 * b.image.size for b in read)
    assert (plan.epoch_crops is None) == (order == "random")


def test_the_plan_says_who_is_on_which_side_and_writes_nothing(folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    plan = plan_training(planned(folder, "accumulate=3", "seed=5"))
    assert plan.train == ("a of donor a: human (sparse, 65%)", "b of donor b: human (dense)")
    assert plan.validation == ("v of donor v: human (dense)",)
    assert (plan.steps, plan.crops) == (40, 720)
    assert plan.device in {"cpu", "cuda"}
    assert plan.device_name.startswith("CPU of ") == (plan.device == "cpu")
    assert 0 < plan.step_seconds == pytest.approx(plan.device_hours * 3600 / 40)
    assert 0 < plan.gpu_hours < plan.device_hours
    more = plan_training(planned(folder, "accumulate=3", "seed=5", "batch=2"))
    assert more.gpu_hours == pytest.approx(plan.gpu_hours / 3, rel=1e-6), "of operations, where there is no GPU"
    assert sorted(folder.rglob("*")) == before
