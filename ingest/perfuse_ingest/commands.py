"""The verbs of the ingest room: phantom, ingest; those of labels, organ mask and atlas are beside."""

from typing import Annotated

import typer

from perfuse.errors import SourceError
from perfuse.geometry import Index3, Spacing, index3
from perfuse_ingest import export_commands, hoa_commands, organ_commands


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


Coverage = Annotated[float, typer.Option(min=0.01, max=1.0, help="Share of the vessels that the labels mark.")]


def register(app: typer.Typer) -> None:
    """Add the room's verbs."""
    from perfuse_ingest.label_commands import register as register_labels

    app.command()(phantom)
    app.command()(ingest)
    register_labels(app)
    hoa_commands.register(app)
    organ_commands.register(app)
    export_commands.register(app)


def phantom(
    out: Annotated[str, typer.Argument(help="Folder or URL for images/, labels/ and phantom.json.")],
    shape: Annotated[
        str | None, typer.Option(help="Z,Y,X voxels, at least 24 each; 128,256,256 when not given.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same bytes.")] = 0,
    from_mask: Annotated[
        str | None, typer.Option(help="Render this geometry: TIFF slices, NIfTI, HDF5, Zarr or N5.")
    ] = None,
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
    source: Annotated[
        str,
        typer.Argument(
            help="Folder or archive of slices (TIFF, JPEG 2000), multi-page TIFF, OME-Zarr, N5, NIfTI, HDF5, hoa:NAME."
        ),
    ],
    scan_url: Annotated[str, typer.Argument(help="Where the scan goes: …/ID.ome.zarr")],
    specimen: Annotated[str | None, typer.Option(help="The organ's name. A source of the Atlas states it.")] = None,
    organ: Annotated[str | None, typer.Option(help="kidney, spleen, … A source of the Atlas states it.")] = None,
    voxel_size_um: Annotated[
        str | None,
        typer.Option(help="Voxel size of the source in µm: one number, or Z,Y,X; its own when it states one."),
    ] = None,
    donor: Annotated[str | None, typer.Option(help="Whose organ it is; the specimen when not given.")] = None,
    level: Annotated[int, typer.Option(min=0, help="Of a volume with several levels; 0 is the finest.")] = 0,
    labels: Annotated[
        str | None, typer.Option(help="A mask of the same shape: TIFF slices, NIfTI, HDF5, Zarr or N5.")
    ] = None,
    labels_name: Annotated[str, typer.Option(help="Name of the label group.")] = "human",
    coverage: Coverage = 1.0,
    crop: Annotated[
        str | None, typer.Option(help="Z0:Z1,Y0:Y1,X0:X1, voxels of the source; an end may be left out.")
    ] = None,
    target_um: Annotated[float | None, typer.Option(help="Store cubic voxels of this edge, µm, resampled.")] = None,
    window: Annotated[str | None, typer.Option(help="LOW,HIGH: store 8 bits, these intensities as 0 and 255.")] = None,
    clahe: Annotated[
        bool, typer.Option("--clahe", help="Equalise contrast locally, by blocks of the volume; slices are read twice.")
    ] = False,
    codec: Annotated[str | None, typer.Option(help="zstd or lz4, with a level: zstd:3 (the default), lz4:9.")] = None,
    chunk: Annotated[int | None, typer.Option(help="Edge of a chunk, voxels: 32, 64 (the default) or 128.")] = None,
    shard: Annotated[str | None, typer.Option(help="Chunks in a stored object, Z,Y,X: 1,8,8 when not given.")] = None,
    memory_limit: Annotated[
        str | None, typer.Option(help="At most this much memory: 4GiB; half the machine's.")
    ] = None,
    scheduler: Annotated[
        str | None, typer.Option(help="threads, ray, or a Dask scheduler's address; ray inside a submitted job.")
    ] = None,
    allow_gaps: Annotated[
        bool, typer.Option("--allow-gaps", help="Store missing slices as zeros, and record which they are.")
    ] = False,
    mask: Annotated[
        bool,
        typer.Option("--mask/--no-mask", help="Find the organ; percentiles, training and scores then mean the organ."),
    ] = True,
    repair: Annotated[
        bool, typer.Option("--repair", help="Check a complete scan and write again what is damaged.")
    ] = False,
    plan: Annotated[bool, typer.Option("--plan", help="Say what it would take, and write nothing.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="With --plan: one JSON object on stdout, nothing else.")
    ] = False,
) -> None:
    """Ingest slices into sharded OME-Zarr. Run it again to resume; when all is there it does nothing.

    Example: perfuse ingest slices/ scans/kidney1.ome.zarr --voxel-size-um 50 --specimen kidney1 --organ kidney
    Example: perfuse ingest s3://beamline/k2.zip s3://lab/k2.ome.zarr --voxel-size-um 25 --target-um 50 --specimen k2 --organ kidney
    Example: perfuse ingest hoa:LADAF-2020-27_spleen_complete-organ_25.08um_bm05 scans/spleen.ome.zarr --level 1
    """
    from perfuse.console import results
    from perfuse_ingest import parsing
    from perfuse_ingest.ingest import ingest as run
    from perfuse_ingest.job import About, prepare
    from perfuse_ingest.shaping import Shaping

    if labels is None and coverage != 1:
        raise SourceError("--coverage is the share of the vessels that labels mark: give --labels, or leave it out.")
    voxels = None if voxel_size_um is None else parse_voxel_size(voxel_size_um)
    shaping = Shaping(parsing.crop(crop), parsing.target(target_um), parsing.window(window), clahe)
    layout, memory = parsing.layout(codec, chunk, shard), parsing.memory(memory_limit)
    if plan:
        about = About(specimen, organ, donor, voxels)
        job = prepare(source, scan_url, about, shaping, layout, level=level, memory_bytes=memory, allow_gaps=allow_gaps)
        parsing.show_plan(job, as_json=as_json)
        return
    info = run(
        source,
        scan_url,
        voxel_size_um=voxels,
        specimen=specimen,
        organ=organ,
        donor=donor,
        level=level,
        labels=labels,
        labels_name=labels_name,
        coverage=coverage,
        shaping=shaping,
        layout=layout,
        memory_bytes=memory,
        allow_gaps=allow_gaps,
        scheduler=scheduler,
        repair=repair,
        mask=mask,
    )
    results.print(
        f"{scan_url}: {' × '.join(map(str, info.shape_zyx))} {info.dtype}, {info.digest[:12]}", soft_wrap=True
    )
