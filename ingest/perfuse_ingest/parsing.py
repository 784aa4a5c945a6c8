"""What the options of `perfuse ingest` mean, and its plan as people read it."""

import re
from dataclasses import asdict, replace
from typing import Any

from pydantic import ByteSize, TypeAdapter, ValidationError

from perfuse.errors import SourceError
from perfuse.geometry import index3
from perfuse.volumes import LAYOUT, Layout
from perfuse_ingest.job import Job

CHUNKS = (32, 64, 128)
_CODEC = re.compile(r"(zstd|lz4)(?::([1-9]))?")
_RANGE = re.compile(r"(\d*):(\d*)")


def crop(text: str | None) -> tuple[slice, slice, slice] | None:
    """`Z0:Z1,Y0:Y1,X0:X1`; an end that is left out is the volume's."""
    if text is None:
        return None
    found = [_RANGE.fullmatch(part.strip()) for part in text.split(",")]
    if len(found) != 3 or not all(found):
        raise SourceError(
            f"A crop is Z0:Z1,Y0:Y1,X0:X1 in voxels of the source, for example 0:512,:,100:900; got {text!r}."
        )
    z, y, x = (slice(*(int(n) if n else None for n in match.groups())) for match in found if match)
    return z, y, x


def target(edge_um: float | None) -> float | None:
    """An edge of voxels, µm."""
    if edge_um is not None and not 0 < edge_um < 1e6:
        raise SourceError(f"--target-um is the edge of the voxels that are stored, in µm and above 0; got {edge_um:g}.")
    return edge_um


def window(text: str | None) -> tuple[float, float] | None:
    """`LOW,HIGH`."""
    if text is None:
        return None
    try:
        low, high = map(float, text.split(","))
    except ValueError as error:
        raise SourceError(f"A window is LOW,HIGH, two intensities; got {text!r}.") from error
    return low, high


def layout(codec: str | None, chunk: int | None, shard: str | None) -> Layout:
    """How the scan is cut and compressed; None: the default of each."""
    chosen = LAYOUT
    if codec is not None:
        found = _CODEC.fullmatch(codec)
        if found is None:
            raise SourceError(f"A codec is zstd or lz4, with a level from 1 to 9: zstd:3, lz4:9; got {codec!r}.")
        name: Any = found[1]
        chosen = replace(chosen, codec=name, clevel=int(found[2] or LAYOUT.clevel))
    if chunk is not None:
        if chunk not in CHUNKS:
            raise SourceError(f"A chunk has an edge of {', '.join(map(str, CHUNKS))} voxels; got {chunk}.")
        chosen = replace(chosen, chunk=chunk)
    if shard is not None:
        try:
            chunks = index3([int(n) for n in shard.split(",")])
        except ValueError:
            chunks = (0, 0, 0)
        if not all(1 <= n <= 64 for n in chunks):
            raise SourceError(f"--shard is chunks in a stored object, Z,Y,X, from 1 to 64 each; got {shard!r}.")
        chosen = replace(chosen, shard_chunks=chunks)
    return chosen


def memory(text: str | None) -> int | None:
    """`4GiB`, `800 MB`, bytes."""
    if text is None:
        return None
    try:
        return int(TypeAdapter(ByteSize).validate_python(text))
    except ValidationError as error:
        raise SourceError(f"A memory limit is a size such as 4GiB or 800MB; got {text!r}.") from error


def show_plan(job: Job, *, as_json: bool) -> None:
    """Print what an ingest would take."""
    from perfuse.console import print_json, results
    from perfuse_ingest.estimate import estimate

    with job.source:
        found = asdict(estimate(job))
    if as_json:
        print_json(found)
        return
    results.print(f"[bold]{job.url}[/bold] would be made of {job.source.url}", soft_wrap=True)
    for name, text in _lines(found):
        results.print(f"  {name:<12}{text}", soft_wrap=True)


def _lines(found: dict[str, Any]) -> list[tuple[str, str]]:
    extent = " × ".join(map(str, found["shape_zyx"]))
    um = " × ".join(f"{v:g}" for v in found["voxel_size_um"])
    work = "in bands of rows, for a slab does not fit whole" if found["in_bands"] else "slab by slab"
    return [
        ("volume", f"{extent} {found['dtype']}, voxels of {um} µm, {found['levels']} levels"),
        ("reads", f"at most {_size(found['input_bytes'])}"),
        ("writes", f"about {_size(found['output_bytes'])} in {found['objects']} objects"),
        ("work", f"{found['tasks']} tasks, {work}"),
        ("memory", f"at most {_size(found['peak_bytes'])}"),
        ("scratch", _size(found["scratch_bytes"]) if found["scratch_bytes"] else "none"),
        ("time", f"about {_time(found['seconds'])} on this machine"),
    ]


def _size(count: int) -> str:
    return ByteSize(count).human_readable(separator=" ")


def _time(seconds: float) -> str:
    hours, minutes = divmod(round(seconds / 60), 60)
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
