"""Scores kept with a version, one tag a scan."""

from typing import Literal

from perfuse.catalog import Scan
from perfuse.console import say
from perfuse.errors import RegistryError
from perfuse.registry import bundles
from perfuse.registry.policy import Score
from perfuse.scoring import Evaluation, box_that_cuts

PREFIX = "score."
ANSWER = {"scan_digest", "members", "backends", "donors", "skipped", "resample_um"}
"""The lineage of what a version answers; whatever is made of it says more."""


def record_scores(uri: str, score: Score) -> None:
    """Keep a score with a version; one on the same data is replaced, a test score never by a validation score."""
    name, version = bundles.version_of(uri)
    known = scores_of(name, version).get(score.data_digest)
    if known is not None and known.kind == "test" and score.kind == "validation":
        return
    bundles.set_tag(name, version, PREFIX + score.data_digest[:16], score.model_dump_json())


def record_evaluation(scores: Evaluation, *, kind: Literal["validation", "test", "sibling"]) -> None:
    """Keep an evaluation with the version that made the prediction.

    Passed over are predictions of no registered model, truth that is sparse or itself a model's, and truth without vessels;
    and, with a line that says why, what is not the plain answer of that very version.
    """
    undefined = scores.surface_dice != scores.surface_dice
    if not scores.model.startswith("models:/") or scores.truth_kind != "dense" or undefined:
        return
    name, version = bundles.version_of(scores.model)
    why = _why_not(scores, bundles.tags(name, version))
    if why:
        say(f"No score is noted for version {version} of {name}: {scores.prediction} is {why}.")
        return
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


def _why_not(scores: Evaluation, tags: dict[str, str]) -> str:
    """What keeps a prediction from being the answer of a version with these tags; empty where it is just that."""
    scan = Scan.open(scores.scan_url)
    info = scan.label_info(scores.prediction)
    if info.model is None or info.model.forward_digest != tags.get("forward_digest"):
        return "what it says when asked otherwise than its contract says (--set, --preview)"
    if info.model.bundle_digest != tags.get("bundle_digest") or scores.threshold != info.model.threshold / 255:
        return "read by another threshold than its own"
    if not ANSWER.issuperset(info.lineage):
        return "made of its answer, as by `perfuse postprocess`"
    if box_that_cuts(scan, info, scan.label_info(scores.truth)):
        return "of a region that does not hold all of the truth"
    return ""


def scores_of(name: str, version: str) -> dict[str, Score]:
    """A version's scores, by data digest."""
    try:
        found = [Score.model_validate_json(v) for k, v in bundles.tags(name, version).items() if k.startswith(PREFIX)]
    except ValueError as error:
        raise RegistryError(f"Version {version} of {name!r} carries a damaged score: {error}") from error
    return {s.data_digest: s for s in found}
