"""`perfuse sweep`: what it says of a combination is what `perfuse predict` makes of the options that it names."""

import csv
import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from perfuse import registry, scoring
from perfuse.bundle import Bundle, Ensemble
from perfuse.catalog import Scan
from perfuse.cli import build
from perfuse.contract import Contract, Forward, Network
from perfuse.inference.members import SCRATCH
from perfuse.models import build as network_of

MODELS = ("models:/a/1", "models:/b/2")


class Small(torch.nn.Sequential):
    """One convolution: quick."""

    def __init__(self, in_channels: int, classes: int) -> None:
        super().__init__(torch.nn.Conv2d(in_channels, classes, 5, padding=2))


@pytest.fixture
def scan(tmp_path: Path, make_scan: Any, tubes: Any, monkeypatch: pytest.MonkeyPatch) -> Scan:
    """A scan of 50 µm voxels, and a registry that knows two models."""
    network = Network(module=f"{__name__}:Small")
    known = {}
    for seed, uri in enumerate(MODELS):
        torch.manual_seed(seed)
        weights = {n: (1 + seed) * (v.abs() - 0.5 * (v.ndim == 1)) for n, v in network_of(network).state_dict().items()}
        forward = Forward(network=network, voxel_size_um=(10, 200), tile=64, precision="fp32")
        known[uri] = Bundle(Contract(forward=forward), weights, {}, uri)

    def load(uris: list[str]) -> Bundle | Ensemble:
        members = tuple(known[uri] for uri in uris)
        return members[0] if len(members) == 1 else Ensemble(members, 128)

    monkeypatch.setattr(registry, "load_model", load)
    image, mask = tubes(0, (40, 40, 50))
    made: Scan = make_scan(tmp_path, "organ", image, {"human": mask})
    return made


def perfuse(*words: str) -> Any:
    return json.loads(CliRunner().invoke(build(), [*words, "--json"], catch_exceptions=False).stdout)


def test_predict_answers_what_sweep_told(scan: Scan, tmp_path: Path) -> None:
    """Every option of `sweep`; the scores of three ways to answer, to the last bit, by the options that each row names."""
    models = [word for uri in MODELS for word in ("--model", uri)]
    asked = ["--resample-um", "75", "--scale", "0.5", "--set", "axes=z", "--set", "2:turns=flips", "--fit"]
    fused = ["--average", "probability", "--temperature", "1.5", "--temperature", "0.7"]
    words = ["sweep", scan.url, *models, *asked, *fused, "--local"]

    planned = perfuse(*words, "--plan")
    assert (planned["combinations"], planned["seers"]) == (63 + 4, 6)
    assert not (Path(scan.url) / SCRATCH).exists()
    rows = perfuse(*words, "--csv", str(tmp_path / "table.csv"))["rows"]
    assert len(rows) == planned["combinations"]
    stored = sum(
        array.nbytes for _, member in scan.group[SCRATCH].groups() for _, array in member.arrays() if array.ndim == 3
    )
    assert planned["scans"][0]["scratch_bytes"] == stored == 2 * (4 * 40 * 40 * 50 + 2 * 27 * 27 * 33)

    with (tmp_path / "table.csv").open() as file:
        table = list(csv.DictReader(file))
    assert len(table) == 255 * len(rows)
    fewest = rows[1]["predict"]
    assert shlex.split(fewest) == ["--model", MODELS[0], "--set", "axes=z", "--set", "resample_um=75.0"]
    for row in (rows[1], rows[30], rows[-1]):
        perfuse("predict", scan.url, *shlex.split(row["predict"]), "--output", "soft", "--keep-scratch", "--local")
        curve = scoring.tune([scan], "soft", "human")
        at = round(255 * row["threshold"])
        assert (row["surface_dice"], row["dice"]) == (curve.surface_dice[at - 1], curve.dice[at - 1])
        told = [line["surface_dice"] for line in table if line["predict"] == row["predict"]]
        assert told == [f"{score:.6f}" for score in curve.surface_dice]
    assert {"--average", "--weight", "--temperature"} < set(shlex.split(rows[-1]["predict"]))
