"""The campaigns that perfuse brings. A campaign is a function of who plays which part."""

from collections.abc import Callable
from typing import Any, NamedTuple

from perfuse.campaigns.schema import Campaign, Ensemble, Evaluate, Names, PseudoLabel, Roles, Stage, Train
from perfuse.errors import CampaignError

MEMBERS_3RD = {
    "se": ("sennet_3rd", "coverage"),
    "v2s": ("sennet_3rd_v2s", 0.1),
    "maxvit": ("sennet_3rd_maxvit", 0.15),
    "v2l": ("sennet_3rd_v2l", 0.2),
}
"""Recipe of each member, and where its pseudo-labels are cut in the last round."""
UNTIL_CONVERGED = (
    "converged=0.01",
    "schedule=[{kind: linear, share: 1, start: 0.05}, {kind: constant, share: 15}, {kind: cosine, share: 4, end: 0.01}]",
)


def sennet_3rd(roles: Roles, members: Names) -> Campaign:
    """3rd place of SenNet + HOA 2023: rounds of matched coverage, at last for all members.

    The first member learns from the dense scans; for one sparse scan after the other, the best covered first, it writes
    pseudo-labels whose threshold meets the declared coverage, and goes on from the weights that there are with this scan too.
    In the last of these rounds all members train, each on labels cut at its own threshold, and then on everything, also
    the validation donor, until their loss has converged. Threshold and scores of what learnt from everything are those of
    the last round, and the first member's those of its siblings, each without one donor. Ours: which member takes which of the
    thresholds .1, .15, .2, the first the matched one; people's edges are kept; one cycle is kept for the rounds of the first member alone.
    """
    _need(roles, "sennet_3rd", "dense", "sparse", "validation")
    first = MEMBERS_3RD[members[0]][0]
    stages: list[Stage] = [Train(name="dense", recipe=first, scans=roles.dense), *_scored("dense", roles)]
    last, labels, learnt = "dense", ["human"], list(roles.dense)
    for number, specimen in enumerate(roles.sparse[:-1], 1):
        taught, name = f"labels-{number}", f"round-{number}"
        labels.insert(0, taught)
        learnt += [specimen] * (specimen not in learnt)
        stages += [
            PseudoLabel(name=taught, model=last, scans=(specimen,), cut="coverage", keep_edges=True),
            Train(name=name, recipe=first, scans=tuple(learnt), labels=tuple(labels), init_from=last),
            *_scored(name, roles),
        ]
        last = name
    learnt += [roles.sparse[-1]] * (roles.sparse[-1] not in learnt)
    stages += _last_rounds(members, last, tuple(labels), tuple(learnt), roles)
    return Campaign(name="sennet_3rd", recipe=first, roles=roles, stages=tuple(stages))


def _last_rounds(members: Names, last: str, labels: Names, learnt: Names, roles: Roles) -> list[Stage]:
    """All members of 3rd place with the last sparse scan, and then with everything."""
    number, taught, rounds, everything = len(roles.sparse), [], [], []
    name = f"round-{number}"
    for member in members:
        recipe, cut = MEMBERS_3RD[member]
        leads = member == members[0]
        soft = _of(f"labels-{number}", member, members)
        taught.append(PseudoLabel(name=soft, model=last, scans=roles.sparse[-1:], cut=cut, keep_edges=True))
        training = Train(
            name=_of(name, member, members),
            recipe=recipe,
            settings=UNTIL_CONVERGED,
            scans=learnt,
            labels=(soft, *labels),
            init_from=last if leads else None,
        )
        rounds.append(training)
        without_choice = {
            "name": _of("all", member, members),
            "scans": (*learnt, *roles.validation),
            "validation": (),
            "init_from": training.name,
            "threshold_from": training.name,
            "siblings": "each" if leads else (training.name,),
        }
        everything.append(training.model_copy(update=without_choice))
    return [
        *taught,
        *_together(name, rounds),
        *_scored(name, roles),
        *_together("all", everything, scans=(), threshold_from=name, siblings=(name,)),
        *_scored("all", roles),
    ]


def _of(name: str, member: str, members: Names) -> str:
    return name if len(members) == 1 else f"{name}-{member}"


def _together(name: str, trained: list[Train], **about: Any) -> list[Stage]:
    """Trainings, and the ensemble of them if they are several."""
    if len(trained) == 1:
        return [*trained]
    models = tuple(stage.name for stage in trained)
    return [*trained, Ensemble(kind="ensemble", name=name, models=models, **about)]


MEMBERS_5TH = {"cnn": "sennet_5th", "dpn": "sennet_5th_dpn68", "vit": "sennet_5th_maxvit"}


def sennet_5th(roles: Roles, members: Names) -> Campaign:
    """5th place of SenNet + HOA 2023: soft labels, never hard, organ after organ.

    Three networks learn; the sigmoid of the mean of their logits is taught on the next organ: the sparse kidneys, then
    unlabelled ones of the same organ, then other organs. After each, the three are trained anew.
    """
    _need(roles, "sennet_5th", "dense", "validation")
    learnt, labels = list(roles.dense), ["human"]
    stages = _members_5th("dense", members, learnt, labels, roles)
    last = "dense"
    for number, specimen in enumerate(dict.fromkeys((*roles.sparse, *roles.unlabelled)), 1):
        taught = f"labels-{number}"
        stages.append(PseudoLabel(name=taught, model=last, scans=(specimen,)))
        labels.insert(0, taught)
        learnt += [specimen] * (specimen not in learnt)
        last = f"round-{number}"
        stages += _members_5th(last, members, learnt, labels, roles)
    return Campaign(name="sennet_5th", recipe="sennet_5th", roles=roles, stages=tuple(stages))


def sennet_13th(roles: Roles, _: Names) -> Campaign:
    """13th place of SenNet + HOA 2023: one training of 2.5D mosaics on what people labelled, no rounds."""
    _need(roles, "sennet_13th", "dense", "validation")
    learnt = tuple(dict.fromkeys((*roles.dense, *roles.sparse)))
    stages = (Train(name="training", scans=learnt), *_scored("training", roles))
    return Campaign(name="sennet_13th", recipe="sennet_13th", roles=roles, stages=stages)


def _members_5th(name: str, members: Names, learnt: list[str], labels: list[str], roles: Roles) -> list[Stage]:
    trained = [
        Train(name=_of(name, member, members), recipe=MEMBERS_5TH[member], scans=tuple(learnt), labels=tuple(labels))
        for member in members
    ]
    return [*_together(name, trained), *_scored(name, roles)]


def _scored(model: str, roles: Roles) -> list[Stage]:
    return [Evaluate(name=f"{model}-test", model=model)] if roles.test else []


def _need(roles: Roles, campaign: str, *parts: str) -> None:
    for part in parts:
        names: Names = getattr(roles, part)
        if not names:
            raise CampaignError(
                f"Campaign {campaign} needs a specimen that plays the part {part!r}, and none in the folder does. Add labels "
                f"(`perfuse labels add`), or name one: --set {part}=SPECIMEN"
            )


class BuiltIn(NamedTuple):
    """A campaign, and the networks that take part in it."""

    make: Callable[[Roles, Names], Campaign]
    """Of roles and members; the first of these leads."""
    members: Names
    small: Names
    """Those that a smoke campaign trains: with small networks the others would be no other networks."""


CAMPAIGNS = {
    "sennet_3rd": BuiltIn(sennet_3rd, tuple(MEMBERS_3RD), small=("se", "v2l")),
    "sennet_5th": BuiltIn(sennet_5th, tuple(MEMBERS_5TH), small=tuple(MEMBERS_5TH)),
    "sennet_13th": BuiltIn(sennet_13th, ("maxvit",), small=("maxvit",)),
}
