"""A job runs the submitter's own code, and carries no secret."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import PathDistribution
from pathlib import Path
from typing import Any

import pytest
import yaml

from perfuse import tracking
from perfuse.catalog import Scan
from perfuse.errors import PerfuseError, ServerError
from perfuse.training.checkpoints import latest_step
from perfuse_jobs import submit

STACK = Path(__file__).parents[2] / "infra" / "local" / "stack.py"


def test_the_staged_folder_is_an_installation(tmp_path: Path) -> None:
    submit.stage(tmp_path)
    probe = (
        "import importlib, json, sys; from importlib.metadata import entry_points;"
        f"names = {submit.PACKAGES};"
        "assert all(importlib.import_module(n).__file__.startswith(sys.path[0]) for n in names), sys.path;"
        "print(sorted(e.name for e in entry_points(group='perfuse.commands')))"
    )
    script = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {probe}"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd="/")
    assert found.stdout.strip() == "['ingest', 'jobs', 'serving']"
    (about,) = tmp_path.glob("*.dist-info")
    assert PathDistribution(about).metadata["Name"] == "perfuse"
    assert not list(tmp_path.rglob("__pycache__"))


def test_settings_travel_and_passwords_do_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PERFUSE_STORAGE", "s3://bucket/runs")
    monkeypatch.delenv("PERFUSE_WORKDIR", raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:sesame@mlflow:5000")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "sesame")
    monkeypatch.setenv("PERFUSE_ENCODER_WEIGHTS", "s3://bucket/encoders")
    sent = {"PERFUSE_STORAGE": "s3://bucket/runs", "PERFUSE_ENCODER_WEIGHTS": "s3://bucket/encoders"}
    assert submit.passed_on() == sent
    monkeypatch.setenv("PERFUSE_ENCODER_WEIGHTS", "/home/somebody/encoders")
    assert submit.passed_on() == {"PERFUSE_STORAGE": "s3://bucket/runs"}
    said = capsys.readouterr().err
    assert "MLFLOW_TRACKING_URI holds a password" in said
    assert "sesame" not in said


def test_a_relative_path_is_refused_and_an_absolute_one_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scans" / "a").mkdir(parents=True)
    with pytest.raises(PerfuseError, match="scans/a is relative"):
        submit.check_words(["scan", "show", "scans/a"])
    submit.check_words(["scan", "show", str(tmp_path / "scans" / "a")])
    assert "path on this machine" in capsys.readouterr().err
    submit.check_words(["train", "quickstart", "--data", "s3://bucket/scans"])
    assert capsys.readouterr().err == ""


NETWORK = """from torch import nn
class Net(nn.Conv2d):
    def __init__(self, in_channels, classes):
        super().__init__(in_channels, classes, 1)
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with a recipe over another, whose network is the user's own, and a campaign of it."""
    folder = tmp_path / "study"
    for place, text in {
        "recipes/thin.yaml": "base: ../wide.yaml\nsteps: 7\n",
        "wide.yaml": "base: quickstart\nnetwork: {module: 'nets.small:Net'}\n",
        "rounds.yaml": "recipe: recipes/thin.yaml\nstages: [{kind: train, name: first, scans: [dense]}]\n",
        "nets/small.py": NETWORK,
        "mine.py": "from perfuse.recipes import load_recipe\ndef tiny():\n    return load_recipe('quickstart', ['name=tiny'])\n",
    }.items():
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).write_text(text)
    monkeypatch.chdir(folder)
    return folder


def test_files_and_modules_of_ones_own_go_with_the_job(own: Path, tmp_path: Path) -> None:
    words = ["train", "recipes/thin.yaml", "--set=recipe=wide.yaml", "--data", "s3://b/scans.ome.zarr"]
    submit.check_words(words)
    sent, files = submit.carried(words)
    assert sent == ["train", "files/recipes/thin.yaml", "--set=recipe=files/wide.yaml", *words[3:]]
    nets = {"nets": own / "nets"}
    assert (
        files == {"files/recipes/thin.yaml": own / "recipes" / "thin.yaml", "files/wide.yaml": own / "wide.yaml"} | nets
    )
    absolute = str(own / "recipes" / "thin.yaml")
    assert submit.carried(["train", absolute]) == (["train", "files/recipes/thin.yaml"], files)
    assert set(submit.carried(["campaign", "rounds.yaml"])[1]) == {"files/rounds.yaml", *files}
    assert submit.carried(["train", "mine:tiny"]) == (["train", "mine:tiny"], {"mine.py": own / "mine.py"})
    assert submit.carried(["--set", "network.module=nets.small:Net"])[1] == nets
    untouched = ["scan", "show", "s3://b/a.yaml", "models:/vessels/1", "/nodes/only.yaml", "torch.nn:Conv2d"]
    assert submit.carried(untouched) == (untouched, {})

    staged = tmp_path / "staged"
    submit.stage(staged, {**files, "mine.py": own / "mine.py"})
    assert (staged / "files" / "wide.yaml").is_file()
    command = [sys.executable, "-m", "perfuse.cli", "recipe", "show", "mine:tiny"]
    env = {**os.environ, "PYTHONPATH": str(staged)}
    shown = subprocess.run(command, cwd=staged, env=env, capture_output=True, text=True, check=False)
    assert yaml.safe_load(shown.stdout)["name"] == "tiny", shown.stderr


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("base: /etc/wide.yaml", "names /etc/wide.yaml, which cannot go with the job"),
        ("stages: [{recipe: absent.yaml}]", "names absent.yaml"),
        ("a: [", "cannot be read"),
        (None, "my.yaml is not here"),
    ],
)
def test_a_file_that_cannot_go_with_the_job_is_refused(own: Path, text: str | None, said: str) -> None:
    if text is not None:
        (own / "my.yaml").write_text(text)
    with pytest.raises(PerfuseError, match=said):
        submit.submit(["train", "my.yaml"])


@pytest.mark.parametrize("address", ["http://127.0.0.1:9", "nonsense"])
def test_a_cluster_that_is_away_is_named(address: str) -> None:
    with pytest.raises(ServerError, match=f"No Ray cluster answers at {address}"):
        submit.submit(["scan", "ls", "s3://bucket/scans"], address=address)


@pytest.fixture(scope="module")
def cluster() -> Iterator[dict[str, str]]:
    """A Ray cluster of two nodes, and the environment of its clients."""
    with tempfile.TemporaryDirectory(prefix="perfuse-", dir="/tmp") as folder:
        words = [sys.executable, str(STACK)]
        try:
            up = subprocess.run([*words, "up", "ray", "--dir", folder], capture_output=True, text=True, check=False)
            assert up.returncode == 0, up.stderr
            yield dict(line.split("=", 1) for line in (Path(folder) / "stack.env").read_text().splitlines())
        finally:
            subprocess.run([*words, "down", "--dir", folder], check=True, capture_output=True)


def run(cluster: dict[str, str], *words: str, **overrides: str) -> subprocess.CompletedProcess[str]:
    """Runs Python as a client of the cluster: a process of its own, for Ray reads the token once a process."""
    env = {**os.environ, **cluster, **overrides}
    return subprocess.run([sys.executable, *words], env=env, capture_output=True, text=True, timeout=300, check=False)


PROBE = """python -c "
import ray, perfuse
ray.init(log_to_driver=False)
@ray.remote(num_cpus=3)
def where():
    import time, perfuse, perfuse_ingest
    time.sleep(1)
    return perfuse.__file__, perfuse_ingest.__file__
for place in [perfuse.__file__, *sum(ray.get([where.remote(), where.remote()]), ())]:
    print('runtime_resources' in place and 'working_dir_files' in place)
" """


SUBMIT_PROBE = """
import sys
from perfuse_jobs.submit import follow, jobs_client, start
with jobs_client() as client:
    sys.exit(follow(client, start(client, sys.argv[1])))
"""


def test_driver_and_workers_of_a_job_run_the_shipped_code(cluster: dict[str, str]) -> None:
    ended = run(cluster, "-c", SUBMIT_PROBE, PROBE)
    lines = ended.stdout.splitlines()
    assert ended.returncode == 0, ended.stderr
    assert (lines.count("True"), lines.count("False")) == (5, 0)


def test_a_submitted_verb_ends_as_it_would_here(cluster: dict[str, str]) -> None:
    ended = run(cluster, "-m", "perfuse.cli", "submit", "--", "scan", "show", "/no/such/scan.ome.zarr", "--json")
    assert ended.returncode == 2
    assert "Error: /no/such/scan.ome.zarr is not a Zarr group" in ended.stdout


def test_a_job_knows_ones_own_recipe_and_network(cluster: dict[str, str], own: Path) -> None:
    ended = run(cluster, "-m", "perfuse.cli", "submit", "--", "recipe", "check", "recipes/thin.yaml", "--json")
    assert ended.returncode == 0, ended.stdout
    assert '"recipe": "thin"' in ended.stdout
    assert '"network": "nets.small:Net"' in ended.stdout


def test_a_job_that_nobody_waits_for_is_named(cluster: dict[str, str]) -> None:
    ended = run(cluster, "-m", "perfuse.cli", "submit", "--no-wait", "--", "--version")
    assert ended.returncode == 0
    assert "perfuse --version" in ended.stderr
    assert ended.stdout == ""


def test_a_wrong_token_is_refused(cluster: dict[str, str]) -> None:
    ended = run(cluster, "-m", "perfuse.cli", "submit", "--", "--version", RAY_AUTH_TOKEN="0" * 64)
    assert ended.returncode == 2
    assert "refuses the token" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.fixture
def campaign(
    scans: Path, tiny_settings: list[str], workdir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    """The words of a campaign of two stages, on a disk that all nodes share."""
    folder = tmp_path / "scans"
    shutil.copytree(scans, folder)
    shutil.rmtree(folder / "b.ome.zarr" / "labels" / "human")
    monkeypatch.setenv("PERFUSE_STORAGE", str(workdir / "runs"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{workdir}/mlflow.db")
    stages: list[dict[str, Any]] = [
        {"kind": "train", "name": "first", "scans": ["dense"]},
        {"kind": "pseudolabel", "name": "soft", "model": "first", "scans": ["unlabelled"]},
    ]
    settings = [word for word in tiny_settings if word != "--set"] + [
        "steps=200",
        "validate_every=200",
        "checkpoint_every=5",
    ]
    roles = {"dense": ["a"], "unlabelled": ["b"], "validation": ["c"]}
    values = {"recipe": "quickstart", "settings": settings, "roles": roles, "stages": stages}
    (tmp_path / "rounds.yaml").write_text(yaml.safe_dump(values))
    return ["campaign", str(tmp_path / "rounds.yaml"), "--data", str(folder), "--json"]


STOP = """
import sys, time
from perfuse_jobs.submit import jobs_client
with jobs_client() as client:
    client.stop_job(sys.argv[1])
    while not client.get_job_status(sys.argv[1]).is_terminal():
        time.sleep(0.1)
"""


def test_a_campaign_is_one_job_and_goes_on_after_it_was_stopped(
    cluster: dict[str, str], campaign: list[str], workdir: Path, verb: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    begun = run(cluster, "-m", "perfuse.cli", "submit", "--no-wait", "--", *campaign)
    deadline = time.monotonic() + 120
    while not (saved := list((workdir / "runs").glob("*/latest.json"))) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert run(cluster, "-c", STOP, begun.stderr.split("Job ")[1].split(":")[0]).returncode == 0
    folder, server = str(saved[0].parent), tracking.client()
    assert {r.info.status for r in server.search_runs([tracking.experiment_id()])} == {"KILLED"}, "it had time to end"

    ended = run(cluster, "-m", "perfuse.cli", "submit", "--", *campaign)
    assert ended.returncode == 0, ended.stdout
    at = int(ended.stdout.split("Going on at step ")[1].split(",")[0])
    assert 5 <= at < latest_step(folder) == 200
    made = json.loads(ended.stdout[ended.stdout.index("{\n") : ended.stdout.rindex("}") + 1])

    assert verb(*campaign, "--local") == made
    assert capsys.readouterr().err.count("done already") == 2
    runs = {r.data.tags["mlflow.runName"]: r for r in server.search_runs([tracking.experiment_id()])}
    parent = runs.pop("rounds")
    assert set(runs) == {"rounds-first", "rounds-soft"}
    assert {r.data.tags["mlflow.parentRunId"] for r in runs.values()} == {parent.info.run_id}
    assert {r.info.status for r in (parent, *runs.values())} == {"FINISHED"}

    first, soft = made["stages"]
    ((url, label),) = soft["labels"].items()
    lineage = json.loads(tracking.Run(parent.info.run_id).read("lineage.json"))[f"{url}/labels/{label['name']}"]
    assert lineage["digest"] == Scan.open(url).label_info(label["name"]).digest
    assert (lineage["members"], lineage["donors"]) == (first["models"], {"a": f"{first['models'][0]} ← human of a"})
