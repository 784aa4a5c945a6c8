"""OME-Zarr 0.5 on any URL: pyramids, sharded arrays with reproducible bytes, done-marks.

A *pyramid* is a Zarr group whose arrays 0…n hold the same volume at halved resolutions. Shards are written whole by one
task each; a done-mark then records the digest of the stored bytes (Zarr omits all-fill shards: only done-marks tell
an empty shard from a lost one).
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import zarr
from zarr.codecs import BloscCodec
from zarr.storage import FsspecStore, LocalStore

from perfuse import storage
from perfuse.errors import ScanError
from perfuse.geometry import AXES, Box, Index3, Spacing, blocks, index3
from perfuse.parallel import in_order
from perfuse.shards import ShardFormat, url_of

Voxels = npt.NDArray[Any]
Reduce = Literal["mean", "max"]

COARSEST = 64
"""A pyramid ends where no axis exceeds this many voxels."""


@dataclass(frozen=True)
class Layout:
    """How a volume is cut and compressed."""

    codec: Literal["zstd", "lz4"] = "zstd"
    """Of Blosc."""
    clevel: int = 3
    shuffle: Literal["bitshuffle", "shuffle"] = "bitshuffle"
    chunk: int = 64
    """Edge of a chunk, voxels: the unit that is decoded to read anything inside."""
    shard_chunks: Index3 = (1, 8, 8)
    """Chunks in a shard (one stored object): one thick along z, so that a slab of slices fills whole shards."""


LAYOUT = Layout()
CHUNK = LAYOUT.chunk


_NO_GROUP = (zarr.errors.GroupNotFoundError, zarr.errors.ContainsArrayError)


def open_group(
    url: str, mode: Literal["r", "r+", "a", "w"] = "r", *, attributes: dict[str, Any] | None = None
) -> zarr.Group:
    """Open a Zarr group; ScanError when there is none. `a` creates it, `w` empties it first.

    attributes: of a group that is created, there from its first moment.
    """
    with storage.reaching(url):
        try:
            return zarr.open_group(_store(url, mode), mode=mode, zarr_format=3, attributes=attributes)
        except (FileNotFoundError, NotADirectoryError, *_NO_GROUP) as error:
            raise ScanError(f"{url} is not a Zarr group. Give the URL of a scan, e.g. data/kidney.ome.zarr.") from error
        except json.JSONDecodeError as error:
            raise ScanError(
                f"The metadata of {url} (zarr.json) are damaged: {error}. Restore that file, or remove the scan and ingest "
                "it again."
            ) from error


def _store(url: str, mode: str) -> LocalStore | FsspecStore:
    if not storage.is_remote(url):
        return LocalStore(storage.local_path(url), read_only=mode == "r")
    storage.filesystem(url)  # which says what is wrong with a URL that cannot be opened
    return FsspecStore.from_url(url, read_only=mode == "r", storage_options={"use_listings_cache": False})


@dataclass(frozen=True)
class Level:
    """The geometry of one level of a pyramid."""

    shape_zyx: Index3
    """Voxels along each axis."""
    factor_zyx: Index3
    """Voxels of the level above that one voxel here covers: 2 where halved, else 1."""
    scale_um: Spacing
    """Voxel size."""
    translation_um: Spacing
    """Centre of the first voxel."""


def pyramid_levels(shape_zyx: Index3, voxel_size_um: Spacing, origin_um: Spacing = (0.0, 0.0, 0.0)) -> list[Level]:
    """The levels of a volume's pyramid, finest first.

    An axis is halved while it is longer than 1 voxel and not coarser than twice the finest of those that are. A halved
    level's first voxel has its centre between the two it covers: (2ᵏ − 1) / 2 voxels in.
    origin_um: centre of the first voxel.
    """
    levels = [Level(shape_zyx, (1, 1, 1), voxel_size_um, origin_um)]
    while max(levels[-1].shape_zyx) > COARSEST:
        above = levels[-1]
        sizes = list(zip(above.shape_zyx, above.scale_um, strict=True))
        coarsest = 2 * min(s for n, s in sizes if n > 1) * (1 + 1e-9)
        levels.append(_coarser(above, index3([2 if n > 1 and s <= coarsest else 1 for n, s in sizes])))
    return levels


def _coarser(above: Level, factor: Index3) -> Level:
    shape = index3([-(-n // f) for n, f in zip(above.shape_zyx, factor, strict=True)])
    z, y, x = (s * f for s, f in zip(above.scale_um, factor, strict=True))
    tz, ty, tx = (t + s * (f - 1) / 2 for t, s, f in zip(above.translation_um, above.scale_um, factor, strict=True))
    return Level(shape, factor, (z, y, x), (tz, ty, tx))


def chunk_shape(shape_zyx: Index3, layout: Layout = LAYOUT) -> Index3:
    """The chunk of a level: a cube, thinner where the volume is."""
    return index3([min(layout.chunk, n) for n in shape_zyx])


def shard_shape(shape_zyx: Index3, layout: Layout = LAYOUT) -> Index3:
    """The shard of a level: as many chunks as the layout says, no more than cover the volume."""
    chunk = chunk_shape(shape_zyx, layout)
    return index3([c * min(most, -(-n // c)) for n, c, most in zip(shape_zyx, chunk, layout.shard_chunks, strict=True)])


def create_array(
    group: zarr.Group,
    name: str,
    shape_zyx: Index3,
    dtype: npt.DTypeLike,
    *,
    chunks: Index3 | None = None,
    shards: Index3 | None = None,
    layout: Layout = LAYOUT,
) -> zarr.Array[Any]:
    """A sharded, compressed volume with fill value 0, in place of any of that name.

    chunks: defaults to `chunk_shape`. shards: defaults to `shard_shape`; always a multiple of the chunks.
    """
    dtype = np.dtype(dtype)
    return group.create_array(
        name,
        shape=shape_zyx,
        dtype=dtype,
        chunks=chunks or chunk_shape(shape_zyx, layout),
        shards=shards or shard_shape(shape_zyx, layout),
        compressors=BloscCodec(
            cname=layout.codec, clevel=layout.clevel, shuffle=layout.shuffle, typesize=dtype.itemsize
        ),
        fill_value=0,
        dimension_names=AXES,
        overwrite=True,
    )


def create_pyramid(
    parent: zarr.Group,
    name: str,
    levels: list[Level],
    dtype: npt.DTypeLike,
    *,
    ome: dict[str, Any] | None = None,
    layout: Layout = LAYOUT,
) -> tuple[zarr.Group, list[zarr.Array[Any]]]:
    """An OME-Zarr 0.5 multiscale group with empty levels. `name` "" makes `parent` itself the multiscale."""
    group = parent.require_group(name) if name else parent
    group.attrs["ome"] = {"version": "0.5", "multiscales": [_multiscale(name or "image", levels)], **(ome or {})}
    arrays = [create_array(group, str(k), level.shape_zyx, dtype, layout=layout) for k, level in enumerate(levels)]
    return group, arrays


def _multiscale(name: str, levels: list[Level]) -> dict[str, Any]:
    axes = [{"name": axis, "type": "space", "unit": "micrometer"} for axis in AXES]
    return {"name": name, "axes": axes, "datasets": datasets(levels)}


def datasets(levels: list[Level]) -> list[dict[str, Any]]:
    """The levels as OME-Zarr metadata lists them."""
    return [
        {
            "path": str(k),
            "coordinateTransformations": [
                {"type": "scale", "scale": list(level.scale_um)},
                {"type": "translation", "translation": list(level.translation_um)},
            ],
        }
        for k, level in enumerate(levels)
    ]


def halve(block: Voxels, factor_zyx: Index3, reduce: Reduce, out: Voxels | None = None) -> Voxels:
    """The next coarser level of a block that begins on an even voxel of every halved axis.

    block: [z, y, x] of unsigned integers or floats; the result has ⌈n / factor⌉ voxels and the same dtype. `mean`
    rounds half up for integers. Where an odd face is left over it is replicated, so the far edge is a mean of what is there.
    """
    from perfuse import halving

    if out is None:
        out = np.empty([-(-n // f) for n, f in zip(block.shape, factor_zyx, strict=True)], block.dtype)
    mean = halving.mean_of_floats if block.dtype.kind == "f" else halving.mean_of_integers
    (halving.maximum if reduce == "max" else mean)(block, factor_zyx, out)
    return out


def fill_coarser(
    arrays: list[zarr.Array[Any]], levels: list[Level], reduce: Reduce, changed: Box | None = None
) -> None:
    """Compute levels 1…n from stored level 0, one shard at a time, each on all cores.

    changed: the box of level 0 outside which the levels stand already; only shards that it meets are computed.
    """
    changed = changed or Box.whole(levels[0].shape_zyx)
    for above, below, level in zip(arrays[:-1], arrays[1:], levels[1:], strict=True):
        start = index3([a // f for a, f in zip(changed.start, level.factor_zyx, strict=True)])
        changed = Box(start, index3([-(-b // f) for b, f in zip(changed.stop, level.factor_zyx, strict=True)]))
        for box in blocks(index3(below.shape), index3(below.shards or below.chunks)):
            if not box.intersect(changed).empty:
                write_shards(below, box, _halved(above, box, level, reduce))


def _halved(above: zarr.Array[Any], box: Box, level: Level, reduce: Reduce) -> Voxels:
    """A shard of a level from the next finer one, a row of chunks at a time."""
    form, out = ShardFormat.of(above), np.empty(box.shape, above.dtype)
    strips = list(blocks(box.shape, (box.shape[0], CHUNK, box.shape[2])))

    def fill(strip: Box) -> None:
        source = form.read_box(_source_box(strip.shifted(box.start), level, above))
        out[strip.slices] = halve(source, level.factor_zyx, reduce)

    for _ in in_order(fill, strips):
        pass
    return out


def _source_box(box: Box, level: Level, above: zarr.Array[Any]) -> Box:
    start = index3([a * f for a, f in zip(box.start, level.factor_zyx, strict=True)])
    stop = index3([min(b * f, n) for b, f, n in zip(box.stop, level.factor_zyx, above.shape, strict=True)])
    return Box(start, stop)


def write_shards(array: zarr.Array[Any], box: Box, voxels: Voxels) -> bytes:
    """Write the shards that `box` covers, whole, whatever stood there; returns their digests, 32 bytes each, in C order."""
    form = ShardFormat.of(array)
    return b"".join(form.write(shard, voxels[shard.relative_to(box.start).slices]) for shard in form.shards(box))


def stored_digests(array: zarr.Array[Any], box: Box) -> bytes:
    """The digests of the shards that `box` covers as they are stored now; see `write_shards`."""
    form = ShardFormat.of(array)
    return b"".join(map(form.stored_digest, form.shards(box)))


class DoneMarks:
    """A row of 32-byte digests a task, one digest a shard, in a Zarr array `[task, 32 · shards]`; zeros: not done.

    `key` is the digest of what the tasks are made from: marks of another key are forgotten.
    """

    def __init__(self, group: zarr.Group, name: str, tasks: int, key: str, *, shards: int = 1) -> None:
        array, width = group.get(name), 32 * shards
        if not isinstance(array, zarr.Array) or array.attrs.get("key") != key or array.shape != (tasks, width):
            array = group.create_array(
                name,
                shape=(tasks, width),
                chunks=(1, width),
                dtype="uint8",
                compressors=None,
                fill_value=0,
                overwrite=True,
                attributes={"key": key},
            )
        self._array, self._url = array, url_of(array)

    def mark(self, task: int, digest: bytes) -> None:
        """Record that a task has written its shards: the digests of their stored bytes, one after the other."""
        with storage.reaching(self._url):
            self._array[task] = np.frombuffer(digest, np.uint8)

    def digests(self) -> list[bytes]:
        """Each task's row; zero bytes where it is not done."""
        with storage.reaching(self._url):
            return [row.tobytes() for row in np.asarray(self._array[:])]

    def intact(self, task_digest: Callable[[int], bytes]) -> set[int]:
        """Tasks whose mark equals the digest of what is stored now: the others are to be done (again)."""
        return {i for i, mark in enumerate(self.digests()) if any(mark) and mark == task_digest(i)}

    def root(self) -> str:
        """The digest over all marks: the identity of what was written."""
        return merkle(self.digests())


def merkle(digests: Iterable[bytes]) -> str:
    """One digest over many, in their order."""
    return storage.digest_bytes(*digests)
