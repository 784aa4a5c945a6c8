"""Refusing campaigns with a network that a later stage could not train."""

from perfuse.campaigns.planning import Plan
from perfuse.catalog import Scan
from perfuse.errors import CampaignError, RecipeError
from perfuse.recipes.checking import check_network, check_pixels, check_planes


def check_networks(plan: Plan) -> None:
    """CampaignError naming the stage whose network cannot be built, or does not take its crops, tiles or scans."""
    for planned in plan.stages:
        recipe = planned.recipe
        if recipe is None:
            continue
        try:
            check_network(recipe)
            for site in planned.scans:
                scan = Scan.open(site.url)
                check_planes(recipe, site.specimen, scan.shape_zyx)
                check_pixels(recipe, site.specimen, scan.info.voxel_size_um)
        except RecipeError as error:
            raise CampaignError(f"Stage {planned.stage.name}: {error}") from error
