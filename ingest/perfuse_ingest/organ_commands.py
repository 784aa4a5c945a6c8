"""The verb `mask`."""

from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command()(mask)


def mask(scan_url: Annotated[str, typer.Argument(help="The scan.")]) -> None:
    """Find the organ against jar, agar, air and empty corners, and write it as the label `organ`.

    Percentiles, normalisation, training crops and scores then mean the organ. Ingest does this unless told not to. In doubt
    it keeps more; a person's mask is put in its place by `perfuse labels add SCAN MASK --name organ`.

    Example: perfuse mask scans/kidney1.ome.zarr
    """
    from perfuse.console import results
    from perfuse.upkeep import refresh
    from perfuse_ingest.organ import mask_organ

    info = mask_organ(scan_url)
    refresh(scan_url)
    results.print(f"{scan_url}: {info.foreground:.1%} is organ: {info.lineage['how']}", soft_wrap=True)
