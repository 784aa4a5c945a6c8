"""What a campaign is made of: parts that specimens play, and stages that take the models and labels of earlier ones."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from perfuse.contract import Blend, Finite
from perfuse.labels import check_name
from perfuse.recipes.keys import keys, unknown_key


def _name(name: str) -> str:
    check_name(name)
    return name


Name = Annotated[str, AfterValidator(_name)]
"""Of what is written in a file; models are called by it, and what holds a slash is a model's URI."""
Names = tuple[str, ...]
Some = Annotated[Names, Field(min_length=1)]


class Written(Finite):
    """What people write in a file; of a key that is not known it says which there are."""

    @model_validator(mode="before")
    @classmethod
    def _known(cls, values: Any) -> Any:
        for key in map(str, values if isinstance(values, dict) else ()):
            if key not in cls.model_fields:
                of_recipe = "settings" in cls.model_fields and key in keys()
                hint = f" A recipe's keys are changed by settings: [{key}=…]" if of_recipe else ""
                raise ValueError(unknown_key(key, list(cls.model_fields)) + hint)
        return values


class Roles(Written):
    """Which specimens, or single scans of them by id, play which part; within a part in the order of the rounds."""

    dense: Names = ()
    """Learnt from at first: their labels state background too, everywhere or in a box."""
    sparse: Names = ()
    """Labels that declare a coverage below 1."""
    unlabelled: Names = ()
    validation: Names = ()
    """Choose checkpoints and thresholds."""
    test: Names = ()
    """Nothing learns from their donors, and nothing is chosen by them."""


class Train(Written):
    """Train a model."""

    kind: Literal["train"] = "train"
    name: Name
    recipe: str | None = None
    """In place of the campaign's."""
    settings: Names = ()
    """key=value over the recipe, after the campaign's."""
    scans: Some
    """Roles or specimens to learn from."""
    labels: Some = ("human",)
    """Stages that wrote labels, or names of labels, in order of preference: each scan takes the first that was
    written of it, by such a stage or before the campaign."""
    validation: Names = ("validation",)
    """Roles or specimens that choose checkpoint and threshold. Empty: none does, the training stops when its loss has converged
    (`Recipe.converged`), the last weights are kept, and `threshold_from` names where the threshold is from."""
    init_from: str | None = None
    """A stage or a model's URI whose weights it starts from."""
    threshold_from: str | None = None
    """An earlier stage that chose a threshold."""
    siblings: Names | Literal["each"] = ()
    """Whose scores stand for its own: earlier trainings of the same recipe, each of which left out donors that this one learns
    from. each: they are made, one for each donor whom people labelled densely (`perfuse.campaigns.siblings`)."""
    scored_by: Names = ()
    """Roles or specimens, densely labelled, that score it and choose nothing: it is a sibling."""

    @model_validator(mode="after")
    def _selected_or_inherited(self) -> "Train":
        if self.validation and (self.threshold_from or self.siblings or self.scored_by):
            raise ValueError("threshold_from, siblings and scored_by are for a stage without validation")
        if not self.validation and not (self.threshold_from and (self.siblings or self.scored_by)):
            raise ValueError("a stage without validation needs threshold_from and siblings")
        return self


class Ensemble(Written):
    """Choose the threshold of one model anew (tune), or of several as one, by their mean (ensemble)."""

    kind: Literal["tune", "ensemble"]
    name: Name
    models: Some
    """Stages or URIs of models."""
    scans: Names = ("validation",)
    """Roles or specimens, densely labelled, that choose the threshold. Empty: none does, for the members learnt from everything."""
    threshold_from: str | None = None
    """An earlier stage that chose a threshold, where no donor does."""
    siblings: Names = ()
    """Earlier ensembles, member by member siblings of this one's, whose scores stand for its own."""
    average: Blend | None = Field(None, exclude_if=lambda value: value is None)
    """What is averaged; None: what the models blend in, if it is one for all, else logits."""
    weights: tuple[Annotated[float, Field(ge=0)], ...] = Field((), exclude_if=lambda value: not value)
    """How much each model counts; empty: alike."""
    temperatures: tuple[Annotated[float, Field(gt=0)], ...] = Field((), exclude_if=lambda value: not value)
    """By what each model's logits are divided, where logits are averaged; empty: 1."""

    @property
    def counts_alike(self) -> bool:
        """True when nothing is said of how the models are averaged."""
        return self.average is None and not self.weights and not self.temperatures

    @model_validator(mode="after")
    def _count(self) -> "Ensemble":
        if (len(self.models) == 1) != (self.kind == "tune"):
            raise ValueError(f"tune takes one model, ensemble two or more; {self.kind} got {len(self.models)}")
        if self.kind == "tune" and not self.counts_alike:
            raise ValueError("average, weights and temperatures are for an ensemble; tune takes one model")
        for what, values in (("weights", self.weights), ("temperatures", self.temperatures)):
            if values and len(values) != len(self.models):
                raise ValueError(f"{len(values)} {what} for {len(self.models)} models: give one for each")
        if self.weights and not any(self.weights):
            raise ValueError("weights: at least one must be above 0")
        inherits = self.kind == "ensemble" and self.threshold_from is not None and self.siblings != ()
        if not self.scans and not inherits:
            raise ValueError("without scans an ensemble needs threshold_from and siblings, and tune chooses nothing")
        if self.scans and (self.threshold_from or self.siblings):
            raise ValueError("threshold_from and siblings are for an ensemble without scans")
        return self


class Predict(Written):
    """Write a model's soft prediction of scans."""

    kind: Literal["predict"] = "predict"
    name: Name
    model: str
    scans: Some


class PseudoLabel(Written):
    """Write soft labels to train on: a model's answer where people have not said."""

    kind: Literal["pseudolabel"] = "pseudolabel"
    name: Name
    model: str
    scans: Some
    cut: Annotated[float, Field(gt=0, le=1)] | Literal["coverage"] | None = None
    """Below which probability nothing is taught: as stated, as matches the scan's declared coverage, or None: nowhere."""
    keep_edges: bool = False
    """What touches people's marks is taught only as far as a vessel goes on there."""


class Evaluate(Written):
    """Score a model at its own threshold."""

    kind: Literal["evaluate"] = "evaluate"
    name: Name
    model: str
    scans: Names = ("test",)
    truth: str = "human"


Stage = Annotated[Train | Ensemble | Predict | PseudoLabel | Evaluate, Field(discriminator="kind")]
MODELS, LABELS = ("train", "tune", "ensemble"), ("predict", "pseudolabel")
"""Kinds of stages that others take models from, and labels."""


class Campaign(Written):
    """Stages over the scans of a folder."""

    name: Name
    recipe: str
    """Of all trainings that name none."""
    settings: Names = ()
    """key=value over the recipe of every training."""
    roles: Roles = Roles()
    stages: tuple[Stage, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _in_order(self) -> "Campaign":
        kinds: dict[str, str] = {}
        several: set[str] = set()
        weighed: set[str] = set()
        for stage in self.stages:
            if stage.name in kinds:
                raise ValueError(f"two stages are called {stage.name!r}")
            for name in models_of(stage):
                if "/" not in name and kinds.get(name) not in MODELS:
                    there = ", ".join(n for n, kind in kinds.items() if kind in MODELS) or "none"
                    raise ValueError(f"stage {stage.name!r} takes a model from {name!r}; before it there are: {there}")
            if isinstance(stage, Train) and stage.init_from in several:
                raise ValueError(
                    f"stage {stage.name!r} cannot start from {stage.init_from!r}: an ensemble has several weights"
                )
            if isinstance(stage, Ensemble):
                inner = several.intersection(stage.models)
                alike = stage.counts_alike and not weighed.intersection(inner)
                if stage.kind == "ensemble" and inner and not alike:
                    raise ValueError(
                        f"stage {stage.name!r} averages members of {min(inner)!r} otherwise than one of them says"
                    )
                several |= {stage.name} if inner or stage.kind == "ensemble" else set()
                weighed |= set() if alike else {stage.name}
            kinds[stage.name] = stage.kind
        return self


def models_of(stage: Stage) -> Names:
    """The stages or URIs whose models a stage takes: to answer, to start from, or for their threshold and scores."""
    if not isinstance(stage, (Train, Ensemble)):
        return (stage.model,)
    used = (stage.init_from,) if isinstance(stage, Train) else stage.models
    named = () if stage.siblings == "each" else stage.siblings
    return tuple(filter(None, (*used, stage.threshold_from, *named)))


def answering(stage: Stage) -> Names:
    """The stages or URIs whose models answer in a stage; of a training none do."""
    if isinstance(stage, Train):
        return ()
    return stage.models if isinstance(stage, Ensemble) else (stage.model,)
