"""What the stages of a campaign have made: kept under their keys, and shown in MLflow beneath the campaign.

What is kept is small: URIs, thresholds, digests and scores. Models, labels and checkpoints lie where the verbs put them.
"""

from typing import Any

from pydantic import Field

from perfuse import settings, storage
from perfuse.campaigns.planning import Plan, Planned
from perfuse.catalog import LabelInfo, Scan
from perfuse.contract import Frozen, Fusion
from perfuse.errors import RegistryError
from perfuse.registry.bundles import version_of
from perfuse.tracking import Run, parent_of


class Result(Frozen):
    """What a stage has made."""

    stage: str
    kind: str
    key: str
    run_id: str = ""
    models: tuple[str, ...] = ()
    """URIs; of an ensemble its members."""
    fusion: Fusion = Fusion()
    """How these answer as one."""
    threshold: int | None = None
    labels: dict[str, LabelInfo] = Field(default={})
    """By URL of the scan."""
    scores: tuple[dict[str, Any], ...] = ()
    """Evaluations; of a training that learnt from everything those of its siblings, which say so."""


def place_of(key: str) -> str:
    """Where lies what is kept under a key, before what follows in its name."""
    return storage.join(settings.storage_url(), "campaigns", key[:16])


def keep(result: Result) -> None:
    """From now on its stage is done."""
    storage.write_json(place_of(result.key) + ".json", result.model_dump(mode="json"))


def done(planned: Planned) -> Result | None:
    """What a stage has made, if its models and labels are still what they were."""
    kept = _read(place_of(planned.key) + ".json")
    if kept is None:
        return None
    result = Result.model_validate(kept)
    for url, info in result.labels.items():
        now = Scan.open(url).labels().get(info.name)
        if now is None or now.digest != info.digest:
            return None
    try:
        for uri in result.models:
            version_of(uri)
    except RegistryError:
        return None
    return result


def run_at(place: str, name: str, tags: dict[str, str], parent: str | None = None) -> Run:
    """The run that is noted at a place, or a new one that is noted there."""
    noted = _read(place)
    run = Run.resume(noted["run_id"]) if noted else None
    if run is None:
        run = Run.start(name, tags, parent=parent)
        storage.write_json(place, {"run_id": run.id})
    return run


def conclude(run: Run, result: Result) -> None:
    """Log what a stage has made, and end its run."""
    run.json("result.json", result.model_dump(mode="json"))
    run.metrics(0, _metrics(result))
    run.finish()


def show_beneath(campaign: Run, result: Result, plan: Plan) -> None:
    """Show a stage beneath the campaign also where its own run is another campaign's, or nobody's: by a run that names that one."""
    place = storage.join(place_of(plan.key), f"{result.stage}.run.json")
    if parent_of(result.run_id) == campaign.id or _read(place) is not None:
        return
    tags = {"perfuse.key": result.key, "perfuse.stage": result.kind, "perfuse.made_by": result.run_id}
    conclude(run_at(place, f"{plan.name}-{result.stage}", tags, campaign.id), result)


def _read(place: str) -> Any:
    try:
        return storage.read_json(place)
    except FileNotFoundError:
        return None


def _metrics(result: Result) -> dict[str, float]:
    """What MLflow draws of a stage: numbers by scan."""
    found: dict[str, float] = {} if result.threshold is None else {"threshold": result.threshold / 255}
    for score in result.scores:
        found |= {
            f"{name}.{score['scan']}": float(score[name]) for name in ("dice", "surface_dice", "precision", "recall")
        }
    for url, info in result.labels.items():
        for name in ("threshold", "achieved_coverage", "residual"):
            if info.lineage.get(name) is not None:
                found[f"{name}.{storage.name_of(url).removesuffix('.ome.zarr')}"] = float(info.lineage[name])
    return found
