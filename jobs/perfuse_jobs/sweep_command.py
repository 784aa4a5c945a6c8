"""The verb sweep."""

from pathlib import Path
from string import ascii_lowercase
from typing import TYPE_CHECKING, Annotated, Any

import typer

from perfuse.commands.options import Json
from perfuse.errors import ContractError
from perfuse_jobs.workers import ONE, WorkersOption, check_local

if TYPE_CHECKING:
    from perfuse.bundle import Model
    from perfuse.sweeping import Row


def sweep(
    scan_urls: Annotated[list[str], typer.Argument(help="Scans; their counts are added.")],
    models: Annotated[list[str], typer.Option("--model", help="models:/NAME@champion, models:/NAME/3 or runs:/…")],
    truth: Annotated[str, typer.Option(help="The dense label that judges.")] = "human",
    resample_um: Annotated[
        list[float] | None,
        typer.Option(help="Also on voxels of this edge, µm; repeatable. The scan's own are always looked at."),
    ] = None,
    views: Annotated[
        list[str] | None, typer.Option("--set", help="key=value over how the models see a scan, as of `predict`.")
    ] = None,
    fit: Annotated[bool, typer.Option("--fit", help="Also with weights fitted to these scans.")] = False,
    class_name: Annotated[str | None, typer.Option("--class", help="Which of several classes.")] = None,
    csv: Annotated[Path | None, typer.Option(help="Write the scores at all thresholds into this file.")] = None,
    workers: WorkersOption = ONE,
    local: Annotated[bool, typer.Option("--local", help="In this process, without Ray.")] = False,
    as_json: Json = False,
) -> list[dict[str, Any]]:
    """Compare combinations of models, voxel sizes and thresholds. No network is asked twice: logits stay beside the scan.

    `perfuse scan clean` removes them. Scores of scans that a model learnt from say nothing of others.

    Example: perfuse sweep scans/kidney3.ome.zarr --model models:/a/1 --model models:/b/2 --resample-um 63 --fit
    """
    from perfuse.catalog import Scan
    from perfuse.console import print_json
    from perfuse.inference.options import seen_otherwise
    from perfuse.registry import load_model
    from perfuse.sweeping import sweep as run
    from perfuse_jobs.predict import runner

    check_local(local, workers)
    model = seen_otherwise(load_model(models), views or [])
    scans = [Scan.open(url) for url in scan_urls]
    sizes = (None, *(resample_um or []))
    number = _class(model, class_name)
    rows = run(scans, model, truth, runner(workers, local=local), resample_um=sizes, fit=fit, class_number=number)
    if csv is not None:
        csv.write_text(_table(rows))
    values = [_described(row) for row in rows]
    if as_json:
        print_json({"rows": values})
    else:
        _print(values, " and ".join(scan.info.id for scan in scans))
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


def _described(row: "Row") -> dict[str, Any]:
    curve, plateau = row.curve, row.curve.plateau
    return {
        "members": list(row.members),
        "weights": list(row.weights),
        "resample_um": row.resample_um,
        "threshold": curve.best / 255,
        "dice": float(curve.dice[curve.best - 1]),
        "surface_dice": float(curve.surface_dice[curve.best - 1]),
        "surface_dice_at_half": float(curve.surface_dice[127]),
        "mean_surface_dice": curve.mean_surface_dice,
        "plateau": [plateau.low, plateau.high],
    }


def _table(rows: "list[Row]") -> str:
    lines = ["members,weights,resample_um,threshold,dice,surface_dice"]
    for row in rows:
        about = f"{' '.join(row.members)},{' '.join(f'{w:.3f}' for w in row.weights)},{row.resample_um or ''}"
        for at, dice, surface in zip(row.curve.thresholds, row.curve.dice, row.curve.surface_dice, strict=True):
            lines.append(f"{about},{at / 255:.4f},{dice:.6f},{surface:.6f}")
    return "\n".join(lines) + "\n"


def _print(values: list[dict[str, Any]], scans: str) -> None:
    from rich.table import Table

    from perfuse.console import results

    table = Table(title=f"Surface dice on {scans}")
    for heading in ("models", "µm", "best at", "surface dice", "at ½", "mean of 39", "within 0.01"):
        table.add_column(heading, justify="left" if heading == "models" else "right", overflow="fold")
    members = list(dict.fromkeys(uri for value in values for uri in value["members"]))
    letters = {uri: ascii_lowercase[n % 26] * (1 + n // 26) for n, uri in enumerate(members)}
    best = max(values, key=lambda value: value["surface_dice"])
    for value in values:
        weights = value["weights"] or [None] * len(value["members"])
        counted = zip(value["members"], weights, strict=True)
        shown = " + ".join(letters[m] if w is None else f"{w:.2f} {letters[m]}" for m, w in counted)
        table.add_row(
            shown,
            f"{value['resample_um']:g}" if value["resample_um"] else "own",
            f"{value['threshold']:.3f}",
            *(f"{value[name]:.4f}" for name in ("surface_dice", "surface_dice_at_half", "mean_surface_dice")),
            "{:.2f}–{:.2f}".format(*value["plateau"]),
            style="bold" if value is best else None,
        )
    results.print(table)
    for uri, letter in letters.items():
        results.print(f"{letter}  {uri}", soft_wrap=True, markup=False)
