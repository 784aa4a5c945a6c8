"""The verbs `postprocess` and `topology`."""

from dataclasses import asdict
from typing import Annotated, Any

import typer

from perfuse.commands.options import Json, Processes, finite

Label = Annotated[str, typer.Option("--labels", help="The label, soft or not.")]
Threshold = Annotated[
    float | None,
    typer.Option(min=0.004, max=1.0, help="Probability; when not given that of the label's model, or 0.5."),
]
ScanUrl = Annotated[str, typer.Argument(help="The scan.")]


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    app.command()(postprocess)
    app.command()(topology)


def postprocess(
    scan_url: ScanUrl,
    label: Label,
    output: Annotated[str, typer.Option(help="Name of the label that is written.")],
    threshold: Threshold = None,
    hysteresis: Annotated[
        str | None,
        typer.Option(metavar="LOW,HIGH", help="Voxels from LOW on that hang together with one from HIGH on."),
    ] = None,
    connectivity: Annotated[
        int, typer.Option(help="6: voxels hang together by faces; 18: by edges too; 26: by corners too.")
    ] = 26,
    min_voxels: Annotated[int, typer.Option(min=1, help="Smaller components go.")] = 1,
    min_um3: Annotated[float | None, typer.Option(min=0, callback=finite, help="The same in µm³.")] = None,
    keep_largest: Annotated[int | None, typer.Option(min=1, help="Only so many components stay.")] = None,
    fill_holes: Annotated[bool, typer.Option("--fill-holes", help="Background inside vessels becomes vessel.")] = False,
    workers: Processes = None,
    as_json: Json = False,
) -> dict[str, Any]:
    """Threshold a label, drop components and fill holes: exactly what the whole volume in memory would give.

    Example: perfuse postprocess scans/kidney3.ome.zarr --labels vessels --output clean --hysteresis 0.2,0.6 --min-voxels 50
    """
    import math

    from perfuse.catalog import Scan
    from perfuse.console import print_json, results
    from perfuse.passes import spread_over
    from perfuse.postprocessing import cleaning_of
    from perfuse.postprocessing import postprocess as clean

    if min_um3 is not None:
        voxel = math.prod(Scan.open(scan_url).info.voxel_size_um)
        min_voxels = max(min_voxels, math.ceil(min_um3 / voxel))
    cleaning = cleaning_of(
        threshold=threshold,
        hysteresis=hysteresis,
        connectivity=connectivity,
        min_voxels=min_voxels,
        keep_largest=keep_largest,
        fill_holes=fill_holes,
    )
    with spread_over(workers):
        info = clean(scan_url, label, output, cleaning)
    values = info.model_dump(mode="json")
    if as_json:
        print_json(values)
    else:
        results.print(f"Wrote label {output}: {info.foreground:.3%} of the voxels are vessel.")
    return values


def topology(
    scan_url: ScanUrl,
    label: Label,
    threshold: Threshold = None,
    listed: Annotated[int, typer.Option("--list", min=0, help="Name so many components, the largest.")] = 10,
    workers: Processes = None,
    as_json: Json = False,
) -> dict[str, Any]:
    """Count components, tunnels and cavities of a label, tell its Euler number, and list its largest components.

    Example: perfuse topology scans/kidney3.ome.zarr --labels clean --json
    """
    from rich.table import Table

    from perfuse.console import print_json, results
    from perfuse.passes import spread_over
    from perfuse.topology import topology as counts

    with spread_over(workers):
        found = asdict(counts(scan_url, label, threshold, listed))
    if as_json:
        print_json(found)
        return found
    table = Table(title=f"{label} in {scan_url}, foreground with 26 neighbours")
    table.add_column("")
    table.add_column("", justify="right")
    numbers = found["euler"], *found["betti"], found["voxels"], found["largest"]
    for heading, number in zip(_HEADINGS, numbers, strict=True):
        table.add_row(heading, f"{number:,}")
    results.print(table)
    for part in found["listed"]:
        z, y, x = part["first_zyx"]
        results.print(f"{part['voxels']:>14,} voxels {part['mm3']:>12.4g} mm³  first voxel {z}, {y}, {x}")
    return found


_HEADINGS = (
    "Euler number",
    "components (b0)",
    "tunnels (b1)",
    "cavities (b2)",
    "voxels",
    "voxels of the largest component",
)
