"""Campaigns by name or from a YAML file, with settings over them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from perfuse import storage
from perfuse.campaigns.built_in import CAMPAIGNS
from perfuse.campaigns.roles import choose
from perfuse.campaigns.schema import Campaign, Roles, Stage, Train
from perfuse.catalog import Scan
from perfuse.contract import Frozen
from perfuse.errors import CampaignError
from perfuse.recipes.loading import FILES
from perfuse.written import read_mapping

PARTS = tuple(Roles.model_fields)
MEMBERS = "members"
Kind = TypeVar("Kind", bound=Frozen)


def load_campaign(name: str, scans: Sequence[Scan], settings: Sequence[str] = (), *, smoke: bool = False) -> Campaign:
    """A built-in campaign, or that of a YAML file, relative to which its recipes' files lie, for these scans.

    Settings are key=value: a role and its specimens (validation=kidney_2), `members` of a built-in one, `recipe` for every
    training, `recipe.KEY` for a key of every training's recipe, or `STAGE.KEY` for one training's. smoke: a built-in one has
    only those members that differ as small networks, unless they are named. Raises CampaignError that lists what there is.
    """
    values = _from_file(name) if name.lower().endswith(FILES) else None
    if values is None and name not in CAMPAIGNS:
        raise CampaignError(
            f"Unknown campaign {name!r}. Built in: {', '.join(CAMPAIGNS)}. A file's name ends in .yaml."
        )
    split = [_split(setting) for setting in settings]
    stated = {key: _several(value) for key, value in split if key in PARTS}
    members = next((_several(value) for key, value in reversed(split) if key == MEMBERS), None)
    written = (values or {}).get("roles") or {}
    if not isinstance(written, dict):
        raise CampaignError(
            f"Campaign {name}: roles = {written!r} does not say who plays which part: roles: {{test: [SPECIMEN, …]}}. Parts: "
            f"{', '.join(PARTS)}."
        )
    roles = choose(scans, _validated(Roles, f"{name}, roles", {**written, **stated}))
    if values is None:
        campaign = _built_in(name, roles, members, smoke=smoke)
    elif members is not None:
        raise CampaignError(f"--set {MEMBERS} is for built-in campaigns; {name} lists its trainings itself.")
    else:
        campaign = _beside(name, _validated(Campaign, name, {**values, "roles": roles}))
    for key, value in split:
        if key not in (*PARTS, MEMBERS):
            campaign = _changed(campaign, key, value)
    return campaign


def _built_in(name: str, roles: Roles, members: list[str] | None, *, smoke: bool) -> Campaign:
    made = CAMPAIGNS[name]
    chosen = dict.fromkeys((made.small if smoke else made.members) if members is None else members)
    if not chosen or not set(chosen) <= set(made.members):
        raise CampaignError(
            f"{MEMBERS}={','.join(chosen)}: {name} has {', '.join(made.members)}; the first named leads."
        )
    return made.make(roles, tuple(chosen))


def _several(value: str) -> list[str]:
    return [v.strip() for v in value.split(",") if v.strip()]


def _from_file(name: str) -> dict[str, Any]:
    try:
        values = read_mapping(name)
    except (OSError, ValueError) as error:
        raise CampaignError(
            f"{name} is no readable campaign: {error}. It says name, recipe, roles and stages; see docs/training.md."
        ) from error
    return {"name": Path(name).stem, **values}


def _beside(name: str, campaign: Campaign) -> Campaign:
    """A file's campaign, whose recipes' files lie relative to it."""

    def of(part: Kind) -> Kind:
        recipe = getattr(part, "recipe", None)
        if recipe is None or not recipe.lower().endswith(FILES):
            return part
        return part.model_copy(update={"recipe": storage.beside(name, recipe)})

    return of(campaign).model_copy(update={"stages": tuple(of(stage) for stage in campaign.stages)})


def _split(setting: str) -> tuple[str, str]:
    key, equals, value = setting.partition("=")
    if not equals:
        raise CampaignError(f"--set takes key=value, e.g. test=kidney_4 or recipe.steps=500; got {setting!r}.")
    return key.strip(), value.strip()


def _changed(campaign: Campaign, key: str, value: str) -> Campaign:
    first, _, rest = key.partition(".")
    if first == "recipe" and rest:
        return campaign.model_copy(update={"settings": (*campaign.settings, f"{rest}={value}")})
    trainings = [stage.name for stage in campaign.stages if isinstance(stage, Train)]
    if key != "recipe" and (not rest or first not in trainings):
        raise CampaignError(
            f"--set {key}: there are the roles {', '.join(PARTS)}; members; recipe; recipe.KEY; and of one training STAGE.KEY, with "
            f"STAGE one of {', '.join(trainings)}."
        )

    def changed(stage: Stage) -> Stage:
        if not isinstance(stage, Train) or (rest and stage.name != first):
            return stage
        update = {"settings": (*stage.settings, f"{rest}={value}")} if rest else {"recipe": value}
        return stage.model_copy(update=update)

    return campaign.model_copy(update={"stages": tuple(changed(stage) for stage in campaign.stages)})


def _validated(kind: type[Kind], name: str, values: dict[str, Any]) -> Kind:
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        said = first["msg"].removeprefix("Value error, ").rstrip(".")
        raise CampaignError(f"Campaign {name}: {place}{': ' if place else ''}{said}.") from error
