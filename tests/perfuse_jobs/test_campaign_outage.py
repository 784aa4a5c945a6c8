"""A campaign through an MLflow that goes away between its stages, within one, and at its end."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from perfuse import outages, tracking
from perfuse.errors import ServerError
from perfuse.scoring import evaluate
from perfuse_jobs import campaign

pytestmark = pytest.mark.usefixtures("one_thread")

STAGES = [
    {"kind": "train", "name": "first", "scans": ["a"]},
    {"kind": "evaluate", "name": "score", "model": "first"},
]
PAUSES = (0.0, 0.0)


@pytest.fixture
def words(scans: Path, tiny_settings: list[str], tmp_path: Path, workdir: Path) -> list[str]:
    settings = [word for word in tiny_settings if word != "--set"]
    roles = {"dense": ["a"], "validation": ["c"], "test": ["b"]}
    values = {"recipe": "quickstart", "settings": settings, "roles": roles, "stages": STAGES}
    (tmp_path / "pair.yaml").write_text(yaml.safe_dump(values))
    return ["campaign", str(tmp_path / "pair.yaml"), "--data", str(scans), "--local"]


def test_a_campaign_outlasts_mlflow_and_does_nothing_twice(
    words: list[str], mlflow_server: Any, verb: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is killed when the training is kept, when the score is taken, and before the last word; at each next try it is back."""
    said: list[str] = []
    trainings: list[str] = []
    keep, train, lineage = campaign.keep, campaign.train, campaign._Runner._lineage

    def back(text: str) -> None:
        said.append(text)
        mlflow_server.start()

    def keeping(result: Any) -> None:
        keep(result)
        if result.kind == "train":
            mlflow_server.kill()

    def scoring(*given: Any) -> Any:
        score = evaluate(*given)
        if len(said) == 1:
            mlflow_server.kill()
        return score

    def training(*given: Any, **options: Any) -> str:
        trainings.append(given[2])
        return train(*given, **options)

    def last(self: Any) -> Any:
        if len(said) == 2:
            mlflow_server.kill()
        return lineage(self)

    monkeypatch.setattr(outages, "say", back)
    monkeypatch.setattr(campaign, "OUTAGE", PAUSES)
    monkeypatch.setattr(campaign, "keep", keeping)
    monkeypatch.setattr(campaign, "evaluate", scoring)
    monkeypatch.setattr(campaign, "train", training)
    monkeypatch.setattr(campaign._Runner, "_lineage", last)
    made = verb(*words)
    assert [stage["stage"] for stage in made["stages"]] == ["first", "score"]
    assert len(said) == 3
    assert all("does not answer" in text for text in said)
    assert trainings == ["pair-first"]
    server = tracking.client()
    found = {r.data.tags["mlflow.runName"]: r for r in server.search_runs([tracking.experiment_id()])}
    assert {name: run.info.status for name, run in found.items()} == dict.fromkeys(
        ("pair", "pair-first", "pair-score"), "FINISHED"
    )
    assert {f.path for f in server.list_artifacts(found["pair"].info.run_id)} == {
        "campaign.json",
        "results.json",
        "lineage.json",
    }


def test_one_that_stays_away_is_named(
    words: list[str], mlflow_server: Any, verb: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[str] = []

    def away(self: Any, planned: Any, title: str) -> None:
        tries.append(title)
        mlflow_server.kill()
        tracking.experiment_id()

    monkeypatch.setattr(campaign._Runner, "_stage", away)
    monkeypatch.setattr(campaign, "OUTAGE", PAUSES)
    with pytest.raises(ServerError, match="does not answer"):
        verb(*words)
    assert tries == ["stage 1 of 2, train first"] * 3
