"""The verbs `scan ls`, `scan show`, `scan refresh` and `scan verify`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from perfuse.commands.options import Json

ScanUrl = Annotated[str, typer.Argument(help="The scan: a path or URL ending in .ome.zarr")]


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    scan = typer.Typer(help="Look at scans.", no_args_is_help=True)
    scan.command("ls")(ls)
    scan.command("show")(show)
    scan.command("refresh")(refresh)
    scan.command("clean")(clean)
    scan.command("verify")(verify)
    app.add_typer(scan, name="scan")


def ls(root_url: Annotated[str, typer.Argument(help="Folder of scans.")], as_json: Json = False) -> None:
    """List the scans under a folder.

    Example: perfuse scan ls s3://bucket/scans
    """
    from perfuse.console import print_entry, print_json
    from perfuse.finding import find_scans

    scans = find_scans(root_url)
    if as_json:
        print_json({"scans": [described(s) for s in scans]})
        return
    for scan in scans:
        info = scan.info
        labels = ", ".join(f"{x.name} ({x.kind})" for x in scan.labels().values())
        shape, voxel = " × ".join(map(str, info.shape_zyx)), " × ".join(f"{v:g}" for v in info.voxel_size_um)
        print_entry(
            info.id,
            f"{info.organ}, specimen {info.specimen}, donor {info.donor}",
            f"{shape} voxels (z, y, x) of {voxel} µm",
            f"labels: {labels or 'none'}",
        )


def described(scan: Any) -> dict[str, Any]:
    """What `scan show --json` gives."""
    labels = [
        {
            "name": x.name,
            "kind": x.kind,
            "coverage": x.coverage,
            "foreground": x.foreground,
            "digest": x.digest,
            "box": x.box,
            "boxes": [b.model_dump(mode="json") for b in x.boxes],
            "model": x.model.model_dump() if x.model else None,
            "lineage": x.lineage,
        }
        for x in scan.labels().values()
    ]
    return {
        **scan.info.model_dump(mode="json", exclude={"complete"}),
        "url": scan.url,
        "levels": scan.levels,
        "labels": labels,
    }


def show(
    scan_url: ScanUrl,
    as_json: Json = False,
    picture: Annotated[Path | None, typer.Option(help="Copy the scan's quick-look picture to this PNG file.")] = None,
) -> None:
    """Show what a scan is, its labels, where it comes from, and where its picture lies.

    Example: perfuse scan show scans/kidney1.ome.zarr
    Example: perfuse scan show s3://lab/kidney1.ome.zarr --picture kidney1.png
    """
    from rich.table import Table

    from perfuse.catalog import Scan
    from perfuse.console import print_json, results

    scan = Scan.open(scan_url)
    if picture is not None:
        _copy_picture(scan, picture)
    shown = {**described(scan), **_measures(scan)}
    if as_json:
        print_json(shown)
        return
    table = Table(show_header=False, title=scan.info.id)
    for key, value in shown.items():
        if isinstance(value, dict):
            value = "\n".join(f"{k}: {v:g}" if isinstance(v, float) else f"{k}: {v}" for k, v in value.items())
        elif key == "labels":
            value = "\n".join(_label_line(x) for x in value) or "none"
        table.add_row(key, str(value))
    results.print(table)


def _measures(scan: Any) -> dict[str, Any]:
    """Intensities inside the organ, as `intensity` gives those of the whole scan; and the picture's URL. None: not made."""
    import numpy as np

    from perfuse import intensity, measured, quicklook, storage

    current = measured.is_current(scan.group, scan.organ_identity)
    picture = quicklook.path(scan.url)
    return {
        "organ_intensity": intensity.summary(scan.histogram(), np.dtype(scan.info.dtype)) if current else None,
        "picture": picture if storage.exists(picture) else None,
    }


def _copy_picture(scan: Any, to: Path) -> None:
    from perfuse import quicklook, storage
    from perfuse.errors import ScanError

    storage.check_writable(to)
    try:
        storage.write_bytes(str(to), storage.read_bytes(quicklook.path(scan.url)))
    except FileNotFoundError:
        raise ScanError(f"{scan.url} has no picture yet. Make it: perfuse scan refresh {scan.url}") from None


def refresh(scan_url: ScanUrl) -> None:
    """Bring up to date what follows from voxels and labels: statistics inside the organ, and the quick-look picture.

    Example: perfuse scan refresh scans/kidney1.ome.zarr
    """
    from perfuse.console import results
    from perfuse.upkeep import refresh as run

    results.print(f"picture: {run(scan_url)}", soft_wrap=True)


def clean(scan_url: ScanUrl) -> int:
    """Remove the logits that `sweep` and `predict --keep-scratch` left beside a scan; answers how many bytes that frees.

    Example: perfuse scan clean scans/kidney3.ome.zarr
    """
    from rich.filesize import decimal

    from perfuse import storage
    from perfuse.catalog import Scan
    from perfuse.console import results
    from perfuse.inference.members import SCRATCH
    from perfuse.label_updates import STAGED
    from perfuse.locks import writing

    scan = Scan.open(scan_url)
    size = 0
    for name in storage.folders(storage.join(scan.url, SCRATCH)):
        if name.startswith(STAGED):
            continue
        with writing(scan.url, name):
            kept = storage.join(scan.url, SCRATCH, name)
            size += storage.size_of(kept)
            storage.remove_tree(kept)
    results.print(f"{scan.url}: {decimal(size)} of logits removed")
    return size


def _label_line(label: dict[str, Any]) -> str:
    from perfuse.catalog import ORGAN

    what = "organ" if label["name"] == ORGAN else "vessel"
    line = f"{label['name']}: {label['kind']}, {label['foreground']:.2%} of the scan is {what}"
    if label["coverage"] < 1:
        line += f", coverage {label['coverage']:g}"
    if len(label["boxes"]) > 1:
        line += f", given in {len(label['boxes'])} boxes (perfuse labels ls)"
    return f"{line}, given from {label['box'][0]} to {label['box'][1]}" if label["box"] else line


def verify(
    scan_url: ScanUrl,
    source: Annotated[
        str | None, typer.Option(help="Where the slices are now; compared with those that the scan was made from.")
    ] = None,
    with_source: Annotated[
        bool, typer.Option("--with-source", help="Compare with the slices where they were when the scan was made.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Read every stored shard again, compare it with the digest that was noted when it was written, and check the metadata.

    Example: perfuse scan verify scans/kidney1.ome.zarr --source slices/kidney1
    """
    from perfuse.console import print_json, results
    from perfuse.errors import ScanError
    from perfuse.verify import verify as check

    report = check(scan_url, source=source, with_source=with_source)
    if as_json:
        print_json({"checked": report.checked, "faults": report.faults})
    if report.faults:
        more = f"; and {len(report.faults) - 10} more" if len(report.faults) > 10 else ""
        raise ScanError(
            f"{scan_url}: {len(report.faults)} faults among {report.checked} shards, metadata and slices: "
            f"{'; '.join(report.faults[:10])}{more}. Write the image again from its slices by the same `perfuse ingest … "
            "--repair`, a label by adding it again under its name; or restore the files from a copy."
        )
    if not as_json:
        results.print(f"{scan_url}: all {report.checked} shards are as they were written", soft_wrap=True)
