"""A stack of slices becomes a scan: OME-Zarr 0.5, in one pass, resumable, visible only when it is whole."""

from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from perfuse import __version__, locks, storage, volumes
from perfuse.catalog import SUFFIX, Scan, ScanInfo
from perfuse.console import progress, say
from perfuse.errors import ScanError
from perfuse.geometry import Spacing
from perfuse_ingest.labels import add_labels, check_label_source
from perfuse_ingest.plan import plan
from perfuse_ingest.slabs import Pass
from perfuse_ingest.stack import Stack, open_stack

PERCENTS = (0.5, 1.0, 50.0, 99.0, 99.5)


def ingest(
    source: str,
    scan_url: str,
    *,
    voxel_size_um: Spacing,
    specimen: str,
    organ: str,
    donor: str | None = None,
    labels: str | None = None,
    labels_name: str = "human",
    coverage: float = 1.0,
) -> ScanInfo:
    """Ingest TIFF slices, and labels if given. The same call resumes a killed one, and does nothing when all is done.

    voxel_size_um: z, y, x. coverage: share of the vessels that `labels` marks.
    Raises SourceError or SliceError for bad slices, ShapeMismatchError for labels of another shape, ScanError when the
    URL holds something else, BusyError when somebody else writes it, PlanError when a slab does not fit in memory.
    """
    url = storage.normal(scan_url)
    if not url.endswith(SUFFIX):
        raise ScanError(
            f"A scan's name ends in {SUFFIX}; got {scan_url}. Say for example {scan_url.rstrip('/')}{SUFFIX}"
        )
    stack = open_stack(source)
    for name in stack.passed_over:
        say(f"passed over {name}: no image")
    if labels is not None:
        check_label_source(labels, stack.shape_zyx)
    about = {"specimen": specimen, "organ": organ, "donor": donor or specimen}
    with locks.writing(url):
        info = _finished(url, _key(stack, voxel_size_um, about)) or _write(url, stack, voxel_size_um, about)
    if labels is not None:
        add_labels(url, labels, name=labels_name, coverage=coverage)
    return info


def _key(stack: Stack, voxel_size_um: Spacing, about: dict[str, str]) -> str:
    return storage.digest_json([stack.identity(), stack.shape_zyx, str(stack.dtype), voxel_size_um, about])


def _finished(url: str, key: str) -> ScanInfo | None:
    """The scan that is there already, when it is the same; ScanError when it is another."""
    try:
        attributes = dict(volumes.open_group(url).attrs)
    except ScanError:
        return None
    if attributes.get("perfuse_key") != key:
        raise ScanError(
            f"{url} holds something else: other slices, voxel size, specimen, donor or organ. It is not overwritten; choose "
            "another URL, or remove it first."
        )
    if "perfuse" not in attributes:
        return None
    say(f"{url} is there already and complete: nothing to do")
    return Scan.open(url).info


def _write(url: str, stack: Stack, voxel_size_um: Spacing, about: dict[str, str]) -> ScanInfo:
    wanted = plan(stack.shape_zyx, stack.dtype)
    key = _key(stack, voxel_size_um, about)
    group = volumes.open_group(url, "a")
    levels = volumes.pyramid_levels(stack.shape_zyx, voxel_size_um)
    if group.attrs.get("perfuse_key") != key:
        volumes.create_pyramid(group, "", levels, stack.dtype)
        group.attrs["perfuse_key"] = key
    with progress(f"ingest {storage.name_of(url)}, slices", len(stack.slices)) as advance:
        work = _begin(url, group, stack, levels, key, advance)
        work.run(wanted.workers)
    _plain(work_group(group), "histogram", work.histogram)
    info = _summary(url, stack, voxel_size_um, about, work)
    group.attrs["perfuse"] = info.model_dump(mode="json")
    return info


def work_group(group: zarr.Group) -> zarr.Group:
    """Where what grows with the scan is kept."""
    return group.require_group("perfuse")


def _begin(url: str, group: zarr.Group, stack: Stack, levels: list[volumes.Level], key: str, advance: Any) -> Pass:
    inner = work_group(group)
    arrays = [_array(group, str(k)) for k in range(len(levels))]
    depth = len(stack.slices)
    thick = (arrays[0].shards or arrays[0].chunks)[0]
    slabs = -(-depth // thick)
    if "slices" not in inner:
        width = max(len(s.name.encode()) for s in stack.slices)
        names = [np.frombuffer(s.name.encode().ljust(width, b"\0"), np.uint8) for s in stack.slices]
        _plain(inner, "slice_names", np.stack(names))
        inner.create_array("slices", shape=(depth, 32), chunks=(thick, 32), dtype="uint8", fill_value=0)
        rows, columns = (-(-n // c) for n, c in zip(arrays[0].shape[1:], arrays[0].chunks[1:], strict=True))
        inner.create_array(
            "occupancy", shape=(slabs, rows, columns, 2), chunks=(1, rows, columns, 2), dtype=stack.dtype, fill_value=0
        )
    marks = volumes.DoneMarks(inner, "done", slabs, key)
    return Pass(url, stack, levels, arrays, marks, _array(inner, "slices"), _array(inner, "occupancy"), advance)


def _array(group: zarr.Group, name: str) -> zarr.Array[Any]:
    array = group[name]
    if not isinstance(array, zarr.Array):
        raise ScanError(f"{group.store_path} is damaged: {name} is no array. Remove the scan and ingest again.")
    return array


def _plain(group: zarr.Group, name: str, values: npt.NDArray[Any]) -> None:
    array = group.create_array(name, shape=values.shape, chunks=values.shape, dtype=values.dtype, overwrite=True)
    array[...] = values


def _summary(url: str, stack: Stack, voxel_size_um: Spacing, about: dict[str, str], work: Pass) -> ScanInfo:
    counts = work.histogram
    used, total = np.flatnonzero(counts), np.cumsum(counts)
    intensity = {
        "min": float(used[0]),
        "max": float(used[-1]),
        "mean": float(counts @ np.arange(len(counts)) / total[-1]),
        **{f"p{p:g}": float(np.searchsorted(total, p / 100 * total[-1])) for p in PERCENTS},
    }
    slices = volumes.merkle(row.tobytes() for row in np.asarray(work.digests[:]))
    lineage = {
        "source": stack.url,
        "slices": len(stack.slices),
        "first": stack.slices[0].name,
        "last": stack.slices[-1].name,
        "slices_digest": slices,
        "perfuse": __version__,
    }
    return ScanInfo(
        id=storage.name_of(url).removesuffix(SUFFIX),
        voxel_size_um=voxel_size_um,
        shape_zyx=stack.shape_zyx,
        dtype=str(stack.dtype),
        digest=work.marks.root(),
        intensity=intensity,
        lineage=lineage,
        **about,
    )
