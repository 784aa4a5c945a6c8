"""Promotion as a pure function of candidate, incumbent and policy."""

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from perfuse.contract import Frozen


class Score(Frozen):
    """How a version did on one scan, at its own threshold."""

    data_digest: str
    scan_url: str
    truth: str
    class_name: str = Field("", exclude_if=lambda name: not name)
    """Which of the model's classes, where it has several."""
    kind: Literal["validation", "test", "sibling"]
    """validation: the threshold was chosen on it. test: nothing was. sibling: reached by a training of the same recipe
    that this donor was kept out of, where the version itself has learnt from all donors."""
    threshold: float
    dice: float
    surface_dice: float


class Policy(Frozen):
    """What a champion must reach."""

    minimum_surface_dice: float = Field(0.05, ge=0, le=1)


class Decision(Frozen):
    """What was decided, and why."""

    accepted: bool
    reason: str
    missing: tuple[Score, ...] = ()
    """The incumbent's scores on data that the candidate has none on."""


def decide(candidate: Mapping[str, Score], incumbent: Mapping[str, Score] | None, policy: Policy) -> Decision:
    """Whether the candidate becomes champion. Scores are by data digest.

    incumbent: None before the first champion, for which minimums suffice. Otherwise on each test scan of the incumbent (each
    validation scan, when it has no test scores), surface dice must not be below the incumbent's.
    """
    if not candidate:
        return Decision(accepted=False, reason="it has no scores")
    low = [s for s in candidate.values() if not s.surface_dice >= policy.minimum_surface_dice]
    if low:
        return Decision(
            accepted=False,
            reason=f"surface dice {low[0].surface_dice:.4f} on {low[0].scan_url} is below the minimum {policy.minimum_surface_dice}",
        )
    if incumbent is None:
        return Decision(accepted=True, reason="the first champion: minimums are met")
    wanted = [s for s in incumbent.values() if s.kind == "test"] or list(incumbent.values())
    missing = tuple(s for s in wanted if s.data_digest not in candidate)
    if missing:
        return Decision(accepted=False, reason="it lacks scores on data of the champion", missing=missing)
    for theirs in wanted:
        mine = candidate[theirs.data_digest]
        if mine.surface_dice < theirs.surface_dice:
            return Decision(
                accepted=False,
                reason=f"surface dice {mine.surface_dice:.4f} on {theirs.scan_url} is below the champion's {theirs.surface_dice:.4f}",
            )
    return Decision(accepted=True, reason=f"surface dice is not below the champion's on {len(wanted)} scans")
