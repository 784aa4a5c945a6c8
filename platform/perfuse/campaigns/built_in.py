"""The campaigns that perfuse brings. A campaign is a function of who plays which part."""

from collections.abc import Callable

from perfuse.campaigns.schema import Campaign, Ensemble, Evaluate, Names, PseudoLabel, Roles, Stage, Train
from perfuse.errors import CampaignError


def sennet_3rd(roles: Roles) -> Campaign:
    """3rd place of SenNet + HOA 2023: rounds of matched coverage.

    Learn from the dense scans; for one sparse scan after the other, the best covered first, write pseudo-labels whose
    threshold meets the declared coverage, and go on from the weights that there are with this scan too. At last learn from
    everything, also from the validation donor: with the threshold of the last round, whose scores stand for its own.
    """
    _need(roles, "sennet_3rd", "dense", "sparse", "validation")
    stages: list[Stage] = [Train(name="dense", scans=roles.dense), *_scored("dense", roles)]
    last, labels, learnt = "dense", ["human"], list(roles.dense)
    for number, specimen in enumerate(roles.sparse, 1):
        taught, name = f"labels-{number}", f"round-{number}"
        labels.insert(0, taught)
        learnt += [specimen] * (specimen not in learnt)
        stages += [
            PseudoLabel(name=taught, model=last, scans=(specimen,), cut="coverage"),
            Train(name=name, scans=tuple(learnt), labels=tuple(labels), init_from=last),
            *_scored(name, roles),
        ]
        last = name
    everything = Train(
        name="all",
        scans=(*learnt, *roles.validation),
        labels=tuple(labels),
        validation=(),
        init_from=last,
        threshold_from=last,
        siblings=(last,),
    )
    stages += [everything, *_scored("all", roles)]
    return Campaign(name="sennet_3rd", recipe="sennet_3rd", roles=roles, stages=tuple(stages))


MEMBERS_5TH = {"cnn": "sennet_5th", "dpn": "sennet_5th_dpn68", "vit": "sennet_5th_maxvit"}


def sennet_5th(roles: Roles) -> Campaign:
    """5th place of SenNet + HOA 2023: soft labels, never hard, organ after organ.

    Three networks learn; the sigmoid of the mean of their logits is taught on the next organ: the sparse kidneys, then
    unlabelled ones of the same organ, then other organs. After each, the three are trained anew.
    """
    _need(roles, "sennet_5th", "dense", "validation")
    learnt, labels = list(roles.dense), ["human"]
    stages = _members("dense", learnt, labels, roles)
    last = "dense"
    for number, specimen in enumerate(dict.fromkeys((*roles.sparse, *roles.unlabelled)), 1):
        taught = f"labels-{number}"
        stages.append(PseudoLabel(name=taught, model=last, scans=(specimen,)))
        labels.insert(0, taught)
        learnt += [specimen] * (specimen not in learnt)
        last = f"round-{number}"
        stages += _members(last, learnt, labels, roles)
    return Campaign(name="sennet_5th", recipe="sennet_5th", roles=roles, stages=tuple(stages))


def sennet_13th(roles: Roles) -> Campaign:
    """13th place of SenNet + HOA 2023: one training of 2.5D mosaics on what people labelled, no rounds."""
    _need(roles, "sennet_13th", "dense", "validation")
    learnt = tuple(dict.fromkeys((*roles.dense, *roles.sparse)))
    stages = (Train(name="training", scans=learnt), *_scored("training", roles))
    return Campaign(name="sennet_13th", recipe="sennet_13th", roles=roles, stages=stages)


def _members(name: str, learnt: list[str], labels: list[str], roles: Roles) -> list[Stage]:
    trained: list[Stage] = [
        Train(name=f"{name}-{member}", recipe=recipe, scans=tuple(learnt), labels=tuple(labels))
        for member, recipe in MEMBERS_5TH.items()
    ]
    together = Ensemble(kind="ensemble", name=name, models=tuple(stage.name for stage in trained))
    return [*trained, together, *_scored(name, roles)]


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


CAMPAIGNS: dict[str, Callable[[Roles], Campaign]] = {f.__name__: f for f in (sennet_3rd, sennet_5th, sennet_13th)}
