"""Refusing campaigns with a network that a later stage could not train, or with a scan that its model would not be allowed on."""

from perfuse.campaigns.planning import Plan, Planned
from perfuse.campaigns.schema import answering
from perfuse.catalog import Scan
from perfuse.contract import Forward
from perfuse.errors import CampaignError, RecipeError
from perfuse.recipes import Recipe
from perfuse.recipes.checking import check_network, check_pixels, check_planes, pixels


def check_networks(plan: Plan) -> None:
    """CampaignError naming the stage whose network cannot be built, or does not take its crops, tiles or scans.

    Models from elsewhere are not looked at: their contracts are checked when they answer.
    """
    trained: dict[str, list[Forward]] = {}
    for planned in plan.stages:
        stage = planned.stage
        if planned.recipe is not None:
            trained[stage.name], seen = [_trained(planned, planned.recipe)], planned.judges
        else:
            trained[stage.name], seen = [f for name in answering(stage) for f in trained.get(name, [])], planned.scans
        for site in seen:
            scan = Scan.open(site.url)
            for forward in trained[stage.name]:
                if fault := forward.refusal(scan.info.voxel_size_um):
                    raise CampaignError(
                        f"Stage {stage.name}: scan {scan.info.id} {fault}. Allow more by --set recipe.voxel_size_range=…, let "
                        "the models see scans at an allowed voxel size by --set recipe.resample_um=…, or leave the scan out."
                    )


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
