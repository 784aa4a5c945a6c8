"""The verbs of this room: train, predict, pseudolabel, submit."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from perfuse.commands.options import Json
from perfuse.errors import PerfuseError
from perfuse_jobs.campaign_command import campaign
from perfuse_jobs.model_options import Average, Models, Temperatures, Views, Weights
from perfuse_jobs.sweep_command import sweep
from perfuse_jobs.workers import ONE, Workers, WorkersOption, check_local

if TYPE_CHECKING:
    from perfuse.bundle import Model
    from perfuse.catalog import LabelInfo
    from perfuse.contract import Blend
    from perfuse.inference.estimate import Estimate
    from perfuse.pseudolabels import Cut, Predict
    from perfuse.recipes import Recipe

ScanUrl = Annotated[str, typer.Argument(help="The scan: a path or a URL.")]
Output = Annotated[str, typer.Option(help="Name of the soft label to write; OUTPUT-CLASS of each of several classes.")]
Local = Annotated[bool, typer.Option("--local", help="In this process, without Ray.")]


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    app.command()(train)
    app.command()(predict)
    app.command()(pseudolabel)
    app.command()(sweep)
    app.command()(campaign)
    app.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})(submit)


def train(
    recipe: Annotated[str, typer.Argument(help="A built-in recipe, a YAML file, or module:function.")],
    data: Annotated[str, typer.Option(help="URL of the folder that holds the scans.")],
    name: Annotated[str | None, typer.Option(help="Name in the registry; the recipe's when not given.")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="key=value over the recipe; repeatable.")] = None,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="Small network, crops and steps: minutes on two cores.")
    ] = False,
    init_from: Annotated[
        str | None,
        typer.Option(help="Weights to start from: RUN or RUN@STEP of another training, or models:/NAME/VERSION."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Only go on with a training that was interrupted; begin no new one.")
    ] = False,
    workers: WorkersOption = ONE,
    plan: Annotated[bool, typer.Option("--plan", help="Say what it would take, and do nothing.")] = False,
    local: Local = False,
    as_json: Json = False,
) -> str | None:
    """Train a model and register it as challenger. Interrupted, the same command goes on; done, it does nothing.

    The threshold is chosen on held-out donors. Settings name any key of the recipe: holdout=SPECIMEN, steps=500.
    `perfuse recipe ls` lists recipes, `perfuse recipe show NAME` all keys of one.

    Example: perfuse train quickstart --data scans --name vessels --set steps=500 --workers 2
    Example: perfuse train my.yaml --data s3://bucket/scans --smoke
    Example: perfuse train my.yaml --data scans --init-from 3f9a12c07be4d581@4000 --set learning_rate=1e-4
    """
    from perfuse.console import print_json, results
    from perfuse.recipes import load_recipe
    from perfuse.recipes.checking import check_network
    from perfuse_jobs import train as training

    check_local(local, workers)
    start = [] if init_from is None else [f"init_from={init_from}"]
    loaded = load_recipe(recipe, [*(settings or []), *start], smoke=smoke)
    check_network(loaded)
    if plan:
        _show_training(loaded, data, 0 if local else workers.most, as_json=as_json)
        return None
    uri = training.train(loaded, data, name or loaded.name, workers=workers, local=local, resume=resume)
    if as_json:
        print_json({"model": uri})
    else:
        results.print(uri)
    return uri


def predict(
    scan_url: ScanUrl,
    models: Models,
    output: Output,
    views: Views = None,
    average: Average = None,
    weights: Weights = None,
    temperatures: Temperatures = None,
    roi: Annotated[
        str | None,
        typer.Option(
            help="Only a box, z0:z1,y0:y1,x0:x1 in voxels, or with um at the end in µm, as a viewer shows them."
        ),
    ] = None,
    preview: Annotated[
        int | None, typer.Option(min=1, help="On the voxels of this level of the pyramid: a quick look.")
    ] = None,
    keep_scratch: Annotated[
        bool, typer.Option("--keep-scratch", help="Keep the models' logits beside the scan, as `perfuse sweep` does.")
    ] = False,
    workers: WorkersOption = ONE,
    plan: Annotated[bool, typer.Option("--plan", help="Say what it would take, and do nothing.")] = False,
    local: Local = False,
    as_json: Json = False,
) -> dict[str, Any]:
    """Write a model's soft prediction of a scan as a label. Interrupted, the same command goes on; done, it does nothing.

    Example: perfuse predict scans/kidney3.ome.zarr --model models:/vessels@champion --output vessels
    Example: perfuse predict scans/kidney3.ome.zarr --model models:/a/1 --model models:/b/2 --weight 2 --weight 1 --set turns=all
    Example: perfuse predict scans/kidney3.ome.zarr --model models:/a/1 --output look --roi 200:264,0:512,0:512
    """
    from perfuse.catalog import Scan
    from perfuse.inference.options import box_of, previewed

    scan, model = Scan.open(scan_url), _model(models, views, average, weights, temperatures)
    model = model if preview is None else previewed(model, scan, preview)
    box = None if roi is None else box_of(roi, scan)
    if plan:
        from perfuse_jobs.predict import planned

        check_local(local, workers)
        return _show_plan(planned(scan, model, output, box, workers), workers, as_json=as_json)
    infos = _predict(local, workers)(scan_url, model, output, roi=box, keep_scratch=keep_scratch)
    return _show_labels(scan_url, infos, as_json=as_json)


def pseudolabel(
    scan_url: ScanUrl,
    models: Models,
    output: Output,
    match_coverage: Annotated[
        bool,
        typer.Option("--match-coverage", help="Drop what lies below the threshold that meets the label's coverage."),
    ] = False,
    threshold: Annotated[
        float | None, typer.Option(min=0.004, max=1.0, help="Drop what lies below this probability.")
    ] = None,
    keep_edges: Annotated[
        bool,
        typer.Option("--keep-edges", help="Teach what touches people's marks only as far as a vessel goes on there."),
    ] = False,
    views: Views = None,
    average: Average = None,
    weights: Weights = None,
    temperatures: Temperatures = None,
    workers: WorkersOption = ONE,
    local: Local = False,
    as_json: Json = False,
) -> dict[str, Any]:
    """Write soft pseudo-labels to train on: what a model sees where people have not said, beside what they have.

    Example: perfuse pseudolabel scans/kidney2.ome.zarr --model models:/vessels/1 --output round1 --match-coverage
    """
    from perfuse.pseudolabels import pseudolabel as write

    if match_coverage and threshold is not None:
        raise PerfuseError("A threshold is either stated or matched: leave out --threshold, or --match-coverage.")
    cut: Cut = "coverage" if match_coverage else threshold
    model = _model(models, views, average, weights, temperatures)
    infos = write(scan_url, model, output, _predict(local, workers), cut=cut, keep_edges=keep_edges)
    return _show_labels(scan_url, infos, as_json=as_json)


def submit(
    verb: Annotated[list[str], typer.Argument(help="A verb of perfuse with its arguments, after --.")],
    address: Annotated[
        str | None, typer.Option(help="Jobs API of the cluster; RAY_API_SERVER_ADDRESS or this machine's by default.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Follow the log and end as the job ends.")] = True,
) -> None:
    """Run a verb on a Ray cluster, with this very code: nothing has to be installed there but its dependencies.

    Example: perfuse submit --address http://head:8265 -- train quickstart --data s3://bucket/scans --workers 2
    """
    from perfuse_jobs import submit as submission

    code = submission.submit(verb, address=address, wait=wait)
    if code:
        raise typer.Exit(code)


def _model(
    uris: list[str],
    views: list[str] | None,
    average: "Blend | None",
    weights: list[float] | None,
    temperatures: list[float] | None,
) -> "Model":
    """One model, or several as one, as it is to see the scan."""
    from perfuse.inference.options import fused_otherwise, seen_otherwise
    from perfuse.registry import load_model

    return seen_otherwise(fused_otherwise(load_model(uris), average, weights, temperatures), views or [])


def _predict(local: bool, workers: Workers) -> "Predict":
    from perfuse_jobs.predict import predictor

    check_local(local, workers)
    return predictor(workers, local=local)


def _show_labels(scan_url: str, infos: "tuple[LabelInfo, ...]", *, as_json: bool) -> dict[str, Any]:
    """Of several classes the JSON is of all: {"labels": [one, another]}."""
    from perfuse.console import print_json, results

    each = [info.model_dump(mode="json") for info in infos]
    values = each[0] if len(each) == 1 else {"labels": each}
    if as_json:
        print_json(values)
        return values
    for info in infos:
        by = f", by {info.model.uri} in {info.model.backend}" if info.model else ""
        what = info.model.class_name if info.model and info.model.class_name else "vessel"
        results.print(f"{scan_url}: label {info.name}, {info.foreground:.2%} {what}{by}", soft_wrap=True, markup=False)
    return values


def _show_training(recipe: "Recipe", data: str, workers: int, *, as_json: bool) -> None:
    from rich.filesize import decimal

    from perfuse.console import print_json, results
    from perfuse.models.operations import SUSTAINED
    from perfuse.settings import storage_url
    from perfuse.training import plan_job
    from perfuse.training.planning import plan_training

    plan = plan_training(plan_job(recipe, data, storage_url()), workers)
    if as_json:
        print_json(plan.model_dump())
        return
    lines = [f"train on    {scan}" for scan in plan.train] + [f"select by   {scan}" for scan in plan.validation]
    epochs = "" if plan.epoch_crops is None else f", {plan.crops / plan.epoch_crops:.2g} epochs of {plan.epoch_crops:,}"
    hours = f"{plan.device_hours:.2g} {'GPU-hours' if plan.device == 'cuda' else 'hours'} on {plan.device_name}"
    lines += [
        f"steps       {plan.steps:,}",
        f"crops       {plan.crops:,}{epochs}",
        f"read        {decimal(plan.read_bytes)} in {plan.bricks:,} bricks",
        f"memory      {decimal(plan.feeder_bytes)} of a worker for bricks and batches, at most, besides the network",
        f"time        {hours}: {plan.step_seconds:.3g} s a step, measured just now",
    ]
    if plan.device != "cuda":
        lines += [f"            {plan.gpu_hours:.2g} GPU-hours, if a GPU sustains {SUSTAINED / 1e12:.0f} TFLOP/s"]
    for line in lines:
        results.print(line, soft_wrap=True, markup=False)


def _show_plan(plan: "Estimate", workers: Workers, *, as_json: bool) -> dict[str, Any]:
    from rich.filesize import decimal

    from perfuse.console import print_json, results
    from perfuse_jobs.predict import time_left

    values = plan.model_dump()
    if as_json:
        print_json(values)
        return values
    for name in ("slabs", "tiles", "skipped", "shards", "input_bytes", "scratch_bytes", "output_bytes"):
        shown = decimal(values[name]) if name.endswith("_bytes") else f"{values[name]:,}"
        results.print(f"{name.removesuffix('_bytes'):<10}{shown:>12}")
    lines = [
        f"memory    {decimal(plan.peak_bytes)} of each process besides the network, in slabs of {plan.slab_planes} planes",
        f"time      {time_left(plan, workers)} like this one, now",
        f"backends  {', '.join(plan.backends)}",
        f"numerics  probabilities within {plan.largest_difference:.2g} of float32, {plan.swapped:.3%} of voxels change sides",
    ]
    for line in lines:
        results.print(line, soft_wrap=True, markup=False)
    return values
