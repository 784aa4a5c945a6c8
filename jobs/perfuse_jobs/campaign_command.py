"""The verb `campaign`."""

from statistics import mean, stdev
from typing import TYPE_CHECKING, Annotated, Any

import typer

from perfuse.commands.options import Json
from perfuse.console import say
from perfuse.storage import name_of
from perfuse_jobs.session import on_cluster
from perfuse_jobs.workers import ONE, WorkersOption, check_local

if TYPE_CHECKING:
    from perfuse.campaigns import Plan
    from perfuse_jobs.campaign_results import Result


def campaign(
    name: Annotated[str, typer.Argument(help="A built-in campaign, or FILE.yaml.")],
    data: Annotated[str, typer.Option(help="URL of the folder that holds the scans.")],
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="ROLE=SPECIMEN,…; members=NAME,…; recipe=NAME; recipe.KEY=VALUE; STAGE.KEY=VALUE; repeatable."
        ),
    ] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Say what it would take, and do nothing.")] = False,
    smoke: Annotated[bool, typer.Option("--smoke", help="With small networks, crops and steps.")] = False,
    workers: WorkersOption = ONE,
    local: Annotated[bool, typer.Option("--local", help="In this process, without Ray.")] = False,
    as_json: Json = False,
) -> dict[str, Any]:
    """Run rounds of training, pseudo-labels and scores. Interrupted, the same command goes on; done, it does nothing.

    Who plays which part follows from the labels, unless it is said: --set test=kidney_4 --set validation=kidney_2.
    Example: perfuse campaign sennet_3rd --data scans --set test=kidney_4 --set recipe.steps=5000 --workers 2
    """
    from perfuse.campaigns import load_campaign, plan_campaign
    from perfuse.campaigns.leakage import check
    from perfuse.campaigns.networks import check_networks
    from perfuse.finding import find_scans
    from perfuse.registry import donors_of, load_bundle

    check_local(local, workers)
    scans = find_scans(data)
    planned = plan_campaign(
        load_campaign(name, scans, settings or [], smoke=smoke),
        scans,
        data,
        smoke=smoke,
        donors_of=donors_of,
    )
    check(planned)
    check_networks(planned, lambda uri: load_bundle(uri).contract.forward)
    _check_weights(planned, warns=plan or on_cluster())
    if plan:
        return _show_plan(planned, as_json=as_json)
    from perfuse_jobs.campaign import run

    return _show(planned, run(planned, workers=workers, local=local), as_json=as_json)


def _check_weights(plan: "Plan", *, warns: bool) -> None:
    """Look once whether the pretrained weights of all trainings to come are at hand, and say which are to be downloaded.

    warns: says too which cannot come, for another machine may train. Raises CampaignError for these otherwise.
    """
    from perfuse.errors import CampaignError, RecipeError, ServerError
    from perfuse.models import check_at_hand
    from perfuse_jobs.campaign_results import done

    said: dict[str, list[str]] = {}
    for planned in plan.stages:
        if planned.recipe is None or getattr(planned.stage, "init_from", None) or done(planned):
            continue
        try:
            lacking = check_at_hand(planned.recipe.network)
        except (RecipeError, ServerError) as error:
            lacking = str(error)
            if not warns:
                raise CampaignError(f"Stage {planned.stage.name}: {lacking}") from error
        if lacking:
            said.setdefault(lacking, []).append(planned.stage.name)
    for lacking, names in said.items():
        say(f"Stage {', '.join(names)}: {lacking}")


def _show_plan(plan: "Plan", *, as_json: bool) -> dict[str, Any]:
    from rich.filesize import decimal
    from rich.table import Table

    from perfuse.campaigns.cost import costs
    from perfuse.console import print_json, results
    from perfuse.models.operations import SUSTAINED
    from perfuse_jobs.campaign_results import done

    cost = costs(plan)
    stages = [
        {
            "stage": p.stage.name,
            "kind": p.stage.kind,
            "done": done(p) is not None,
            "scans": [site.specimen for site in p.scans],
            "judges": [site.specimen for site in p.judges],
            "donors": sorted(p.donors),
            **cost[p.stage.name].model_dump(),
        }
        for p in plan.stages
    ]
    values = {
        "campaign": plan.name,
        "key": plan.key,
        "gpu_hours": sum(c.gpu_hours for c in cost.values()),
        "sibling_gpu_hours": sum(
            cost[p.stage.name].gpu_hours for p in plan.stages if getattr(p.stage, "scored_by", ())
        ),
        "assumed_flops": SUSTAINED,
        "stages": stages,
    }
    if as_json:
        print_json(values)
        return values
    table = Table(title=f"Campaign {plan.name}")
    for heading in ("stage", "what", "takes", "GPU-hours"):
        table.add_column(heading, justify="right" if heading == "GPU-hours" else "left", no_wrap=heading == "stage")
    for s in stages:
        what = f"{s['kind']} on {', '.join(s['scans'])}"
        what += f", judged by {', '.join(s['judges'])}" if s["judges"] else ""
        what += f"; learnt from {', '.join(s['donors'])}" if s["donors"] else ""
        counted = [f"{s[part]:,} {part}" for part in ("steps", "crops") if s[part]]
        takes = [*counted, f"reads {decimal(s['read_bytes'])}", f"writes {decimal(s['written_bytes'])}"]
        table.add_row(s["stage"], what, "\n".join(takes), "done" if s["done"] else f"{s['gpu_hours']:.2g}")
    results.print(table)
    results.print(
        f"{values['gpu_hours']:.3g} GPU-hours in all, {values['sibling_gpu_hours']:.3g} of them for siblings, if a GPU sustains "
        f"{SUSTAINED / 1e12:.0f} TFLOP/s and no loss converges early",
        soft_wrap=True,
    )
    return values


def _show(plan: "Plan", made: "list[Result]", *, as_json: bool) -> dict[str, Any]:
    from rich.table import Table

    from perfuse.console import print_json, results

    siblings = {result.stage: spread for result in made if (spread := spread_of_siblings(plan, result))}
    values = {
        "campaign": plan.name,
        "key": plan.key,
        "stages": [result.model_dump(mode="json") for result in made],
        "siblings": siblings,
    }
    if as_json:
        print_json(values)
        return values
    table = Table(title=f"Campaign {plan.name}")
    for heading in ("stage", "made", "threshold", "scan", "Dice", "surface dice", ""):
        table.add_column(heading, overflow="fold")
    for result in made:
        what = "\n".join(result.models or sorted({info.name for info in result.labels.values()}))
        threshold = "" if result.threshold is None else f"{result.threshold / 255:.3f}"
        scores = [[_scan(s), f"{s['dice']:.4f}", f"{s['surface_dice']:.4f}", s.get("kind", "")] for s in result.scores]
        for number, row in enumerate(scores or [[""] * 4]):
            table.add_row(*((result.stage, what, threshold) if number == 0 else [""] * 3), *row)
    results.print(table)
    for stage, spread in siblings.items():
        results.print(
            f"{stage} has learnt from everything; its siblings, each on donors that it left out: surface dice "
            f"{_said(spread['surface_dice'])}, Dice {_said(spread['dice'])}, {spread['scores']} scans",
            soft_wrap=True,
        )
    return values


def spread_of_siblings(plan: "Plan", result: "Result") -> dict[str, Any] | None:
    """Mean and standard deviation of the scores that stand for those of a stage which learnt from everything; None of another."""
    stage = next(p.stage for p in plan.stages if p.stage.name == result.stage)
    if not getattr(stage, "siblings", ()) or not result.scores:
        return None
    spread: dict[str, Any] = {"scores": len(result.scores)}
    for name in ("surface_dice", "dice"):
        values = [score[name] for score in result.scores]
        spread[name] = {"mean": mean(values), "sd": stdev(values) if len(values) > 1 else None}
    return spread


def _said(spread: dict[str, float | None]) -> str:
    deviation = "" if spread["sd"] is None else f" ± {spread['sd']:.4f}"
    return f"{spread['mean']:.4f}{deviation}"


def _scan(score: dict[str, Any]) -> str:
    from perfuse.catalog import SUFFIX

    return name_of(score["scan_url"]).removesuffix(SUFFIX)
