"""Promotion is a pure function; the ledger shows tampering; bundles come back as they went in."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from perfuse import registry, tracking
from perfuse.bundle import Bundle
from perfuse.catalog import LabelInfo
from perfuse.contract import Contract, Forward, Network
from perfuse.errors import RegistryError, ServerError
from perfuse.labels import writer_for
from perfuse.models import build
from perfuse.registry.ledger import START, Entry, broken_at, champions
from perfuse.registry.policy import Policy, Score, decide
from perfuse.registry.scores import record_evaluation
from perfuse.scoring import Baseline, Evaluation

TINY = Network(encoder="resnet18", encoder_weights=None, decoder_channels=(16, 8, 8, 8, 8))


def score(data: str, surface: float, kind: str = "test") -> Score:
    return Score(
        data_digest=data,
        scan_url=f"scans/{data}",
        truth="human",
        kind=kind,
        threshold=0.5,
        dice=0.5,
        surface_dice=surface,
    )


def by_data(*scores: Score) -> dict[str, Score]:
    return {s.data_digest: s for s in scores}


surfaces = st.dictionaries(st.sampled_from("abcd"), st.floats(0, 1), max_size=4)


@given(surfaces, surfaces, st.floats(0, 1))
def test_promotion_is_no_regression_on_the_same_data(mine, theirs, minimum):
    candidate, incumbent = (
        by_data(*(score(k, v) for k, v in mine.items())),
        by_data(*(score(k, v) for k, v in theirs.items())),
    )
    decision = decide(candidate, incumbent, Policy(minimum_surface_dice=minimum))
    expected = (
        bool(mine) and all(v >= minimum for v in mine.values()) and all(mine.get(k, -1) >= v for k, v in theirs.items())
    )
    assert decision.accepted == expected
    if bool(mine) and all(v >= minimum for v in mine.values()):
        assert {s.data_digest for s in decision.missing} == set(theirs) - set(mine)


def test_first_champion_meets_minimums_only():
    policy = Policy(minimum_surface_dice=0.3)
    assert decide(by_data(score("a", 0.31)), None, policy).accepted
    assert "0.2900" in decide(by_data(score("a", 0.29)), None, policy).reason
    assert "no scores" in decide({}, None, policy).reason
    assert not decide(by_data(score("a", float("nan"))), None, policy).accepted


def test_a_score_against_what_a_model_made_is_not_kept(monkeypatch):
    kept = []
    monkeypatch.setattr(
        "perfuse.registry.scores.record_scores", lambda uri, score: kept.append((uri, score.surface_dice))
    )
    monkeypatch.setattr("perfuse.registry.scores.scores_of", lambda name, version: {})
    monkeypatch.setattr("perfuse.registry.bundles.version_of", lambda uri: ("m", "1"))
    monkeypatch.setattr("perfuse.registry.bundles.tags", lambda name, version: {})
    monkeypatch.setattr("perfuse.registry.scores._why_not", lambda scores, tags: "")
    for kind in ("soft", "sparse", "dense"):
        record_evaluation(evaluation(kind), kind="test")
    assert kept == [("models:/m/1", 0.5)]


def test_a_score_is_of_the_own_answer_of_a_version(tmp_path, make_scan, monkeypatch, capsys):
    kept: list[str] = []
    tags = {"forward_digest": "f", "bundle_digest": "b"}
    monkeypatch.setattr("perfuse.registry.scores.record_scores", lambda uri, score: kept.append(score.data_digest))
    monkeypatch.setattr("perfuse.registry.scores.scores_of", lambda name, version: {})
    monkeypatch.setattr("perfuse.registry.bundles.version_of", lambda uri: ("m", "1"))
    monkeypatch.setattr("perfuse.registry.bundles.tags", lambda name, version: tags)
    image = np.random.default_rng(0).integers(0, 60_000, (8, 12, 16)).astype(np.uint16)
    mask = (image > 50_000).astype(np.uint8) * np.uint8(255)
    made_by = {"uri": "models:/m/1", "threshold": 128, "backend": "eager-fp32", **tags}
    lineage = {"scan_digest": "d", "members": ["models:/m/1"], "backends": [], "donors": {}, "skipped": 0.5}
    inside, less = ((2, 0, 0), (6, 12, 16)), ((3, 0, 0), (6, 12, 16))

    def noted(truth_box=None, box=None, threshold=128, more=None, **changed) -> str:
        about = {"kind": "soft", "box": box, "lineage": lineage | (more or {}), "model": made_by | changed}
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        scan = make_scan(folder, "a", image, {"human": mask}, box=truth_box)
        writer = writer_for(scan, "p", "key")
        for task in writer.todo():
            writer.write(task, mask[writer.tasks[task].slices])
        writer.finish(lambda share, digest: LabelInfo(name="p", foreground=share, digest=digest, **about))
        kept.clear()
        seen = replace(evaluation("dense"), scan_url=scan.url, truth="human", threshold=threshold / 255)
        record_evaluation(seen, kind="test")
        told = capsys.readouterr().err
        assert bool(told) != bool(kept)
        return told

    assert not noted()
    assert not noted(truth_box=inside, box=inside)
    assert "version 1 of m: p is of a region" in noted(box=inside)
    assert "of a region" in noted(truth_box=inside, box=less)
    assert "asked otherwise" in noted(forward_digest="turned")
    assert "another threshold" in noted(bundle_digest="moved")
    assert "another threshold" in noted(threshold=100)
    assert "made of its answer" in noted(more={"cleaned": {}})


def evaluation(truth_kind: str) -> Evaluation:
    same = {
        "scan": "a",
        "scan_url": "a",
        "prediction": "p",
        "truth": "t",
        "data_digest": "d",
        "model": "models:/m/1",
        "class_name": "",
    }
    numbers = dict.fromkeys(("threshold", "dice", "iou", "precision", "recall", "fbeta", "surface_dice"), 0.5)
    counts = {"truth_voxels": 1, "predicted_voxels": 1, "dice_bounds": (0.5, 0.5), "precision_bounds": (0.5, 0.5)}
    return Evaluation(**same, **numbers, **counts, truth_kind=truth_kind, baseline=Baseline("none", 0, 0))


def test_validation_scores_stand_in_only_where_there_are_no_test_scores():
    incumbent = by_data(score("a", 0.9, "validation"), score("t", 0.5))
    assert decide(by_data(score("t", 0.6), score("a", 0.2, "validation")), incumbent, Policy()).accepted
    assert not decide(by_data(score("a", 0.8)), by_data(score("a", 0.9, "validation")), Policy()).accepted


def chain(*moves: tuple[str, str]) -> list[Entry]:
    entries: list[Entry] = []
    for index, (action, version) in enumerate(moves):
        previous = entries[-1].digest() if entries else START
        entries.append(
            Entry(
                index=index,
                model="m",
                action=action,
                version=version,
                champion_before=None,
                reason="",
                scores={},
                who="w",
                when="t",
                previous=previous,
            )
        )
    return entries


@given(
    st.lists(st.tuples(st.sampled_from(["promote", "refuse"]), st.sampled_from("123")), min_size=1, max_size=6),
    st.data(),
)
def test_tampering_shows(moves, data):
    entries = chain(*moves)
    assert broken_at(entries) is None
    at = data.draw(st.integers(0, len(entries) - 1))
    changed = [*entries]
    changed[at] = changed[at].model_copy(update={"reason": "another"})
    assert broken_at(changed) == (at + 1 if at + 1 < len(entries) else None)
    removed = entries[:at] + entries[at + 1 :]
    assert broken_at(removed) == (at if at < len(removed) else None)


def test_champions_are_a_stack():
    assert champions(chain(("promote", "1"), ("refuse", "2"), ("promote", "3"), ("rollback", "1"))) == ["1"]


def make_bundle(seed: int) -> Bundle:
    torch.manual_seed(seed)
    forward = Forward(network=TINY, voxel_size_um=(1, 100), tile=64, axes=("z",))
    return Bundle(Contract(forward=forward), build(TINY).state_dict(), {"seed": seed})


@pytest.fixture
def registered(mlflow_sqlite, monkeypatch, tmp_path):
    monkeypatch.setenv("PERFUSE_WORKDIR", str(tmp_path))
    bundles = [make_bundle(seed).with_threshold(100 + seed) for seed in (1, 2)]
    return [(registry.register(b, "vessels", tracking.Run.start("t").id), b) for b in bundles]


def test_the_loop_of_a_model(registered):
    import mlflow

    (first, one), (second, two) = registered
    assert (first, second) == ("models:/vessels/1", "models:/vessels/2")
    back = registry.load_bundle("models:/vessels@challenger")
    assert back.uri == second
    assert back.digest() == two.digest() != one.digest()
    assert back.contract.decision.threshold == 102

    voxels = (np.random.default_rng(0).random((70, 80)) * 4000).astype(np.uint16)
    from perfuse.inference import probability_of_array

    network = build(TINY)
    network.load_state_dict(two.weights)
    theirs = mlflow.pyfunc.load_model("models:/vessels/2").predict(voxels)
    np.testing.assert_array_equal(theirs, probability_of_array(network, two.contract.forward, voxels)[0])

    with pytest.raises(RegistryError, match=r"(?s)no scores.*perfuse predict.*perfuse evaluate"):
        registry.promote("vessels", "1")
    registry.record_scores(first, score("a", 0.5))
    registry.promote("vessels", "1")
    with pytest.raises(RegistryError, match="no scores"):
        registry.promote("vessels", "2")
    registry.record_scores(second, score("b", 0.9))
    with pytest.raises(RegistryError, match="perfuse predict scans/a --model models:/vessels/2 --output vessels-v2"):
        registry.promote("vessels", "2")
    registry.record_scores(second, score("a", 0.49))
    with pytest.raises(RegistryError, match=r"0\.4900 .* below the champion's 0\.5000"):
        registry.promote("vessels", "2")
    registry.record_scores(second, score("a", 0.51))
    registry.promote("vessels", "2")
    assert registry.promote("vessels", "2").reason == "it is champion already"
    assert registry.rollback("vessels") == "1"
    found = registry.history("vessels")
    assert [e["action"] for e in found["entries"]] == ["refuse", "promote", *["refuse"] * 3, "promote", "rollback"]
    assert (found["champion"], found["broken_at"], found["moved_behind_ledger"]) == ("1", None, False)
    registry.set_champion("vessels", "2")
    assert registry.history("vessels")["moved_behind_ledger"]
    with pytest.raises(RegistryError, match="no earlier champion"):
        registry.rollback("vessels")


def test_errors_name_what_there_is(registered):
    with pytest.raises(RegistryError, match="Models: vessels"):
        registry.load_bundle("models:/other/1")
    with pytest.raises(RegistryError, match="its versions: 1, 2"):
        registry.load_bundle("models:/vessels/7")
    with pytest.raises(RegistryError, match="its aliases: challenger"):
        registry.load_bundle("models:/vessels@champion")
    with pytest.raises(RegistryError, match="names no model"):
        registry.load_bundle("vessels")


def test_a_server_that_is_away(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(ServerError, match=r"127\.0\.0\.1:9 does not answer"):
        registry.load_bundle("models:/vessels/1")


def test_passwords_are_not_shown():
    assert tracking.shown("postgresql://me:secret@host/db") == "postgresql://…@host/db"
