"""A campaign whole: killed in the middle, gone on with, and seen in MLflow."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import yaml

from perfuse import storage, tracking
from perfuse.catalog import Scan
from perfuse.errors import CampaignError, PerfuseError
from perfuse.geometry import Box
from perfuse.registry import load_bundle, scores_of
from perfuse.scoring import tune

pytestmark = pytest.mark.usefixtures("one_thread")

STAGES = [
    *("dense", "dense-test", "labels-1", "round-1", "round-1-test"),
    *("all-without-a", "all-without-c", "all", "all-test"),
]
LEFT = 0.65
"""Of the vessel voxels of the sparse scan; the others are hidden."""


@pytest.fixture
def organs(scans: Path, verb: Any, tmp_path: Path) -> Path:
    """Four donors: a dense, s sparse, c for validation, b for the test."""
    folder, slices = tmp_path / "scans", tmp_path / "s"
    shutil.copytree(scans, folder)
    verb("phantom", slices, "--shape", "32,64,64", "--seed", "3")
    _hide(slices / "labels")
    about = ["--voxel-size-um", "50", "--specimen", "s", "--organ", "phantom"]
    verb("ingest", slices / "images", folder / "s.ome.zarr", *about)
    verb("labels", "add", folder / "s.ome.zarr", slices / "labels", "--name", "human", "--coverage", str(LEFT))
    return folder


def _hide(labels: Path) -> None:
    """Keep the first rows, until they hold `LEFT` of the vessels."""
    files = sorted(labels.glob("*.tif"))
    mask = np.stack([tifffile.imread(file) for file in files])
    rows = np.cumsum((mask > 0).sum((0, 2)))
    mask[:, np.searchsorted(rows, LEFT * rows[-1]) :] = 0
    for file, plane in zip(files, mask, strict=True):
        tifffile.imwrite(file, plane)


@pytest.fixture
def words(organs: Path, tiny_settings: list[str], workdir: Path) -> list[str]:
    of_recipe = [f"recipe.{word}" for word in tiny_settings if word != "--set"]
    settings = [
        "test=b",
        "members=se",
        "recipe=quickstart",
        "all.converged=0.9",
        *of_recipe,
        "recipe.checkpoint_every=4",
    ]
    return ["campaign", "sennet_3rd", "--data", str(organs), "--local", *(w for s in settings for w in ("--set", s))]


def runs() -> dict[str, Any]:
    found = tracking.client().search_runs([tracking.experiment_id()])
    return {run.data.tags["mlflow.runName"]: run for run in found}


def results(workdir: Path) -> list[Path]:
    return [p for p in (workdir / "runs" / "campaigns").glob("*.json") if not p.name.endswith(".run.json")]


def kill_in_the_second_training(words: list[str], workdir: Path) -> None:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen([sys.executable, "-m", "perfuse.cli", *words], env=env, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while len(results(workdir)) < 3 or len(list((workdir / "runs").glob("*/latest.json"))) < 2:
        assert child.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()


def test_a_campaign_survives_kill_9_and_does_nothing_twice(
    words: list[str], organs: Path, workdir: Path, verb: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    kill_in_the_second_training(words, workdir)
    before = {path: path.read_bytes() for path in results(workdir)}
    assert len(before) == 3, "the second training was to be killed"
    first = tracking.client().get_run(json.loads(next(iter(before.values())))["run_id"])

    made = verb(*words, "--json")
    said = capsys.readouterr()
    assert said.err.count("done already") == 3
    assert said.err.count("The loss has converged: ") >= len(["all-without-a", "all-without-c", "all"])
    assert json.loads(said.out) == made
    assert [stage["stage"] for stage in made["stages"]] == STAGES
    assert {path: path.read_bytes() for path in before} == before
    assert tracking.client().get_run(first.info.run_id).info.end_time == first.info.end_time

    assert verb(*words, "--json") == made
    assert capsys.readouterr().err.count("done already") == len(STAGES)

    stages = {stage["stage"]: stage for stage in made["stages"]}
    _seen_in_mlflow(stages, organs)
    _labels_meet_the_coverage(stages["labels-1"], organs)
    _everything_inherits(stages)
    _siblings_stand_for_it(made, stages)

    (lost,) = stages["labels-1"]["labels"].values()
    shutil.rmtree(organs / "s.ome.zarr" / "labels" / lost["name"])
    again = verb(*words, "--json")
    assert capsys.readouterr().err.count("done already") == len(STAGES) - 1
    assert again["stages"][2]["labels"] == stages["labels-1"]["labels"]


def _seen_in_mlflow(stages: dict[str, Any], organs: Path) -> None:
    known = runs()
    parent = known.pop("sennet_3rd")
    assert set(known) == {f"sennet_3rd-{stage}" for stage in STAGES}
    assert {run.data.tags["mlflow.parentRunId"] for run in known.values()} == {parent.info.run_id}
    assert {run.info.status for run in (parent, *known.values())} == {"FINISHED"}
    assert {known[f"sennet_3rd-{name}"].info.run_id for name in STAGES} == {s["run_id"] for s in stages.values()}
    scores = known["sennet_3rd-round-1-test"].data.metrics
    assert scores["surface_dice.b"] == stages["round-1-test"]["scores"][0]["surface_dice"]
    files = {f.path for f in tracking.client().list_artifacts(parent.info.run_id)}
    assert files == {"campaign.json", "results.json", "lineage.json"}
    lineage = tracking.Run(parent.info.run_id).read("lineage.json")
    (info,) = stages["labels-1"]["labels"].values()
    url = str(organs / "s.ome.zarr")
    entry = json.loads(lineage)[f"{url}/labels/{info['name']}"]
    assert entry["stage"] == "labels-1"
    assert entry["donors"] == {"a": f"{stages['dense']['models'][0]} ← human of a"}


def _labels_meet_the_coverage(stage: dict[str, Any], organs: Path) -> None:
    scan = Scan.open(str(organs / "s.ome.zarr"))
    (info,) = stage["labels"].values()
    human, taught = (np.asarray(scan.label(name)[:]) for name in ("human", info["name"]))
    achieved = (human > 0).sum() / (taught > 0).sum()
    assert info["lineage"]["declared_coverage"] == LEFT
    assert info["lineage"]["achieved_coverage"] == pytest.approx(achieved)
    assert (taught[human > 0] == 255).all()


def _everything_inherits(stages: dict[str, Any]) -> None:
    final = stages["all"]
    assert final["threshold"] == stages["round-1"]["threshold"]
    bundle = load_bundle(final["models"][0])
    assert bundle.contract.decision.threshold == final["threshold"]
    assert sorted(bundle.donors) == ["a", "c", "s"]
    assert bundle.lineage["steps"] < 24, "its loss stood still"


def _siblings_stand_for_it(made: dict[str, Any], stages: dict[str, Any]) -> None:
    """Each is scored on the donor that it has never seen, at the inherited threshold; all of them stand for the last stage."""
    final = {storage.name_of(s.scan_url): s for s in scores_of("sennet_3rd-all", "1").values() if s.kind == "sibling"}
    assert sorted(final) == ["a.ome.zarr", "c.ome.zarr"]
    for donor, others in (("a", ["c", "s"]), ("c", ["a", "s"])):
        sibling = stages[f"all-without-{donor}"]
        assert sorted(load_bundle(sibling["models"][0]).donors) == others
        (score,) = sibling["scores"]
        (kept,) = scores_of(f"sennet_3rd-all-without-{donor}", "1").values()
        mine = final[f"{donor}.ome.zarr"]
        assert kept.kind == mine.kind == score["kind"] == "sibling"
        assert kept.surface_dice == mine.surface_dice == score["surface_dice"]
        assert score["threshold"] == stages["round-1"]["threshold"] / 255
    start = {
        name: load_bundle(stages[f"all-without-{name}"]["models"][0]).lineage["recipe"]["init_from"] for name in "ac"
    }
    assert start == {"a": None, "c": "models:/sennet_3rd-round-1/1"}
    surface = [score.surface_dice for score in final.values()]
    assert list(made["siblings"]) == ["all"]
    assert made["siblings"]["all"]["scores"] == 2
    assert made["siblings"]["all"]["surface_dice"] == {
        "mean": pytest.approx(np.mean(surface)),
        "sd": pytest.approx(np.std(surface, ddof=1)),
    }


def test_a_threshold_is_stated_or_matched(verb: Any) -> None:
    with pytest.raises(PerfuseError, match="either stated or matched"):
        verb(
            "pseudolabel",
            "s.ome.zarr",
            "--model",
            "models:/m/1",
            "--output",
            "o",
            "--match-coverage",
            "--threshold",
            "0.5",
        )


def test_several_models_are_one(
    organs: Path, tiny_settings: list[str], workdir: Path, tmp_path: Path, verb: Any
) -> None:
    """Two trainings, tuned and scored as one, teach a scan softly; one of them predicts alone, and is tuned. At last both on everything."""
    last: dict[str, Any] = {"kind": "train", "scans": ["a", "c"], "labels": ["seen", "human"], "validation": []}
    stages: list[dict[str, Any]] = [
        {"kind": "train", "name": "first", "scans": ["a"]},
        {"kind": "train", "name": "second", "scans": ["a"], "settings": ["seed=1", "axes=y"]},
        {"kind": "ensemble", "name": "both", "models": ["first", "second"], "weights": [1, 3]},
        {"kind": "pseudolabel", "name": "soft", "model": "both", "scans": ["s"]},
        {"kind": "tune", "name": "again", "models": ["first"]},
        {"kind": "predict", "name": "seen", "model": "first", "scans": ["s"]},
        {"kind": "evaluate", "name": "score", "model": "both"},
        {**last, "name": "last-1", "threshold_from": "again", "siblings": ["first"]},
        {**last, "name": "last-2", "settings": ["seed=1", "axes=y"], "threshold_from": "both", "siblings": ["second"]},
        {
            "kind": "ensemble",
            "name": "last",
            "models": ["last-1", "last-2"],
            "scans": [],
            "threshold_from": "both",
            "siblings": ["both"],
        },
        {"kind": "evaluate", "name": "last-score", "model": "last"},
    ]
    standstill = ["steps=8", "converged=0.5", "schedule=[{kind: constant, share: 1}]"]
    settings = [w for w in tiny_settings if w != "--set"] + standstill
    roles = {"dense": ["a"], "validation": ["c"], "test": ["b"]}
    values = {"recipe": "quickstart", "settings": settings, "roles": roles, "stages": stages}
    (tmp_path / "pair.yaml").write_text(yaml.safe_dump(values))
    made = verb("campaign", tmp_path / "pair.yaml", "--data", organs, "--local", "--json")
    results = {stage["stage"]: stage for stage in made["stages"]}

    both = results["both"]
    members = [results[name]["models"][0] for name in ("first", "second")]
    assert both["models"] == members == ["models:/pair-first/1", "models:/pair-second/1"]
    (chosen,) = both["labels"].values()
    validation, sparse = (Scan.open(str(organs / f"{name}.ome.zarr")) for name in ("c", "s"))
    assert both["threshold"] == tune([validation], chosen["name"], "human").chosen
    assert validation.label_info(chosen["name"]).model.threshold == both["threshold"]  # type: ignore[union-attr]
    assert results["score"]["scores"][0]["threshold"] == both["threshold"] / 255

    (soft,) = results["soft"]["labels"].values()
    mean = np.asarray(sparse.label(soft["lineage"]["prediction"]["label"])[:])
    marks = np.asarray(sparse.label("human")[:])
    known = sparse.read_known("human", Box.whole(sparse.shape_zyx))
    np.testing.assert_array_equal(sparse.label(soft["name"])[:], np.where(known, marks, mean))
    assert soft["lineage"]["members"] == members
    assert soft["lineage"]["fusion"] == {"weights": [250, 750]}
    assert soft["lineage"]["donors"] == {"a": f"{members[0]} ← human of a"}

    (alone,) = results["seen"]["labels"].values()
    assert alone["model"]["uri"] == members[0]
    assert alone["model"]["threshold"] == results["again"]["threshold"] == results["first"]["threshold"]
    assert (np.asarray(sparse.label(alone["name"])[:]) != mean).any()

    last = results["last"]
    assert last["models"] == ["models:/pair-last-1/1", "models:/pair-last-2/1"]
    assert last["threshold"] == both["threshold"] == results["last-2"]["threshold"]
    assert results["last-1"]["threshold"] == results["first"]["threshold"]
    assert results["again"]["labels"][validation.url]["name"] == alone["name"], "a scan of another stage than `seen`"
    assert [s["label"] for s in load_bundle("models:/pair-last-1/1").lineage["train"]] == ["human", "human"]
    assert last["scores"] == [{**both["scores"][0], "kind": "sibling"}]
    assert made["siblings"]["last"]["dice"] == {"mean": both["scores"][0]["dice"], "sd": None}
    assert results["last-score"]["scores"][0]["threshold"] == last["threshold"] / 255
    assert results["last-score"]["scores"][0]["dice"] != results["score"]["scores"][0]["dice"]
    assert list(made["siblings"]) == ["last-1", "last-2", "last"]

    (tmp_path / "again.yaml").write_text(yaml.safe_dump(values | {"stages": stages[:3]}))
    _beneath_another_campaign_too(["campaign", tmp_path / "again.yaml", "--data", organs, "--local"], results, verb)


def _beneath_another_campaign_too(words: list[Any], made: dict[str, Any], verb: Any) -> None:
    """Stages that are done already: each by a run that names the one which did it, and none twice."""
    before = runs()
    verb(*words)
    found = runs()
    assert verb(*words)["stages"] == [made[name] for name in ("first", "second", "both")]
    assert {name: run.info.run_id for name, run in runs().items()} == {name: r.info.run_id for name, r in found.items()}
    parent = found["again"]
    assert set(found) - set(before) == {"again", "again-first", "again-second", "again-both"}
    for name in ("first", "second", "both"):
        shown = found[f"again-{name}"]
        assert shown.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert shown.data.tags["perfuse.made_by"] == made[name]["run_id"] == before[f"pair-{name}"].info.run_id
        assert shown.data.metrics["threshold"] == made[name]["threshold"] / 255
        assert shown.info.status == "FINISHED"
    assert found["again-both"].data.metrics == before["pair-both"].data.metrics


def test_a_plan_counts_and_writes_nothing(words: list[str], workdir: Path, verb: Any) -> None:
    plan = verb(*words, "--plan", "--json")
    assert [(s["stage"], s["done"]) for s in plan["stages"]] == [(name, False) for name in STAGES]
    stages = {s["stage"]: s for s in plan["stages"]}
    assert (stages["round-1"]["steps"], stages["round-1"]["crops"]) == (24, 96)
    assert stages["round-1"]["donors"] == ["a", "s"]
    assert stages["round-1"]["judges"] == ["c"]
    assert stages["all-without-a"]["judges"] == ["a"]
    assert stages["all-without-a"]["gpu_hours"] > 0
    assert plan["gpu_hours"] > 0
    assert plan["gpu_hours"] == pytest.approx(sum(stage["gpu_hours"] for stage in plan["stages"]))
    of_siblings = [stages[f"all-without-{donor}"]["gpu_hours"] for donor in "ac"]
    assert plan["sibling_gpu_hours"] == pytest.approx(sum(of_siblings))
    assert plan["assumed_flops"] == 50e12
    assert not workdir.exists()


def test_weights_that_cannot_come_are_missed_before_anything_runs(
    words: list[str], workdir: Path, verb: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Also those of a later stage; a plan, which another machine may run, only says so."""
    monkeypatch.setenv("PERFUSE_ENCODER_WEIGHTS", str(tmp_path))
    words += ["--set", "all.network.encoder=resnet34", "--set", "all.network.encoder_weights=imagenet"]
    said = r"Stage all-without-a(, all-without-c)?(, all)?: PERFUSE_ENCODER_WEIGHTS holds no .*resnet34\.safetensors"
    with pytest.raises(CampaignError, match=said):
        verb(*words)
    verb(*words, "--plan")
    assert re.search(said, capsys.readouterr().err.replace("\n", " "))
    assert not workdir.exists()


def test_a_leak_is_refused_before_anything_runs(words: list[str], workdir: Path, verb: Any) -> None:
    with pytest.raises(CampaignError, match=r"Stage dense: donor 'a' chooses.*human of a"):
        verb(*words, "--set", "dense=a", "--set", "validation=a")
    assert not workdir.exists()
