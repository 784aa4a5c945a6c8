"""The verbs of labels: labels add, labels ls, ingest-kaggle."""

from typing import Annotated, Any

import typer

from perfuse.commands.options import Json
from perfuse_ingest.commands import Coverage, parse_index

ScanUrl = Annotated[str, typer.Argument(help="The scan.")]


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    labels = typer.Typer(help="Labels of a scan.", no_args_is_help=True)
    labels.command("add")(add)
    labels.command("ls")(ls)
    app.add_typer(labels, name="labels")
    app.command("ingest-kaggle")(ingest_kaggle)


def add(
    scan_url: ScanUrl,
    source: Annotated[
        str,
        typer.Argument(
            help="A mask: folder of TIFF slices, multi-page TIFF, NIfTI, HDF5, Zarr, or a table of run lengths "
            "(FILE.csv, FILE.csv:DATASET)."
        ),
    ],
    name: Annotated[str, typer.Option(help="Name of the label group.")],
    at: Annotated[
        str | None,
        typer.Option(help="Z,Y,X of the first voxel, for labels of a part; slices also find it by their names."),
    ] = None,
    author: Annotated[str | None, typer.Option(help="Who made them; kept with them.")] = None,
    coverage: Coverage = 1.0,
) -> None:
    """Add labels to a scan that is there already, or correct a part of them.

    A part that is given again becomes a new version of the label; all voxels outside it stay as they are.
    Example: perfuse labels add scans/kidney1.ome.zarr masks/ --name human --at 496,0,0
    """
    from perfuse.console import results
    from perfuse_ingest.labels import add_labels

    where = None if at is None else parse_index(at, "--at")
    info = add_labels(scan_url, source, name=name, at_zyx=where, coverage=coverage, author=author)
    results.print(f"{scan_url}: label {info.name}, {info.kind}, {info.foreground:.2%} vessel", soft_wrap=True)


def ls(
    scan_url: ScanUrl,
    as_json: Json = False,
) -> None:
    """List the labels of a scan: where each was given, by whom, and what each version changed.

    Example: perfuse labels ls scans/kidney1.ome.zarr
    """
    from perfuse.catalog import Scan
    from perfuse.console import print_json, results

    scan = Scan.open(scan_url)
    boxes = {name: [_described(box) for box in scan.label_boxes(name)] for name in scan.labels()}
    if as_json:
        print_json({"labels": [{"name": name, "boxes": given} for name, given in boxes.items()]})
        return
    for name, given in boxes.items():
        results.print(f"{name}:", soft_wrap=True)
        for box in given:
            results.print(f"  {_line(box)}", soft_wrap=True, markup=False)


def _described(box: Any) -> dict[str, Any]:
    lineage = box.lineage
    source = lineage.get("source") or lineage.get("model") or lineage.get("made_by")
    return {**box.model_dump(mode="json", exclude={"key", "lineage"}), "source": source, "lineage": lineage}


def _line(box: dict[str, Any]) -> str:
    author, share = (
        f", by {box['author']}" if box["author"] else "",
        f" {box['coverage']:g}" * (box["kind"] == "sparse"),
    )
    where = f"{tuple(box['start'])} to {tuple(box['stop'])}"
    changed = f"{box['added']:,} voxels added, {box['removed']:,} removed"
    return f"version {box['version']}: {box['kind']}{share}, {where}{author}; {changed}; from {box['source']}"


def ingest_kaggle(
    folder: Annotated[str, typer.Argument(help="The competition's folder: train/, train_rles.csv, test/.")],
    root_url: Annotated[str, typer.Argument(help="Where the scans go: one DATASET.ome.zarr each.")],
    name: Annotated[str, typer.Option(help="Name of the label groups.")] = "human",
    plan: Annotated[bool, typer.Option("--plan", help="Say what would be made, and make nothing.")] = False,
) -> None:
    """Ingest all data of the Kaggle competition SenNet + HOA 2023, with labels. Run it again to resume.

    Example: perfuse ingest-kaggle blood-vessel-segmentation/ scans/
    """
    from perfuse.console import results
    from perfuse_ingest import kaggle

    if plan:
        _print_plan(folder, root_url)
        return
    for dataset, info in kaggle.ingest_folder(folder, root_url, name=name).items():
        words = "no labels" if info is None else f"label {info.name}, {info.kind}, {info.foreground:.2%} vessel"
        results.print(f"{dataset}: {words}", soft_wrap=True)


def _print_plan(folder: str, root_url: str) -> None:
    from perfuse.console import results
    from perfuse.errors import PerfuseError
    from perfuse_ingest import kaggle

    failed: dict[str, PerfuseError] = {}
    lines = kaggle.for_each(kaggle.plan(folder, root_url), kaggle.described, failed)
    for line in (*lines.values(), *(f"passed over: {url}" for url in kaggle.strangers(folder))):
        results.print(line, soft_wrap=True)
    kaggle.insist_on_all(lines, failed)
