"""The verbs of the ingest room: phantom, ingest; those of labels are beside."""

from typing import Annotated

import typer

from perfuse.errors import SourceError
from perfuse.geometry import Index3, Spacing, index3


def parse_voxel_size(text: str) -> Spacing:
    """`V` or `Z,Y,X`, in µm."""
    try:
        values = [float(v) for v in text.split(",")]
    except ValueError:
        values = []
    if len(values) not in (1, 3) or not all(0 < v < 1e6 for v in values):
        raise SourceError(f"A voxel size is one number or Z,Y,X, in µm and above 0; got {text!r}.")
    z, y, x = values * 3 if len(values) == 1 else values
    return z, y, x


def parse_index(text: str, what: str) -> Index3:
    """`Z,Y,X` as three integers."""
    try:
        index = index3([int(v) for v in text.split(",")])
    except ValueError as error:
        raise SourceError(f"{what} is three integers Z,Y,X; got {text!r}.") from error
    if min(index) < 0:
        raise SourceError(f"{what} is three integers Z,Y,X, none negative; got {text!r}.")
    return index


VoxelSize = Annotated[str, typer.Option(help="Voxel size in µm: one number, or Z,Y,X.")]
Coverage = Annotated[float, typer.Option(min=0.01, max=1.0, help="Share of the vessels that the labels mark.")]


def register(app: typer.Typer) -> None:
    """Add the room's verbs."""
    from perfuse_ingest.label_commands import register as register_labels

    app.command()(phantom)
    app.command()(ingest)
    register_labels(app)


def phantom(
    out: Annotated[str, typer.Argument(help="Folder or URL for images/, labels/ and phantom.json.")],
    shape: Annotated[
        str | None, typer.Option(help="Z,Y,X voxels, at least 24 each; 128,256,256 when not given.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same bytes.")] = 0,
    from_mask: Annotated[str | None, typer.Option(help="Render this geometry: NIfTI, HDF5, TIFF or Zarr.")] = None,
    voxel_size_um: Annotated[float | None, typer.Option(help="Edge of a voxel, µm; 50, or the mask's own.")] = None,
) -> None:
    """Render a vascular organ as HiP-CT shows it, with exact truth.

    Example: perfuse phantom slices/organ1 --shape 128,256,256 --seed 1
    """
    from perfuse.console import progress, results
    from perfuse_ingest.phantom import write_phantom

    size = None if shape is None else parse_index(shape, "--shape")
    if voxel_size_um is not None:
        parse_voxel_size(str(voxel_size_um))
    with progress("phantom, slices", 1) as advance:
        summary = write_phantom(
            out, shape_zyx=size, seed=seed, from_mask=from_mask, voxel_size_um=voxel_size_um, progress=advance.to
        )
    extent = " × ".join(map(str, summary.shape_zyx))
    results.print(f"{out}: {extent} voxels, {summary.vessel_share:.2%} vessel", soft_wrap=True)


def ingest(
    source: Annotated[str, typer.Argument(help="Folder of TIFF slices, or one multi-page TIFF.")],
    scan_url: Annotated[str, typer.Argument(help="Where the scan goes: …/ID.ome.zarr")],
    voxel_size_um: VoxelSize,
    specimen: Annotated[str, typer.Option(help="The organ's name.")],
    organ: Annotated[str, typer.Option(help="kidney, spleen, …")],
    donor: Annotated[str | None, typer.Option(help="Whose organ it is; the specimen when not given.")] = None,
    labels: Annotated[
        str | None, typer.Option(help="A mask of the same shape: TIFF slices, NIfTI, HDF5 or Zarr.")
    ] = None,
    labels_name: Annotated[str, typer.Option(help="Name of the label group.")] = "human",
    coverage: Coverage = 1.0,
) -> None:
    """Ingest slices into sharded OME-Zarr. Run it again to resume; when all is there it does nothing.

    Example: perfuse ingest slices/ scans/kidney1.ome.zarr --voxel-size-um 50 --specimen kidney1 --organ kidney
    """
    from perfuse.console import results
    from perfuse_ingest.ingest import ingest as run

    if labels is None and coverage != 1:
        raise SourceError("--coverage is the share of the vessels that labels mark: give --labels, or leave it out.")
    info = run(
        source,
        scan_url,
        voxel_size_um=parse_voxel_size(voxel_size_um),
        specimen=specimen,
        organ=organ,
        donor=donor,
        labels=labels,
        labels_name=labels_name,
        coverage=coverage,
    )
    results.print(
        f"{scan_url}: {' × '.join(map(str, info.shape_zyx))} {info.dtype}, {info.digest[:12]}", soft_wrap=True
    )
