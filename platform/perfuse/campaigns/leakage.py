"""Refusing campaigns in which a donor judges what was learnt from it, be it by way of pseudo-labels or initial weights."""

from perfuse.campaigns.planning import Plan, Planned
from perfuse.campaigns.schema import Ensemble, Train
from perfuse.errors import CampaignError
from perfuse.recipes import differences

OF_THE_DATA = {"name", "labels", "train", "validation", "holdout", "init_from", "seed"}
"""Keys of a recipe in which siblings may differ."""


def check(plan: Plan) -> None:
    """CampaignError naming stage, donor and path, when a campaign cannot be trusted; nothing has run by then.

    No donor chooses or scores what it is in; nothing learns from a test donor, and it chooses nothing; what learns from
    everything has siblings that each left out donors which it learns from, and no others.
    """
    before: dict[str, Planned] = {}
    testing = {site.donor for site in plan.test}
    for planned in plan.stages:
        chooses = _chooses(planned)
        for site in planned.judges:
            _refuse(planned, site.donor, "chooses" if chooses else "is scored")
            if chooses and site.donor in testing:
                raise CampaignError(
                    f"Stage {planned.stage.name}: donor {site.donor!r} chooses, and is kept for testing. Take another donor for "
                    "this (--set validation=…, --set test=…)."
                )
        if isinstance(planned.stage, Train):
            for site in plan.test:
                _refuse(planned, site.donor, "is kept for testing")
        if isinstance(planned.stage, (Train, Ensemble)):
            for name in planned.stage.siblings:
                for own, theirs in _pairs(planned, before[name], before):
                    _check_sibling(own, theirs)
        before[planned.stage.name] = planned


def _chooses(planned: Planned) -> bool:
    stage = planned.stage
    return isinstance(stage, Ensemble) or (isinstance(stage, Train) and not stage.scored_by)


def _pairs(planned: Planned, sibling: Planned, before: dict[str, Planned]) -> list[tuple[Planned, Planned]]:
    """What must be siblings for one stage to be a sibling of another: the two, or their members one by one."""
    stage, other = planned.stage, sibling.stage
    if not isinstance(stage, Ensemble):
        return [(planned, sibling)]
    theirs = other.models if isinstance(other, Ensemble) else ()
    if len(stage.models) != len(theirs) or not {*stage.models, *theirs} <= set(before):
        raise CampaignError(
            f"Stage {stage.name}: sibling {other.name} is no ensemble of as many trainings of this campaign, in the same order."
        )
    return [(before[a], before[b]) for a, b in zip(stage.models, theirs, strict=True)]


def _refuse(planned: Planned, donor: str, part: str) -> None:
    if donor in planned.donors:
        raise CampaignError(
            f"Stage {planned.stage.name}: donor {donor!r} {part}, and is in what was learnt: {planned.stage.name} ← "
            f"{planned.donors[donor]}. Take another donor for this (--set validation=…, --set test=…), or leave it out there."
        )


def _check_sibling(planned: Planned, sibling: Planned) -> None:
    """What learns from everything is the same training as its sibling, and learns from all that its sibling left out."""
    name, other = planned.stage.name, sibling.stage.name
    if planned.recipe is None or sibling.recipe is None:
        raise CampaignError(f"Stage {name}: sibling {other} is no training.")
    changed = [k for k in differences(planned.recipe, sibling.recipe) if k.split(".")[0] not in OF_THE_DATA]
    if changed:
        raise CampaignError(f"Stage {name}: sibling {other} is another training; they differ in {', '.join(changed)}.")
    learnt = {site.url for site in planned.scans}
    missed = {site.specimen for site in (*sibling.scans, *sibling.judges) if site.url not in learnt}
    if missed:
        raise CampaignError(
            f"Stage {name}: sibling {other} knows {', '.join(sorted(missed))}, which {name} does not learn from, so its "
            "scores cannot stand for this stage's."
        )
