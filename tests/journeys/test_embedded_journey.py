"""The main job by the command line on embedded defaults: from scans to a champion, a kill on the way, and bad input."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from perfuse.catalog import Scan
from perfuse_ingest.ingest import ingest
from perfuse_ingest.phantom import write_phantom

pytestmark = [pytest.mark.journey, pytest.mark.timeout(600)]

SMALL = {
    "network.encoder": "tu-test_resnet",
    "network.decoder_channels": "32,16,16,8,8",
    "crop": "64",
    "tile": "64",
    "batch": "8",
    "steps": "60",
    "validate_every": "60",
    "learning_rate": "5e-3",
    "validation": "b",
    "holdout": "c",
}
TRAIN = ("train", "quickstart", "--data", "scans", "--name", "organs", "--local")
SETTINGS = tuple(word for key, value in SMALL.items() for word in ("--set", f"{key}={value}"))


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the scans a, b, c of three donors, and `coarse`, whose voxels are ten times larger."""
    folder = tmp_path_factory.mktemp("embedded")
    for seed, name in enumerate(("a", "b", "c")):
        write_phantom(str(folder / name), shape_zyx=(72, 96, 96), seed=seed)
        _ingest(folder, name, f"scans/{name}.ome.zarr", 50)
    _ingest(folder, "c", "coarse.ome.zarr", 500)
    return folder


def _ingest(folder: Path, name: str, url: str, um: float) -> None:
    slices = folder / name
    about: dict[str, Any] = {"voxel_size_um": (um, um, um), "specimen": name, "organ": "phantom"}
    ingest(str(slices / "images"), str(folder / url), **about, labels=str(slices / "labels"))


def perfuse(work: Path, *words: str, code: int = 0, **env: str) -> subprocess.CompletedProcess[str]:
    ended = subprocess.run(command(*words), cwd=work, env=os.environ | env, capture_output=True, text=True, check=False)
    assert ended.returncode == code, ended.stderr
    assert "Traceback" not in ended.stderr
    return ended


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "perfuse.cli", *words]


def answer(work: Path, *words: str) -> Any:
    """What --json prints: one object and nothing else."""
    return json.loads(perfuse(work, *words, "--json").stdout)


@pytest.fixture(scope="module")
def model(work: Path) -> str:
    uri: str = answer(work, *TRAIN, *SETTINGS)["model"]
    return uri


def test_from_scans_to_champion(work: Path, model: str) -> None:
    assert model == "models:/organs/1"
    assert "nothing to do" in perfuse(work, *TRAIN, *SETTINGS).stderr
    plan = answer(work, "predict", "scans/c.ome.zarr", "--model", model, "--output", "vessels", "--plan")
    assert plan["slabs"] == 2 + 2 + 2
    assert "vessels" not in Scan.open(str(work / "scans/c.ome.zarr")).labels(), "a plan does nothing"
    predict = ("predict", "scans/c.ome.zarr", "--model", "models:/organs@challenger", "--output", "vessels", "--local")
    assert answer(work, *predict)["model"]["uri"] == model

    words = ("scans/c.ome.zarr", "--prediction", "vessels", "--truth", "human")
    refused = perfuse(work, "promote", "organs", "2", code=2)
    assert "its versions: 1" in refused.stderr
    scores = answer(work, "evaluate", *words)
    truth = np.asarray(Scan.open(str(work / "scans/c.ome.zarr")).label("human")[:]) >= 128
    soft = np.asarray(Scan.open(str(work / "scans/c.ome.zarr")).label("vessels")[:])
    found = soft >= round(255 * scores["threshold"])
    assert scores["dice"] == pytest.approx(2 * (truth & found).sum() / (truth.sum() + found.sum()))
    assert (scores["truth_voxels"], scores["predicted_voxels"]) == (truth.sum(), found.sum())
    assert {"precision", "recall", "fbeta", "surface_dice"} < set(scores)
    assert scores["baseline"].keys() == {"method", "dice", "surface_dice"}
    assert scores["dice"] > scores["baseline"]["dice"] + 0.15
    curve = answer(work, "tune", *words)
    at = round(255 * scores["threshold"]) - 1
    assert curve["dice"][at] == scores["dice"]
    assert max(curve["surface_dice"]) == curve["best"]["surface_dice"] >= scores["surface_dice"]
    assert curve["plateau"]["low"] <= curve["best"]["threshold"] <= curve["plateau"]["high"]

    assert answer(work, "promote", "organs", "1")["champion"] == "1"
    history = answer(work, "history", "organs")
    assert (history["champion"], history["broken_at"], len(history["entries"])) == ("1", None, 1)
    assert "no earlier champion" in perfuse(work, "rollback", "organs", code=2).stderr
    shown = {label["name"]: label["kind"] for label in answer(work, "scan", "show", "scans/c.ome.zarr")["labels"]}
    assert shown == {"human": "dense", "organ": "dense", "vessels": "soft"}


def test_after_kill_9_of_a_prediction_the_same_command_gives_the_same_voxels(work: Path, model: str) -> None:
    """On Ray, whose own processes must not outlive the killed one for long, nor its marks lie."""
    predict = ("predict", "scans/b.ome.zarr", "--model", model, "--output")
    running = subprocess.Popen(command(*predict, "killed"), cwd=work, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 200
    while not list((work / "scans/b.ome.zarr/perfuse").glob("scratch/*/done-z/c/*/*")):
        assert running.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    running.kill()
    running.wait()
    assert "killed" not in Scan.open(str(work / "scans/b.ome.zarr")).labels()
    perfuse(work, *predict, "killed")
    perfuse(work, *predict, "undisturbed", "--local")
    scan = Scan.open(str(work / "scans/b.ome.zarr"))
    np.testing.assert_array_equal(scan.label("killed")[:], scan.label("undisturbed")[:])
    assert [p.name for p in (work / "scans/b.ome.zarr/perfuse/scratch").iterdir()] == ["zarr.json"], (
        "no logits are left"
    )


PREDICT = ("predict", "scans/c.ome.zarr", "--output", "no", "--model")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("scan", "show", "scans"), "scans is not a Zarr group"),
        (("scan", "show", "scans/z.ome.zarr"), "z.ome.zarr is not a Zarr group"),
        (("scan", "ls", "a"), "No complete scans"),
        (("scan", "ls", "s3://nowhere/scans"), "Cannot reach the store"),
        (("predict", "a", "--model", "models:/organs/1", "--output", "no", "--local"), "not a Zarr group"),
        ((*PREDICT, "models:/nobody/1"), "no model 'nobody'. Models: organs"),
        ((*PREDICT, "models:/organs/7"), "no version 7; its versions: 1"),
        ((*PREDICT, "organs"), "names no model"),
        (
            ("predict", "coarse.ome.zarr", "--model", "models:/organs/1", "--output", "no"),
            "voxels of 500 × 500 × 500 µm",
        ),
        (("evaluate", "scans/c.ome.zarr", "--prediction", "nothing", "--truth", "human"), "no label 'nothing'"),
        (("labels", "add", "coarse.ome.zarr", "smaller", "--name", "no"), "the scan has (72, 96, 96)"),
        (("train", "slowstart", "--data", "scans"), "Built in: quickstart"),
        ((*TRAIN, "--set", "stepz=5"), "Did you mean steps?"),
        ((*TRAIN, "--set", "network.encoder=resnet19"), "resnet18"),
        ((*TRAIN, "--set", "holdout=kidney9"), "There are: a; b; c"),
        (("promote", "nobody", "1"), "no model 'nobody'"),
        ((*PREDICT[:2], "--output", "", "--model", "models:/organs/1"), "A name is made of"),
        ((*PREDICT[:2], "--output", "../../no", "--model", "models:/organs/1"), "A name is made of"),
        ((*PREDICT[:2], "--output", "human", "--model", "models:/organs/1"), "was given by a person"),
        ((*TRAIN, "--name", "a/b"), "A name is made of"),
        ((*TRAIN, "--workers", "2"), "leave out --workers"),
        (("phantom", "s3://nowhere/p"), "Cannot reach the store"),
        (("phantom", "/proc/p"), "/proc/p"),
        (("phantom", "p", "--voxel-size-um", "-3"), "above 0"),
        (("scan", "ls", "foo://nowhere"), "Protocol not known"),
    ],
)
def test_bad_input_is_one_message_that_says_what_to_do(
    work: Path, model: str, words: tuple[str, ...], message: str
) -> None:
    del model
    write_phantom(str(work / "smaller"), shape_zyx=(32, 64, 64), seed=0)
    away = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    failed = perfuse(work, *[w if w != "smaller" else "smaller/labels" for w in words], code=2, **away)
    assert message in failed.stderr
    assert failed.stdout == ""


def test_an_mlflow_that_is_away_is_named_soon(work: Path) -> None:
    begin = time.monotonic()
    words = (*PREDICT, "models:/organs/1")
    failed = perfuse(work, *words, code=2, MLFLOW_TRACKING_URI="http://someone:secret@127.0.0.1:9")
    assert "does not answer" in failed.stderr
    assert "secret" not in failed.stderr
    assert time.monotonic() - begin < 60
