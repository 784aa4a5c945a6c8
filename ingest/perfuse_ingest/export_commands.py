"""The verb `export`."""

from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command()(export)


def export(
    scan_url: Annotated[str, typer.Argument(help="The scan.")],
    out: Annotated[
        str,
        typer.Argument(
            help="FILE.csv, .nii, .nii.gz, .stl, .ply, .png or .gif; FOLDER/, new or empty, for TIFF slices. Paths or URLs."
        ),
    ],
    label: Annotated[str, typer.Option("--labels", help="The label, soft or not.")],
    threshold: Annotated[
        float | None,
        typer.Option(min=0.004, max=1.0, help="Probability; when not given that of the label's model, or 0.5."),
    ] = None,
) -> None:
    """Write a label for others: run lengths, slices, a volume, a mesh in µm, or pictures; the name says which.

    Volumes and meshes lie where a viewer shows the scan: those of a crop, in its source.

    Example: perfuse export scans/kidney3.ome.zarr submission.csv --labels vessels
    Example: perfuse export s3://lab/scans/kidney3.ome.zarr s3://lab/meshes/kidney3.stl --labels vessels
    """
    from perfuse.catalog import Scan
    from perfuse.console import results
    from perfuse.storage import public
    from perfuse_ingest.export import export as write

    url = write(Scan.open(scan_url), label, out, threshold)
    results.print(f"Wrote {public(url)}", soft_wrap=True)
