"""The verb `hoa ls`."""

from typing import Annotated

import typer

from perfuse.commands.options import Json


def register(app: typer.Typer) -> None:
    """Add the verb."""
    hoa = typer.Typer(help="The Human Organ Atlas.", no_args_is_help=True)
    hoa.command("ls")(ls)
    hoa.callback()(lambda: None)
    app.add_typer(hoa, name="hoa")


def ls(
    organ: Annotated[list[str] | None, typer.Option(help="Only this organ; may be given several times.")] = None,
    as_json: Json = False,
) -> None:
    """List the datasets that can be ingested as hoa:NAME.

    Example: perfuse hoa ls --organ kidney --organ spleen
    """
    from dataclasses import asdict

    from perfuse.console import print_json, results
    from perfuse_ingest.hoa import find

    datasets = find(organ or [])
    if as_json:
        print_json({"datasets": [{**asdict(d), "size_gb": round(d.size_gb, 3)} for d in datasets]})
        return
    rows = [("NAME", "ORGAN", "DONOR", "TYPE", "VOXEL µm", "VOXELS", "GB", "FORMAT")]
    for d in datasets:
        extent = "×".join(map(str, d.extent))
        size = (f"{d.voxel_size_um:g}", extent, f"{d.size_gb:.1f}")
        rows.append((d.name, d.organ, d.donor, d.kind, *size, d.format or "none"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:  # no table of rich: it cuts names to the terminal's width, and a cut name cannot be copied
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        results.print(line.rstrip(), soft_wrap=True, markup=False)
