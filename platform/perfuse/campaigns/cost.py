"""What a campaign will take, from shapes and networks alone."""

from collections.abc import Sequence
from statistics import fmean

from perfuse.campaigns.planning import Plan, Planned, Site
from perfuse.campaigns.schema import Train, answering
from perfuse.catalog import Scan
from perfuse.contract import Frozen
from perfuse.inference.planning import plan as plan_prediction
from perfuse.models.operations import LEARNING, gpu_hours, operations
from perfuse.recipes import Recipe


class Cost(Frozen):
    """Of one stage."""

    steps: int = 0
    """At most, where a training stops when its loss has converged."""
    crops: int = 0
    read_bytes: int = 0
    """Voxels that are cut or predicted, as they are stored, uncompressed."""
    written_bytes: int = 0
    """Logits and labels at their largest; checkpoints are not counted."""
    gpu_hours: float = 0.0


def costs(plan: Plan) -> dict[str, Cost]:
    """Each stage's cost, by its name; what is done already is counted too. GPU-hours are `gpu_hours`."""
    found: dict[str, Cost] = {}
    recipes: dict[str, list[Recipe]] = {}
    for planned in plan.stages:
        stage = planned.stage
        if isinstance(stage, Train) and planned.recipe is not None:
            found[stage.name], recipes[stage.name] = _training(planned, planned.recipe), [planned.recipe]
            continue
        recipes[stage.name] = [recipe for name in answering(stage) for recipe in recipes.get(name, [])]
        found[stage.name] = _answering(planned.scans, recipes[stage.name])
    return found


def _training(planned: Planned, recipe: Recipe) -> Cost:
    crops = recipe.steps * recipe.batch * recipe.accumulate
    itemsize = max(Scan.open(site.url).image.dtype.itemsize for site in planned.scans)
    work = LEARNING * crops * operations(recipe.network, recipe.crop)
    judging = _answering(planned.judges, [recipe])
    return Cost(
        steps=recipe.steps,
        crops=crops,
        read_bytes=crops * recipe.network.planes * recipe.crop**2 * itemsize + judging.read_bytes,
        written_bytes=judging.written_bytes,
        gpu_hours=gpu_hours(work) + judging.gpu_hours,
    )


def _answering(sites: Sequence[Site], members: list[Recipe]) -> Cost:
    """Of predicting scans; a model that is no training of this campaign counts for nothing."""
    total = Cost()
    for site in sites:
        scan = Scan.open(site.url)
        for recipe in members:
            forward = recipe.forward((min(scan.info.voxel_size_um), max(scan.info.voxel_size_um)))
            work = plan_prediction(scan, forward)
            each = fmean(operations(forward.network, round(forward.tile * scale)) for scale in forward.scales)
            total = Cost(
                read_bytes=total.read_bytes + work.input_bytes,
                written_bytes=total.written_bytes + work.scratch_bytes + work.output_bytes,
                gpu_hours=total.gpu_hours + gpu_hours(work.tiles * each),
            )
    return total
