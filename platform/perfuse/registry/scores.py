"""Scores kept with a version, one tag a scan."""

from typing import Literal

from perfuse.errors import RegistryError
from perfuse.registry import bundles
from perfuse.registry.policy import Score
from perfuse.scoring import Evaluation

PREFIX = "score."


def record_scores(uri: str, score: Score) -> None:
    """Keep a score with a version; one on the same data is replaced, a test score never by a validation score."""
    name, version = bundles.version_of(uri)
    known = scores_of(name, version).get(score.data_digest)
    if known is not None and known.kind == "test" and score.kind == "validation":
        return
    bundles.set_tag(name, version, PREFIX + score.data_digest[:16], score.model_dump_json())


def record_evaluation(scores: Evaluation, *, kind: Literal["validation", "test", "sibling"]) -> None:
    """Keep an evaluation with the version that made the prediction.

    Passed over are predictions of no registered model, truth that is sparse or itself a model's, and truth without vessels.
    """
    undefined = scores.surface_dice != scores.surface_dice
    if not scores.model.startswith("models:/") or scores.truth_kind != "dense" or undefined:
        return
    name, version = bundles.version_of(scores.model)
    known = scores_of(name, version).get(scores.data_digest)
    record_scores(
        scores.model,
        Score(
            data_digest=scores.data_digest,
            scan_url=scores.scan_url,
            truth=scores.truth,
            class_name=scores.class_name,
            kind="validation" if known is not None and known.kind == "validation" else kind,
            threshold=scores.threshold,
            dice=scores.dice,
            surface_dice=scores.surface_dice,
        ),
    )


def scores_of(name: str, version: str) -> dict[str, Score]:
    """A version's scores, by data digest."""
    try:
        found = [Score.model_validate_json(v) for k, v in bundles.tags(name, version).items() if k.startswith(PREFIX)]
    except ValueError as error:
        raise RegistryError(f"Version {version} of {name!r} carries a damaged score: {error}") from error
    return {s.data_digest: s for s in found}
