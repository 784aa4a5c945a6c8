"""Refusing campaigns with a network that a later stage could not train, or with a scan that its model would not be allowed on."""

from collections.abc import Callable

from perfuse.campaigns.planning import Plan, Planned
from perfuse.campaigns.schema import answering
from perfuse.catalog import Scan
from perfuse.contract import Forward
from perfuse.errors import CampaignError, RecipeError
from perfuse.recipes import Recipe
from perfuse.recipes.checking import check_network, check_pixels, check_planes, pixels

_AMENDS = {
    False: "Allow more by --set recipe.voxel_size_range=…, let the models see scans at an allowed voxel size by "
    "--set recipe.resample_um=…, or leave the scan out.",
    True: "Name another model, ingest the scan at an allowed voxel size, or leave it out.",
}
"""What to do, by whether a model is there already."""


def check_networks(plan: Plan, forward_of: Callable[[str], Forward]) -> None:
    """CampaignError naming the stage whose network cannot be built, or does not take its crops, tiles or scans.

    forward_of: the forward contract of a registered model, by its URI.
    """
    known: dict[str, list[Forward]] = {}
    for planned in plan.stages:
        stage = planned.stage
        if planned.recipe is not None:
            answers, seen, registered = [_trained(planned, planned.recipe)], planned.judges, False
        else:
            named = answering(stage)
            answers = [f for name in named for f in (known[name] if name in known else [forward_of(name)])]
            seen, registered = planned.scans, not known.keys() >= set(named)
        known[stage.name] = answers
        for site in seen:
            scan = Scan.open(site.url)
            for fault in filter(None, (forward.refusal(scan.info.voxel_size_um) for forward in answers)):
                raise CampaignError(f"Stage {stage.name}: scan {scan.info.id} {fault}. {_AMENDS[registered]}")


def _trained(planned: Planned, recipe: Recipe) -> Forward:
    """The forward contract that a training's network will have."""
    try:
        check_network(recipe)
        scans = [Scan.open(site.url) for site in planned.scans]
        for scan in scans:
            check_planes(recipe, scan.info.specimen, scan.shape_zyx)
            check_pixels(recipe, scan.info.specimen, scan.info.voxel_size_um)
    except RecipeError as error:
        raise CampaignError(f"Stage {planned.stage.name}: {error}") from error
    return recipe.forward(recipe.allowed(pixels(recipe, (scan.info.voxel_size_um for scan in scans))))
