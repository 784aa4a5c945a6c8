"""The verb sweep."""

import csv
import io
import shlex
from pathlib import Path
from string import ascii_lowercase
from typing import TYPE_CHECKING, Annotated, Any

import typer

from perfuse.commands.options import Json
from perfuse.errors import ContractError
from perfuse_jobs.model_options import Average, Temperatures
from perfuse_jobs.workers import ONE, Workers, WorkersOption, check_local

if TYPE_CHECKING:
    from perfuse.bundle import Model
    from perfuse.catalog import Scan
    from perfuse.sweeping import Row, Seer, Sweep


def sweep(
    scan_urls: Annotated[list[str], typer.Argument(help="Scans; their counts are added.")],
    models: Annotated[list[str], typer.Option("--model", help="models:/NAME@champion, models:/NAME/3 or runs:/…")],
    truth: Annotated[str, typer.Option(help="The dense label that judges.")] = "human",
    resample_um: Annotated[
        list[float] | None,
        typer.Option(help="Also on voxels of this edge, µm; repeatable. The scan's own are always looked at."),
    ] = None,
    scales: Annotated[
        list[float] | None,
        typer.Option("--scale", help="Also with tiles seen this many times as large; repeatable."),
    ] = None,
    views: Annotated[
        list[str] | None, typer.Option("--set", help="key=value over how the models see a scan, as of `predict`.")
    ] = None,
    average: Average = None,
    temperatures: Temperatures = None,
    fit: Annotated[bool, typer.Option("--fit", help="Also with weights fitted to these scans.")] = False,
    class_name: Annotated[str | None, typer.Option("--class", help="Which of several classes.")] = None,
    table: Annotated[
        Path | None, typer.Option("--csv", help="Write the scores at all thresholds into this file.")
    ] = None,
    workers: WorkersOption = ONE,
    plan: Annotated[bool, typer.Option("--plan", help="Say what it would take, and do nothing.")] = False,
    local: Annotated[bool, typer.Option("--local", help="In this process, without Ray.")] = False,
    as_json: Json = False,
) -> dict[str, Any]:
    """Compare combinations of models, resolutions and thresholds. No network is asked twice: logits stay beside the scan.

    `perfuse scan clean` removes them. What answers best is told as options of `predict`; in the JSON each combination is.
    Scores of scans that a model learnt from say nothing of others.

    Example: perfuse sweep scans/kidney3.ome.zarr --model models:/a/1 --model models:/b/2 --resample-um 63 --scale 0.75 --fit
    """
    from perfuse.catalog import Scan
    from perfuse.console import print_json
    from perfuse.registry import load_model
    from perfuse.storage import check_writable
    from perfuse.sweeping import Sweep
    from perfuse.sweeping import sweep as run
    from perfuse_jobs.predict import runner

    check_local(local, workers)
    check_writable(table)
    model = load_model(models)
    coarser = [(f"resample_um={um}",) for um in resample_um or []]
    larger = [(f"scales={scale}",) for scale in scales or []]
    wanted = Sweep(model, tuple(views or ()), ((), *coarser, *larger), average, tuple(temperatures or ()), fit)
    scans = [Scan.open(url) for url in scan_urls]
    if plan:
        return _show_plan(scans, wanted, workers, as_json=as_json)
    rows = run(scans, wanted, truth, runner(workers, local=local), _class(model, class_name))
    values = {"rows": [_described(row) for row in rows]}
    if as_json:
        print_json(values)
    else:
        _print(rows, wanted.seers, " and ".join(scan.info.id for scan in scans))
    if table is not None:
        table.write_text(_table(rows))
    return values


def _class(model: "Model", name: str | None) -> int:
    names = model.class_names
    if name is None and len(names) == 1:
        return 0
    if name not in names:
        raise ContractError(
            f"--class {name}: the models tell {', '.join(names) or 'one class'} apart. Name one of these."
        )
    return names.index(name)


def _show_plan(scans: "list[Scan]", wanted: "Sweep", workers: Workers, *, as_json: bool) -> dict[str, Any]:
    from rich.filesize import decimal

    from perfuse.console import print_json, results
    from perfuse.sweeping import OUTPUT, free_bytes
    from perfuse_jobs.predict import planned, time_left

    plans = [planned(scan, wanted.ensemble, OUTPUT, None, workers) for scan in scans]
    free = [free_bytes(scan.url) for scan in scans]
    each = [
        {"scan": scan.url, **plan.model_dump(), "free_bytes": room}
        for scan, plan, room in zip(scans, plans, free, strict=True)
    ]
    values = {"combinations": len(wanted.choices) + len(wanted.to_fit), "seers": len(wanted.seers), "scans": each}
    if as_json:
        print_json(values)
        return values
    results.print(f"{values['combinations']} combinations of {values['seers']}: each model in each resolution")
    for scan, plan, room in zip(scans, plans, free, strict=True):
        of = "" if room is None else f" of {decimal(room)} that are free"
        line = f"{scan.url}: {decimal(plan.scratch_bytes)} of logits{of}; networks {time_left(plan, workers)}"
        results.print(line, soft_wrap=True, markup=False)
    return values


def _described(row: "Row") -> dict[str, Any]:
    curve, plateau = row.curve, row.curve.plateau
    return {
        "members": [seer.bundle.uri for seer in row.seers],
        "settings": [list(seer.settings) for seer in row.seers],
        "weights": list(row.weights),
        "predict": shlex.join(row.arguments),
        "threshold": curve.best / 255,
        "dice": float(curve.dice[curve.best - 1]),
        "surface_dice": float(curve.surface_dice[curve.best - 1]),
        "surface_dice_at_half": float(curve.surface_dice[127]),
        "mean_surface_dice": curve.mean_surface_dice,
        "plateau": [plateau.low, plateau.high],
    }


def _table(rows: "list[Row]") -> str:
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(["predict", "members", "weights", "threshold", "dice", "surface_dice"])
    for row in rows:
        members = " + ".join(" ".join([seer.bundle.uri, *seer.settings]) for seer in row.seers)
        about = [shlex.join(row.arguments), members, " ".join(f"{weight:g}" for weight in row.weights)]
        for at, dice, surface in zip(row.curve.thresholds, row.curve.dice, row.curve.surface_dice, strict=True):
            lines.writerow([*about, f"{at / 255:.4f}", f"{dice:.6f}", f"{surface:.6f}"])
    return text.getvalue()


def _print(rows: "list[Row]", seers: "list[Seer]", scans: str) -> None:
    from rich.table import Table

    from perfuse.console import results

    shown = Table(title=f"Surface dice on {scans}")
    for heading in ("models", "best at", "surface dice", "at ½", "mean of 39", "within 0.01"):
        shown.add_column(heading, justify="left" if heading == "models" else "right", overflow="fold")
    letters = {id(seer): ascii_lowercase[n % 26] * (1 + n // 26) for n, seer in enumerate(seers)}
    values = [_described(row) for row in rows]
    best = max(range(len(rows)), key=lambda n: values[n]["surface_dice"])
    for number, (row, value) in enumerate(zip(rows, values, strict=True)):
        weights = row.weights or [None] * len(row.seers)
        counted = zip(row.seers, weights, strict=True)
        shown.add_row(
            " + ".join(letters[id(s)] if w is None else f"{w:.3f} {letters[id(s)]}" for s, w in counted),
            f"{value['threshold']:.3f}",
            *(f"{value[name]:.4f}" for name in ("surface_dice", "surface_dice_at_half", "mean_surface_dice")),
            "{:.2f}–{:.2f}".format(*value["plateau"]),
            style="bold" if number == best else None,
        )
    results.print(shown)
    for seer in seers:
        line = " ".join([letters[id(seer)], "", seer.bundle.uri, *seer.settings])
        results.print(line, soft_wrap=True, markup=False)
    results.print(
        f"The best: perfuse predict SCAN --output NAME {values[best]['predict']}", soft_wrap=True, markup=False
    )
