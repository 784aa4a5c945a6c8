"""The verbs `evaluate` and `tune`."""

import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from perfuse.commands.options import Json, Processes, finite

if TYPE_CHECKING:
    from perfuse.catalog import Scan
    from perfuse.metrics.curve import Curve

Prediction = Annotated[str, typer.Option(help="The soft label that is scored.")]
COLUMN = (64, 64)
Truth = Annotated[str, typer.Option(help="The label that it is scored against.")]


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    app.command()(evaluate)
    app.command()(tune)


def evaluate(
    scan_url: Annotated[str, typer.Argument(help="The scan.")],
    prediction: Prediction,
    truth: Truth,
    threshold: Annotated[
        float | None, typer.Option(min=0.004, max=1.0, help="Probability; the model's own when not given.")
    ] = None,
    tolerance_um: Annotated[
        float | None, typer.Option(min=0, callback=finite, help="Say the surface dice at this tolerance in µm, too.")
    ] = None,
    cldice: Annotated[
        bool, typer.Option("--cldice", help="Say the clDice, of centrelines thinned tile by tile, too.")
    ] = False,
    per_slice: Annotated[
        Path | None, typer.Option(help="Write the counts and scores of each slice into this CSV file.")
    ] = None,
    per_chunk: Annotated[
        Path | None, typer.Option(help="Write the counts and scores of each chunk of 64³ voxels into this CSV file.")
    ] = None,
    heat_map: Annotated[
        Path | None, typer.Option(help="Draw the scores of columns of 64 × 64 voxels along z into this PNG file.")
    ] = None,
    workers: Processes = None,
    as_json: Json = False,
) -> dict[str, Any]:
    """Score a prediction beside a classical baseline. That of a version's own answer, at its threshold, is noted in the registry.

    Example: perfuse evaluate scans/kidney3.ome.zarr --prediction vessels --truth human
    """
    from perfuse import breakdown, scoring
    from perfuse.catalog import Scan
    from perfuse.console import print_json
    from perfuse.contract import threshold_of
    from perfuse.passes import spread_over
    from perfuse.registry import record_evaluation
    from perfuse.storage import check_writable

    check_writable(per_slice, per_chunk, heat_map)
    scan = Scan.open(scan_url)
    if tolerance_um is not None:
        scoring.check_surface(scan, truth)
    whole = None if threshold is None else threshold_of(threshold)
    width = None if heat_map is None and per_chunk is None else COLUMN
    dense = scan.label_info(truth).kind != "sparse"
    with spread_over(workers), breakdown.per_chunk(per_chunk, dense=dense) as each:
        counts = scoring.count(scan, prediction, truth, whole, width, each)
        scores = scoring.score(scan, prediction, truth, counts, whole)
        values = {**asdict(scores), "counts": breakdown.told(counts.voxels, dense=dense)}
        if tolerance_um is not None:
            within = scoring.surface_dice_within(scan, prediction, truth, tolerance_um, whole)
            values["surface_dice_within"] = {"tolerance_um": tolerance_um, "surface_dice": within}
        if cldice:
            values["cldice"] = _cldice(scan, prediction, truth, whole, dense=dense)
    if as_json:
        print_json(values)
    else:
        _print(scores, values)
    if threshold is None:
        record_evaluation(scores, kind="test")
    if per_slice is not None:
        per_slice.write_text(breakdown.per_slice(counts, dense=dense))
    if heat_map is not None:
        heat_map.write_bytes(breakdown.heat_map(counts, _title(scores), dense=dense))
    return values


def _cldice(scan: "Scan", prediction: str, truth: str, threshold: int | None, *, dense: bool) -> dict[str, float]:
    from perfuse.centrelines import OVERLAP, TILE, centrelines

    counts = centrelines(scan, prediction, truth, threshold)
    return {
        "cldice": counts.cldice if dense else math.nan,
        "precision": counts.precision if dense else math.nan,
        "sensitivity": counts.sensitivity,
        "tile_voxels": TILE[0],
        "overlap_voxels": OVERLAP,
    }


def _title(scores: Any) -> str:
    return f"{scores.prediction} against {scores.truth} in {scores.scan}, threshold {scores.threshold:.3f}"


def _print(scores: Any, values: dict[str, Any]) -> None:
    from rich.table import Table

    from perfuse.console import results
    from perfuse.scoring import BETA

    table = Table(title=_title(scores))
    for heading in ("", "Dice", "surface dice", "IoU", "precision", "recall", f"Fβ, β = {BETA}"):
        table.add_column(heading, justify="right" if heading else "left")
    table.add_row(
        scores.model or scores.prediction,
        *(f"{getattr(scores, n):.4f}" for n in ("dice", "surface_dice", "iou", "precision", "recall", "fbeta")),
    )
    table.add_row(
        scores.baseline.method, f"{scores.baseline.dice:.4f}", f"{scores.baseline.surface_dice:.4f}", *[""] * 4
    )
    results.print(table)
    if scores.dice != scores.dice:
        bounds = zip(("Dice", "precision"), (scores.dice_bounds, scores.precision_bounds), strict=True)
        told = ", ".join(f"{name} between {low:.4f} and {high:.4f}" for name, (low, high) in bounds)
        results.print(f"The truth is sparse: {told}, under its stated coverage.")
    counted = (f"{number:,} {name.replace('_', ' ')}" for name, number in values["counts"].items() if number == number)
    results.print(f"Voxels: {', '.join(counted)}")
    if "cldice" in values:
        results.print(
            "clDice {cldice:.4f}: of the predicted centreline {precision:.4f} is right, of the true one {sensitivity:.4f} is found; "
            "thinned in tiles of {tile_voxels}³ voxels with {overlap_voxels} around".format(**values["cldice"])
        )
    if "surface_dice_within" in values:
        within = "within {tolerance_um:g} µm, voxels as large as the scan's: {surface_dice:.4f}"
        results.print("Surface dice " + within.format(**values["surface_dice_within"]))


def tune(
    scan_urls: Annotated[list[str], typer.Argument(help="Scans; their counts are added for the common threshold.")],
    prediction: Prediction,
    truth: Truth,
    plot: Annotated[Path | None, typer.Option(help="Draw the scores over the thresholds into this PNG file.")] = None,
    beta: Annotated[
        float, typer.Option(min=0.01, callback=finite, help="Of Fβ: below 1 precision counts more, above 1 recall.")
    ] = 0.5,
    workers: Processes = None,
    as_json: Json = False,
) -> dict[str, Any]:
    """Show Dice, Fβ and surface dice over all thresholds, and what a scan loses by the common best. `train` chooses by itself.

    Example: perfuse tune scans/kidney2.ome.zarr scans/kidney3.ome.zarr --prediction vessels --truth human --plot tune.png
    """
    from perfuse import scoring
    from perfuse.catalog import Scan
    from perfuse.console import print_json
    from perfuse.metrics import CurveCounts
    from perfuse.passes import spread_over
    from perfuse.plots import over_thresholds
    from perfuse.storage import check_writable

    check_writable(plot)
    scans = [Scan.open(url) for url in scan_urls]
    with spread_over(workers):
        counts = scoring.counts_by_scan(scans, prediction, truth)
    total = sum(counts, CurveCounts())
    curve, fbeta = total.curve(), total.fbeta(beta)
    plateau = curve.plateau
    report: dict[str, Any] = {
        "thresholds": (curve.thresholds / 255).tolist(),
        "dice": curve.dice.tolist(),
        "surface_dice": curve.surface_dice.tolist(),
        "fbeta": {"beta": beta, "scores": fbeta.tolist()},
        "best": _at(curve, curve.best),
        "chosen": _at(curve, curve.chosen),
        "plateau": {"low": plateau.low, "high": plateau.high, "width": plateau.width},
        "mean_surface_dice": curve.mean_surface_dice,
        "scans": [_sharing(scan.info.id, of.curve(), curve.best) for scan, of in zip(scans, counts, strict=True)],
    }
    if as_json:
        print_json(report)
    else:
        _print_tuned(report, curve)
    if plot is not None:
        plot.write_bytes(over_thresholds(curve, " and ".join(scan.info.id for scan in scans)))
    return report


def _print_tuned(report: dict[str, Any], curve: "Curve") -> None:
    from perfuse.console import results

    beta, fbeta = report["fbeta"].values()
    plateau = curve.plateau
    for v in range(13, 256, 22):
        surface = float(curve.surface_dice[v - 1])
        bar = "" if math.isnan(surface) else "█" * round(40 * surface)
        results.print(
            f"{v / 255:.3f}  Dice {curve.dice[v - 1]:.4f}  F{beta:g} {fbeta[v - 1]:.4f}  surface dice {surface:.4f}  {bar}"
        )
    results.print(
        f"best {curve.best / 255:.3f}: surface dice {curve.surface_dice[curve.best - 1]:.4f}, mean over 39 thresholds "
        f"{curve.mean_surface_dice:.4f}; plateau {plateau.low:.3f} to {plateau.high:.3f}; `train` would choose "
        f"{curve.chosen / 255:.3f}, its point nearest to a half"
    )
    for one in report["scans"] if len(report["scans"]) > 1 else ():
        results.print(
            f"{one['scan']}: best {one['best']['threshold']:.3f}, surface dice {one['best']['surface_dice']:.4f}; at the "
            f"common best it loses {one['regret']:.4f}"
        )


def _sharing(scan: str, curve: "Curve", common: int) -> dict[str, Any]:
    """A scan's own best threshold, what it scores at the common one, and the difference in surface dice: its regret."""
    best, shared = _at(curve, curve.best), _at(curve, common)
    return {"scan": scan, "best": best, "shared": shared, "regret": best["surface_dice"] - shared["surface_dice"]}


def _at(curve: "Curve", threshold: int) -> dict[str, float]:
    at = threshold - 1
    return {
        "threshold": threshold / 255,
        "dice": float(curve.dice[at]),
        "surface_dice": float(curve.surface_dice[at]),
    }
