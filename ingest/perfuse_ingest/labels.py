"""Labels given by people: masks of two values become a uint8 label group of a scan."""

import numpy as np
import numpy.typing as npt

from perfuse import locks, storage
from perfuse.catalog import LabelInfo, Scan
from perfuse.console import progress
from perfuse.errors import ShapeMismatchError, SourceError
from perfuse.geometry import Box, Index3, index3
from perfuse.labels import LabelWriter, writer_for
from perfuse_ingest.stack import Stack, open_stack


def check_label_source(source: str, shape_zyx: Index3) -> Stack:
    """Open a stack of masks and compare its shape with the scan's; reads headers only."""
    stack = open_stack(source)
    if stack.shape_zyx != shape_zyx:
        raise ShapeMismatchError(
            f"The labels {source} have shape {stack.shape_zyx} (z, y, x); the scan has {shape_zyx}. They must be equal; labels of a "
            "part are added by `perfuse labels add … --at Z,Y,X`."
        )
    return stack


def add_labels(
    scan_url: str, source: str, *, name: str, at_zyx: Index3 | None = None, coverage: float = 1.0
) -> LabelInfo:
    """Add a mask to a scan. The same call again does nothing.

    source: TIFF masks of two values, 0 and one other. at_zyx: where the first voxel of a part lies; what lies outside the part is
    unknown. coverage: share of the vessels that is marked; below 1 the label is sparse and the rest unknown.
    Raises ShapeMismatchError, SourceError (more than two values, an empty mask), ScanError (another label of that name).
    """
    scan = Scan.open(scan_url)
    stack = check_label_source(source, scan.shape_zyx) if at_zyx is None else open_stack(source)
    start = at_zyx or (0, 0, 0)
    box = Box.whole(stack.shape_zyx).shifted(start)
    if min(start) < 0 or box.intersect(Box.whole(scan.shape_zyx)) != box:
        raise ShapeMismatchError(
            f"Labels of shape {stack.shape_zyx} at {start} reach beyond the scan, whose shape is {scan.shape_zyx}."
        )
    key = storage.digest_json([scan.info.digest, _content(stack), start, coverage])
    with locks.writing(scan.url, f"label-{name}"):
        writer = writer_for(scan, name, key)
        if writer.complete is not None:
            return writer.complete
        _write(writer, stack, box)
        return writer.finish(
            lambda foreground, digest: _summary(stack, name, key, coverage, at_zyx, foreground, digest)
        )


def _content(stack: Stack) -> str:
    return storage.digest_bytes(*(stack.read(k)[1] for k in range(len(stack.slices))))


def _summary(
    stack: Stack, name: str, key: str, coverage: float, at_zyx: Index3 | None, foreground: float, digest: str
) -> LabelInfo:
    if not foreground:
        raise SourceError(f"The mask {stack.url} is empty: no voxel is marked. A label without vessels is refused.")
    part = None if at_zyx is None else (at_zyx, index3([a + n for a, n in zip(at_zyx, stack.shape_zyx, strict=True)]))
    return LabelInfo(
        name=name,
        kind="dense" if coverage == 1 else "sparse",
        coverage=coverage,
        foreground=foreground,
        digest=digest,
        key=key,
        box=part,
        lineage={"source": stack.url, "slices": len(stack.slices)},
    )


def _write(writer: LabelWriter, stack: Stack, box: Box) -> None:
    marked: set[int] = set()
    by_planes: dict[tuple[int, int], list[int]] = {}
    for task in writer.todo():
        cut = writer.tasks[task]
        by_planes.setdefault((cut.start[0], cut.stop[0]), []).append(task)
    with progress(f"label {writer.name}, slabs", len(by_planes)) as advance:
        for planes, tasks in by_planes.items():
            slab = _slab(stack, box, planes, index3(writer.arrays[0].shape), marked)
            for task in tasks:
                _, rows, columns = writer.tasks[task].slices
                writer.write(task, slab[:, rows, columns])
            advance()


def _slab(stack: Stack, box: Box, planes: tuple[int, int], shape: Index3, marked: set[int]) -> npt.NDArray[np.uint8]:
    slab = np.zeros((planes[1] - planes[0], *shape[1:]), np.uint8)
    for z in range(max(planes[0], box.start[0]), min(planes[1], box.stop[0])):
        mask, _ = stack.read(z - box.start[0])
        marked |= {int(v) for v in np.unique(mask)} - {0}
        if len(marked) > 1:
            raise SourceError(
                f"{stack.url}, slice {z - box.start[0]}: a mask has two values, 0 and one other; found 0, "
                f"{', '.join(map(str, sorted(marked)[:5]))}. Nothing was added."
            )
        slab[z - planes[0], box.start[1] : box.stop[1], box.start[2] : box.stop[2]] = (mask != 0) * np.uint8(255)
    return slab
