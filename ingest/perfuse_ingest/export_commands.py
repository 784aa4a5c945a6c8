"""The verb `export`."""

from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command()(export)


def export(
    scan_url: Annotated[str, typer.Argument(help="The scan.")],
    out: Annotated[
        str, typer.Argument(help="FILE.csv, .nii, .nii.gz, .stl, .ply, .png or .gif; FOLDER/ for TIFF slices.")
    ],
    label: Annotated[str, typer.Option("--labels", help="The label, soft or not.")],
    threshold: Annotated[
        float | None,
        typer.Option(min=0.004, max=1.0, help="Probability; when not given that of the label's model, or 0.5."),
    ] = None,
) -> None:
    """Write a label for others: run lengths, slices, a volume, a mesh in µm, or pictures; the name says which.

    Example: perfuse export scans/kidney3.ome.zarr submission.csv --labels vessels
    """
    from perfuse.catalog import Scan
    from perfuse.console import results
    from perfuse_ingest.export import export as write

    path = write(Scan.open(scan_url), label, out, threshold)
    results.print(f"Wrote {path}", soft_wrap=True)
