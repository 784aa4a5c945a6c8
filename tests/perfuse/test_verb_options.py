"""Each option of the verbs of inference and scores, as one types it, does what it says."""

import csv
import json
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from perfuse import breakdown, quicklook, registry, scoring, storage, sweeping
from perfuse.bundle import Bundle, Ensemble
from perfuse.catalog import Scan
from perfuse.cli import build
from perfuse.contract import Contract, Forward, Network
from perfuse.errors import ContractError, PerfuseError, ScanError
from perfuse.inference.members import SCRATCH
from perfuse.models import build as network_of

MODELS = ("models:/a/1", "models:/b/2")
TWO = "models:/c/3"
SHAPE = (70, 40, 50)


class Small(torch.nn.Sequential):
    """One convolution: quick."""

    def __init__(self, in_channels: int, classes: int) -> None:
        super().__init__(torch.nn.Conv2d(in_channels, classes, 5, padding=2))


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory, make_scan: Any, tubes: Any) -> Iterator[Scan]:
    """A scan of 50 µm voxels, and a registry that knows two models of one class, and one of two."""
    known = {}
    for seed, uri in enumerate((*MODELS, TWO)):
        torch.manual_seed(seed)
        network = Network(module=f"{__name__}:Small", classes=("thin", "thick") if uri == TWO else ())
        weights = {n: (1 + seed) * (v.abs() - 0.5 * (v.ndim == 1)) for n, v in network_of(network).state_dict().items()}
        forward = Forward(network=network, voxel_size_um=(10, 200), axes=("z",), tile=64, precision="fp32")
        known[uri] = Bundle(Contract(forward=forward), weights, {}, uri)

    def load(uris: list[str]) -> Bundle | Ensemble:
        members = tuple(known[uri] for uri in uris)
        return members[0] if len(members) == 1 else Ensemble(members, 128)

    image, mask = tubes(0, SHAPE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "load_model", load)
        yield make_scan(tmp_path_factory.mktemp("scan"), "organ", image, {"human": mask, "other": mask[::-1]})


def perfuse(*words: str) -> Any:
    return json.loads(CliRunner().invoke(build(), [*words, "--json"], catch_exceptions=False).stdout)


def kept(scan: Scan) -> set[str]:
    return set(storage.folders(storage.join(scan.url, SCRATCH)))


def test_predict_answers_what_sweep_told(scan: Scan, tmp_path: Path) -> None:
    """Every option of `sweep`; the scores of three ways to answer, to the last bit, by the options that each row names."""
    models = [word for uri in MODELS for word in ("--model", uri)]
    asked = ["--resample-um", "75", "--scale", "0.5", "--set", "window=mean", "--set", "2:turns=flips", "--fit"]
    fused = ["--average", "probability", "--temperature", "1.5", "--temperature", "0.7"]
    words = ["sweep", scan.url, *models, *asked, *fused, "--local"]

    before = kept(scan)
    planned = perfuse(*words, "--plan")
    assert (planned["combinations"], planned["seers"]) == (63 + 4, 6)
    assert kept(scan) == before
    rows = perfuse(*words, "--csv", str(tmp_path / "table.csv"))["rows"]
    assert len(rows) == planned["combinations"]
    new = [scan.group[f"{SCRATCH}/{name}"] for name in kept(scan) - before]
    stored = sum(array.nbytes for member in new for _, array in member.arrays() if array.ndim == 3)
    assert planned["scans"][0]["scratch_bytes"] == stored == 2 * (4 * 70 * 40 * 50 + 2 * 47 * 27 * 33)

    with (tmp_path / "table.csv").open() as file:
        table = list(csv.DictReader(file))
    assert len(table) == 255 * len(rows)
    fewest = rows[1]["predict"]
    assert shlex.split(fewest) == ["--model", MODELS[0], "--set", "window=mean", "--set", "resample_um=75.0"]
    for row in (rows[1], rows[30], rows[-1]):
        perfuse("predict", scan.url, *shlex.split(row["predict"]), "--output", "soft", "--keep-scratch", "--local")
        curve = scoring.tune([scan], "soft", "human")
        at = round(255 * row["threshold"])
        assert (row["surface_dice"], row["dice"]) == (curve.surface_dice[at - 1], curve.dice[at - 1])
        told = [line["surface_dice"] for line in table if line["predict"] == row["predict"]]
        assert told == [f"{score:.6f}" for score in curve.surface_dice]
    assert {"--average", "--weight", "--temperature"} < set(shlex.split(rows[-1]["predict"]))


Soft = np.ndarray
BOTH = [word for uri in MODELS for word in ("--model", uri)]


def logit(soft: Soft) -> Soft:
    return np.log(soft / (255 - soft))


@pytest.mark.parametrize(
    ("models", "options", "law"),
    [
        (
            BOTH[:2],
            ["--roi", "8:24,0:40,5:50"],
            lambda a, _, soft: np.array_equal(soft, only(a, np.s_[8:24, 0:40, 5:50])),
        ),
        (
            BOTH[:2],
            ["--roi", "400:1200,:,250:um"],
            lambda a, _, soft: np.array_equal(soft, only(a, np.s_[8:24, :, 5:])),
        ),
        (BOTH[:2], ["--preview", "1"], lambda a, _, soft: 1 < np.abs(soft - a).mean() < 40),
        (BOTH[:2], ["--set", "axes=x"], lambda a, _, soft: 0 < np.abs(soft - a).mean() < 40),
        (BOTH, [], lambda a, b, soft: np.abs(logit(soft) - (logit(a) + logit(b)) / 2)[(a > 9) & (b > 9)].max() < 0.1),
        (BOTH, ["--average", "probability"], lambda a, b, soft: np.abs(soft - (a + b) / 2).max() <= 1),
        (BOTH, ["--weight", "0", "--weight", "5"], lambda _, b, soft: np.array_equal(soft, b)),
        (
            BOTH,
            ["--temperature", "1", "--temperature", "3"],
            lambda a, b, soft: np.abs(logit(soft) - (logit(a) + logit(b) / 3) / 2)[(a > 9) & (b > 9)].max() < 0.1,
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_option_of_predict(
    scan: Scan, models: list[str], options: list[str], law: Callable[[Soft, Soft, Soft], bool]
) -> None:
    """law: of what each model answers alone, and what both do."""
    answers = []
    for number, words in enumerate((BOTH[:2], BOTH[2:], [*models, *options])):
        perfuse("predict", scan.url, *words, "--output", f"soft{number}", "--local")
        answers.append(np.asarray(scan.label(f"soft{number}")[:]).astype(float))
    assert answers[0].std() > 5
    assert law(*answers)


def only(soft: Soft, box: tuple[slice, ...]) -> Soft:
    inside = np.zeros_like(soft)
    inside[box] = soft[box]
    return inside


def test_predict_writes_what_it_is_told_to(scan: Scan) -> None:
    words = ["predict", scan.url, *BOTH[:2], "--set", "window=max", "--output", "new", "--local"]
    there = kept(scan)
    assert perfuse(*words, "--plan")["scratch_bytes"] == 2 * 70 * 40 * 50
    assert "new" not in scan.labels()
    perfuse(*words)
    assert "new" in scan.labels()
    assert kept(scan) == there
    perfuse(*words, "--set", "overlap=0", "--keep-scratch")
    assert len(kept(scan)) == len(there) + 1


def test_sweep_looks_at_the_class_and_the_truth_that_are_named(scan: Scan) -> None:
    words = ["sweep", scan.url, "--model", TWO, "--set", "axes=z", "--local"]
    rows = [perfuse(*words, "--class", name, "--truth", truth)["rows"] for name, truth in ASKED]
    perfuse("predict", *words[1:], "--output", "soft")
    for (row,), (name, truth) in zip(rows, ASKED, strict=True):
        curve = scoring.tune([scan], f"soft-{name}", truth)
        assert row["surface_dice"] == curve.surface_dice[curve.best - 1]
    assert len({row["surface_dice"] for (row,) in rows}) == len(rows)
    with pytest.raises(ContractError, match="tell thin, thick apart"):
        CliRunner().invoke(build(), words, catch_exceptions=False)


ASKED = (("thin", "human"), ("thick", "human"), ("thick", "other"))


def test_options_of_scores(scan: Scan, tmp_path: Path) -> None:
    perfuse("predict", scan.url, *BOTH[:2], "--output", "soft", "--local")
    words = ["evaluate", scan.url, "--prediction", "soft", "--truth", "human", "--threshold", "0.5"]
    plain = perfuse(*words)
    near = perfuse(*words, "--tolerance-um", "60")["surface_dice_within"]
    assert near == {"tolerance_um": 60, "surface_dice": scoring.surface_dice_within(scan, "soft", "human", 60, 128)}
    assert near["surface_dice"] > plain["surface_dice"]
    higher = perfuse(*words[:-1], "0.7")
    assert (plain["predicted_voxels"], higher["predicted_voxels"]) == tuple(
        int((np.asarray(scan.label("soft")[:]) >= at).sum()) for at in (128, 179)
    )
    other = perfuse(*(word.replace("human", "other") for word in words))
    assert other["dice"] == scoring.evaluate(scan, "soft", "other", 128).dice != plain["dice"]

    soft, human = (np.asarray(scan.label(name)[:]) >= 128 for name in ("soft", "human"))
    pairs = ((soft, human), (soft, ~human), (~soft, human), (~soft, ~human))
    assert list(plain["counts"].values()) == [int((a & b).sum()) for a, b in pairs]

    words = ["tune", scan.url, "--prediction", "soft", "--truth", "human"]
    tuned = [perfuse(*words, "--beta", beta) for beta in ("1", "2")]
    assert tuned[0]["fbeta"]["scores"] == tuned[0]["dice"]
    (counts,) = scoring.counts_by_scan([scan], "soft", "human")
    assert tuned[1]["fbeta"] == {"beta": 2, "scores": counts.fbeta(2).tolist()} != tuned[0]["fbeta"]
    perfuse(*words, "--plot", str(tmp_path / "tune.png"))
    assert (tmp_path / "tune.png").read_bytes().startswith(b"\x89PNG")


SCORES = ["--prediction", "human", "--truth", "other"]


@pytest.mark.parametrize(
    ("verb", "option"),
    [
        ("evaluate", "--per-slice"),
        ("evaluate", "--heat-map"),
        ("tune", "--plot"),
        ("sweep", "--csv"),
        ("scan show", "--picture"),
    ],
)
def test_a_file_that_cannot_be_written_is_told_of_before_the_work(
    scan: Scan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str, option: str
) -> None:
    for module in (breakdown, scoring, sweeping, quicklook):
        for work in {"count", "counts_by_scan", "sweep", "path"} & set(vars(module)):
            monkeypatch.setattr(module, work, lambda *_: pytest.fail("work was begun"))
    words = [*verb.split(), scan.url, *{"sweep": BOTH, "scan show": []}.get(verb, SCORES), option]
    for path in (tmp_path / "nowhere" / "file", tmp_path):
        with pytest.raises(PerfuseError, match=f"^{path} cannot be written: "):
            CliRunner().invoke(build(), [*words, str(path)], catch_exceptions=False)
    assert not list(tmp_path.iterdir())


def test_scores_are_told_though_their_file_fails(scan: Scan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("perfuse.plots.over_thresholds", lambda *_: 1 / 0)
    monkeypatch.setattr(breakdown, "per_slice", lambda *_, **__: 1 / 0)
    for words in (["evaluate", "--threshold", "0.5", "--per-slice"], ["tune", "--plot"]):
        words[1:1] = [scan.url, *SCORES]
        shown = CliRunner().invoke(build(), [*words, str(tmp_path / "file"), "--json"])
        assert isinstance(shown.exception, ZeroDivisionError)
        assert "dice" in json.loads(shown.stdout)


def test_what_cannot_be_scored_is_refused_before_the_work(
    make_scan: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "count", lambda *_: pytest.fail("work was begun"))
    mask = np.zeros((8, 8, 8), np.uint8)
    scan = make_scan(tmp_path, "s", mask.astype(np.uint16), dict.fromkeys(("human", "other"), mask), kind="sparse")
    words = ["evaluate", scan.url, *SCORES, "--tolerance-um"]
    with pytest.raises(ScanError, match="is sparse: no surface dice can be told"):
        CliRunner().invoke(build(), [*words, "50"], catch_exceptions=False)
    for number, said in (("inf", "no finite number"), ("nan", "greater than or equal")):
        shown = CliRunner().invoke(build(), [*words, number])
        assert (shown.exit_code, said in shown.stderr) == (2, True)
