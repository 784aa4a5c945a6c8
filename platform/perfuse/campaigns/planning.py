"""A campaign over the scans of a folder: what each stage works on, its key, and the donors that it has learnt from."""

from collections.abc import Callable, Sequence
from typing import Any

from pydantic import Field

from perfuse import storage
from perfuse.campaigns.schema import (
    LABELS,
    Campaign,
    Ensemble,
    Evaluate,
    Names,
    Predict,
    PseudoLabel,
    Stage,
    Train,
    answering,
    models_of,
)
from perfuse.campaigns.siblings import leaving_out_each
from perfuse.catalog import Scan
from perfuse.contract import Frozen
from perfuse.errors import CampaignError
from perfuse.pseudolabels import human_label
from perfuse.recipes import Recipe, load_recipe
from perfuse.splits import listed, named, names_of


class Site(Frozen):
    """A scan that a stage works on."""

    url: str
    specimen: str
    donor: str


class Planned(Frozen):
    """A stage with all that decides its result."""

    stage: Stage
    key: str
    """Digest of its definition, of the voxels and labels of its scans, and of the keys of the stages that it takes from."""
    scans: tuple[Site, ...]
    judges: tuple[Site, ...] = ()
    """Scans that choose by, or score, what it learnt."""
    recipe: Recipe | None = None
    """Of a training, complete."""
    labels: dict[str, str] = Field(default={})
    """Of a training: by URL the label that it takes of a scan, whatever others of its recipe's the scan may hold by then."""
    donors: dict[str, str] = Field(default={})
    """Donors whose data are in its model or labels, each with the way that they took, from the end to the beginning."""
    output: str = ""
    """The name of the labels that it writes: predictions by the same model share one, so that none is made twice."""


class Plan(Frozen):
    """A campaign, ready to run."""

    name: str
    data_url: str
    stages: tuple[Planned, ...]
    test: tuple[Site, ...]
    """Scans of the donors that nothing learns from."""

    @property
    def key(self) -> str:
        """Digest of all stages: the same campaign goes on, another begins."""
        return storage.digest_json([self.name, *(planned.key for planned in self.stages)])


def plan_campaign(
    campaign: Campaign,
    scans: Sequence[Scan],
    data_url: str,
    *,
    smoke: bool = False,
    donors_of: Callable[[str], dict[str, str]],
) -> Plan:
    """Resolve roles, labels and recipes, and give every stage its key; reads metadata only.

    smoke: with small networks, crops and steps. donors_of: the donors in a registered model, by its URI.
    Raises CampaignError when a scan or label is missing, RecipeError for a recipe that cannot be.
    """
    planner = _Planner(campaign, scans, donors_of, smoke=smoke)
    for stage in campaign.stages:
        planner.add(stage)
    test = _sites(named(scans, campaign.roles.test))
    return Plan(name=campaign.name, data_url=data_url, stages=tuple(planner.done.values()), test=test)


class _Planner:
    """Plans stages in order; `done` holds those before."""

    def __init__(
        self, campaign: Campaign, scans: Sequence[Scan], donors_of: Callable[[str], dict[str, str]], *, smoke: bool
    ) -> None:
        self.campaign, self.scans, self.smoke, self.donors_of = campaign, scans, smoke, donors_of
        self.roles: dict[str, Names] = campaign.roles.model_dump()
        self.done: dict[str, Planned] = {}

    def add(self, stage: Stage) -> None:
        """Plan the next stage, and before it the siblings that it asks for."""
        if isinstance(stage, Train) and stage.siblings == "each":
            siblings = self._siblings(stage)
            for sibling in siblings:
                self.add(sibling)
            stage = stage.model_copy(update={"siblings": tuple(sibling.name for sibling in siblings)})
        if stage.name in self.done:
            raise CampaignError(f"Two stages are called {stage.name!r}. Give one of them another name.")
        self.done[stage.name] = self._train(stage) if isinstance(stage, Train) else self._other(stage)

    def _siblings(self, stage: Train) -> list[Train]:
        def in_label(name: str, scan: Scan) -> dict[str, str] | None:
            taken = self._taken(name, scan)
            return None if taken is None else taken[1]

        start = self._ancestry(stage.init_from) if stage.init_from else {}
        return leaving_out_each(stage, self._named(stage, stage.scans), self.scans, in_label, start)

    def _named(self, stage: Stage, names: Names) -> list[Scan]:
        """The scans of roles, specimens and ids, each once."""
        wanted = dict.fromkeys(s for name in names for s in self.roles.get(name, (name,)))
        found = [named(self.scans, [name]) for name in wanted]
        for name, scans in zip(wanted, found, strict=True):
            if not scans:
                raise CampaignError(
                    f"Stage {stage.name}: no role, specimen or scan {name!r}. There are: {listed(self.scans)}."
                )
        if names and not found:
            raise CampaignError(
                f"Stage {stage.name}: nobody plays the part {' or '.join(names)}. Name one: --set {names[0]}=SPECIMEN"
            )
        return list({s.url: s for scans in found for s in scans}.values())

    def _identity(self, name: str) -> str:
        if "@" in name:
            raise CampaignError(f"{name} may name another model tomorrow. Say models:/NAME/VERSION.")
        return name if "/" in name else self.done[name].key

    def _ancestry(self, name: str) -> dict[str, str]:
        if "/" in name:
            return self.donors_of(name)
        return {donor: f"{name} ← {path}" for donor, path in self.done[name].donors.items()}

    def _train(self, stage: Train) -> Planned:
        learnt, judges = self._named(stage, stage.scans), self._named(stage, stage.validation or stage.scored_by)
        chosen = [] if stage.scored_by else judges
        taken = {scan.url: self._label(stage, scan) for scan in (*learnt, *chosen)}
        inputs: list[Any] = []
        donors: dict[str, str] = {}
        for scan in learnt:
            label, identity, above = taken[scan.url]
            inputs.append([*_voxels(scan), identity])
            donors.setdefault(scan.info.donor, f"{label} of {scan.info.specimen}")
            for donor, path in above.items():
                donors.setdefault(donor, path)
        if stage.init_from is not None:
            donors = self._ancestry(stage.init_from) | donors
        self._check_judges(stage, judges)
        recipe = self._recipe(stage, learnt, judges)
        judged = [[*_voxels(s), *([taken[s.url][1]] if chosen else self._people(stage, s))] for s in judges]
        decides = [recipe.model_dump(mode="json"), inputs, judged]
        labels = {url: self._label_name(name) for url, (name, *_) in taken.items()}
        return self._planned(stage, learnt, judges, recipe, donors, decides).model_copy(update={"labels": labels})

    def _recipe(self, stage: Train, learnt: list[Scan], judges: list[Scan]) -> Recipe:
        settings = (*self.campaign.settings, *stage.settings)
        recipe = load_recipe(stage.recipe or self.campaign.recipe, settings, smoke=self.smoke)
        for key in ("init_from", "fold", "within"):
            if getattr(recipe, key) is not None:
                raise CampaignError(
                    f"Stage {stage.name}: {key} is not for the recipe of a stage. The stage itself says what it starts from "
                    "(init_from: a stage or a model's URI) and who chooses (validation: roles or specimens)."
                )
        if isinstance(recipe.labels, dict):
            raise CampaignError(
                f"Stage {stage.name}: its recipe has the classes {', '.join(recipe.classes)}, and campaigns are of one. Train "
                "several by `perfuse train`."
            )
        if not stage.validation and recipe.converged is None:
            raise CampaignError(
                f"Stage {stage.name}: where no donor chooses, a training stops when its loss has converged. Say in its settings "
                "when it has (converged=0.01), with a schedule that has a constant phase."
            )
        chosen, unseen = ([], judges) if stage.scored_by else (judges, [])
        return recipe.model_copy(
            update={
                "train": names_of(learnt, self.scans),
                "validation": names_of(chosen, self.scans),
                "holdout": tuple(dict.fromkeys([*self.roles["test"], *names_of(unseen, self.scans)])),
                "labels": tuple(self._label_name(name) for name in stage.labels),
            }
        )

    def _label_name(self, name: str) -> str:
        made = self.done.get(name)
        if made is None:
            return name
        if made.stage.kind not in LABELS:
            raise CampaignError(f"Stage {name!r} writes no labels; {' and '.join(LABELS)} do.")
        return made.output

    def _label(self, stage: Train, scan: Scan) -> tuple[str, str, dict[str, str]]:
        """The label that a training takes of a scan: name, identity, and the donors in it with their ways."""
        for name in stage.labels:
            if taken := self._taken(name, scan):
                return name, *taken
        raise CampaignError(
            f"Stage {stage.name}: {scan.url} has none of the labels {', '.join(stage.labels)}. Its labels: "
            f"{', '.join(scan.labels()) or 'none'}."
        )

    def _taken(self, name: str, scan: Scan) -> tuple[str, dict[str, str]] | None:
        """A label of a scan, by a stage or its own name: identity, and the donors in it with their ways; None where it has none."""
        made = self.done.get(name)
        if made is not None and scan.url in {site.url for site in made.scans}:
            identity, donors = made.key, made.donors
        elif made is None and name in scan.labels():
            info = scan.label_info(name)
            identity, donors = info.digest, info.donors
        else:
            return None
        return identity, {d: f"{name} of {scan.info.specimen} ← {path}" for d, path in donors.items()}

    def _other(self, stage: Ensemble | Predict | PseudoLabel | Evaluate) -> Planned:
        scans = self._named(stage, stage.scans)
        donors = {d: path for name in reversed(answering(stage)) for d, path in self._ancestry(name).items()}
        own = stage.model_dump(
            mode="json", include={"kind", "cut", "keep_edges", "truth", "average", "weights", "temperatures"}
        )
        judges = scans if isinstance(stage, (Ensemble, Evaluate)) else []
        if isinstance(stage, Ensemble):
            self._check_judges(stage, judges)
        inputs = [[*_voxels(s), *self._people(stage, s)] for s in scans]
        return self._planned(stage, scans, judges, None, donors, [own, inputs])

    def _check_judges(self, stage: Train | Ensemble, judges: list[Scan]) -> None:
        """CampaignError unless the labels that a stage judges by are dense; one threshold is chosen by one label that all have."""
        names: set[str | None] = set()
        scored = isinstance(stage, Train) and stage.scored_by
        for scan in judges:
            name = self._label(stage, scan)[0] if isinstance(stage, Train) and not scored else human_label(scan)
            names.add(name)
            kind = "soft" if name in self.done else scan.label_info(name or "human").kind
            if kind != "dense":
                raise CampaignError(
                    f"Stage {stage.name}: {scan.info.specimen} is to choose or to score, which needs dense labels, and its label "
                    f"{name!r} is {kind}. Take another specimen for this (--set validation=…)."
                )
        if len(names) > 1 and not scored:
            raise CampaignError(
                f"Stage {stage.name}: those who choose would do so by different labels ({', '.join(sorted(map(str, names)))}). "
                "Take specimens that have one label in common, which the stage takes first."
            )

    def _people(self, stage: Stage, scan: Scan) -> list[str]:
        """The digest of the label by people that the stage reads, if it reads one."""
        if isinstance(stage, Predict):
            return []
        name = stage.truth if isinstance(stage, Evaluate) else human_label(scan)
        if name is None and isinstance(stage, PseudoLabel):
            return []
        return [scan.label_info(name or "human").digest]

    def _planned(
        self,
        stage: Stage,
        scans: list[Scan],
        judges: list[Scan],
        recipe: Recipe | None,
        donors: dict[str, str],
        identity: list[Any],
    ) -> Planned:
        taken = [self._identity(name) for name in models_of(stage)]
        key = storage.digest_json([stage.kind, *identity, taken])
        answers = [key] if isinstance(stage, Train) else [self._identity(name) for name in answering(stage)]
        answers += [] if not isinstance(stage, Ensemble) or stage.counts_alike else [identity[0]]
        own = isinstance(stage, PseudoLabel)
        return Planned(
            stage=stage,
            key=key,
            output=f"soft-{key[:8]}" if own else f"prediction-{storage.digest_json(answers)[:8]}",
            scans=_sites(scans),
            judges=_sites(judges),
            recipe=recipe,
            donors=donors,
        )


def _voxels(scan: Scan) -> list[str]:
    return [scan.info.digest, *scan.organ_identity]


def _sites(scans: Sequence[Scan]) -> tuple[Site, ...]:
    return tuple(Site(url=s.url, specimen=s.info.specimen, donor=s.info.donor) for s in scans)
