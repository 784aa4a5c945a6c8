"""Writes a phantom as a microscopist would hand it over: a folder of image slices and one of labels.

OUT/images/0000.tif …    uint16, one TIFF a slice
OUT/labels/0000.tif …    uint8, 0 or 255
OUT/phantom.json         parameters and counts; written last, so a folder that holds it is whole

Until then images/ and labels/ hold a file `unfinished`, with which no stack is read.
"""

import io
import json
import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import tifffile

from perfuse import storage
from perfuse.errors import ShapeMismatchError, SourceError
from perfuse.parallel import in_order
from perfuse_ingest.mask_sources import MaskSource, open_masks
from perfuse_ingest.phantom.geometry import Geometry, MaskGeometry, TreeGeometry, Vessels
from perfuse_ingest.phantom.organ import Envelope
from perfuse_ingest.phantom.render import Renderer
from perfuse_ingest.phantom.tree import grow_tree
from perfuse_ingest.sources.naming import UNFINISHED

Progress = Callable[[int, int], None]
"""Called with (slices done, slices in all)."""

DEFAULT_SHAPE_ZYX = (128, 256, 256)
DEFAULT_VOXEL_SIZE_UM = 50.0
SMALLEST_AXIS = 24
"""Below this many voxels an organ has no room for a tree."""

_SLAB_BYTES = 64 * 2**20
"""Roughly what the float arrays of a slab may take."""
_BYTES_PER_VOXEL = 40
_DONE, _BEGUN = "phantom.json", "phantom.begun.json"
_FOLDERS = ("images", "labels")


@dataclass(frozen=True)
class PhantomSummary:
    """What stands in a phantom's folder; the same as its phantom.json."""

    shape_zyx: tuple[int, int, int]
    voxel_size_um: tuple[float, float, float]
    """z, y, x"""
    seed: int
    mask_digest: str | None
    """Digest of the voxels of the mask that gave the geometry; None for a grown tree."""
    vessel_voxels: int
    vessel_share: float
    """Of the volume."""
    vessel_share_of_organ: float
    versions: dict[str, str]


@dataclass(frozen=True)
class _Request:
    """What determines every voxel, and the voxel size: two equal requests make the same folder."""

    shape_zyx: tuple[int, int, int]
    voxel_size_um: tuple[float, float, float]
    seed: int
    mask_digest: str | None


def write_phantom(
    out: str,
    *,
    shape_zyx: tuple[int, int, int] | None = None,
    seed: int = 0,
    from_mask: str | None = None,
    voxel_size_um: float | None = None,
    slab_planes: int | None = None,
    progress: Progress | None = None,
) -> PhantomSummary:
    """Writes a phantom to the folder `out` (a path or fsspec URL), and does nothing where it already stands.

    The vessels are a grown tree of `shape_zyx` (128, 256, 256 unless told) or, with `from_mask`, those of a mask
    (a stack or a volume, as for labels), whose shape, and voxel size where the file says it, are taken over.
    The voxel size is 50 µm unless told. `slab_planes` bounds the memory and has no influence on the voxels.
    Raises SourceError when `out` holds anything else, the shape is too small or the mask cannot be read;
    ShapeMismatchError when `shape_zyx` is not the mask's.
    """
    with ExitStack() as files:
        mask = files.enter_context(open_masks(from_mask)) if from_mask is not None else None
        request = _request(mask, shape_zyx, seed, voxel_size_um)
        with storage.reaching(out):
            return _write_request(_Folder(out), request, mask, slab_planes, progress)


def _write_request(
    folder: "_Folder", request: _Request, mask: MaskSource | None, slab_planes: int | None, progress: Progress | None
) -> PhantomSummary:
    standing = folder.standing(request)
    if standing is not None:
        return standing
    folder.begin(request)
    geometry, envelope = _build(request, mask)
    vessel_voxels, organ_voxels = _write_slices(folder, request, geometry, envelope, slab_planes, progress)
    summary = PhantomSummary(
        **asdict(request),
        vessel_voxels=vessel_voxels,
        vessel_share=round(vessel_voxels / int(np.prod(request.shape_zyx)), 6),
        vessel_share_of_organ=round(vessel_voxels / max(organ_voxels, 1), 6),
        versions={name: version(name) for name in ("perfuse", "numpy", "numba")},
    )
    folder.finish(summary)
    return summary


def _request(
    mask: MaskSource | None,
    shape_zyx: tuple[int, int, int] | None,
    seed: int,
    voxel_size_um: float | None,
) -> _Request:
    if seed < 0:
        raise SourceError(f"seed {seed}: a phantom's seed is a whole number from 0 up")
    size = (voxel_size_um or DEFAULT_VOXEL_SIZE_UM,) * 3
    if mask is None:
        shape = shape_zyx or DEFAULT_SHAPE_ZYX
        if min(shape) < SMALLEST_AXIS:
            raise SourceError(f"shape {shape}: each axis of a phantom needs at least {SMALLEST_AXIS} voxels")
        return _Request(shape, size, seed, None)
    if shape_zyx is not None and shape_zyx != mask.shape_zyx:
        raise ShapeMismatchError(
            f"--shape {shape_zyx} but the mask {mask.url} is {mask.shape_zyx} (z, y, x): leave --shape out, "
            "a phantom made from a mask has the mask's shape"
        )
    if voxel_size_um is None and mask.voxel_size_um is not None:
        size = mask.voxel_size_um
    return _Request(mask.shape_zyx, size, seed, mask.identity)


def _build(request: _Request, mask: MaskSource | None) -> tuple[Geometry, Envelope | None]:
    if mask is not None:
        return MaskGeometry(mask), None
    envelope = Envelope.grow(request.shape_zyx, request.seed)
    return TreeGeometry(grow_tree(envelope, request.shape_zyx, request.seed), request.shape_zyx), envelope


def _write_slices(
    folder: "_Folder",
    request: _Request,
    geometry: Geometry,
    envelope: Envelope | None,
    slab_planes: int | None,
    progress: Progress | None,
) -> tuple[int, int]:
    """Renders and writes every slice; returns the voxels that are vessel and those that are organ."""
    depth, rows, columns = request.shape_zyx
    planes = slab_planes or max(1, min(32, _SLAB_BYTES // (rows * columns * _BYTES_PER_VOXEL)))
    renderer = Renderer(request.shape_zyx, request.seed, envelope)
    vessel_voxels = organ_voxels = 0
    threads = min(planes, os.cpu_count() or 1)
    for begin in range(0, depth, planes):
        vessels = geometry.slab(begin, min(begin + planes, depth))
        vessel_voxels += int(np.count_nonzero(vessels.truth))

        def write(index: int, begin: int = begin, vessels: Vessels = vessels) -> int:
            image, organ = renderer.slice(begin + index, vessels, index)
            folder.write_slice("images", begin + index, image)
            folder.write_slice("labels", begin + index, vessels.truth[index].view(np.uint8) * np.uint8(255))
            return organ

        for index, organ in enumerate(in_order(write, range(len(vessels.truth)), threads=threads)):
            organ_voxels += organ
            if progress is not None:
                progress(begin + index + 1, depth)
    return vessel_voxels, organ_voxels


class _Folder:
    """The phantom's folder on any filesystem."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._fs = storage.filesystem(self.url)
        self._path = str(self._fs._strip_protocol(self.url))

    def standing(self, request: _Request) -> PhantomSummary | None:
        """The summary where this phantom stands; None where it can be written; an error where something else is."""
        done = self._read(_DONE)
        if done is not None:
            self._insist(done, request)
            return PhantomSummary(**_tuples(done))
        begun = self._read(_BEGUN)
        if begun is not None:
            self._insist(begun, request)
        elif self._fs.exists(self._path) and self._fs.ls(self._path):
            raise SourceError(f"{self.url} is not empty and holds no phantom: choose another folder, or empty this one")
        return None

    def begin(self, request: _Request) -> None:
        self._fs.makedirs(self._path, exist_ok=True)
        self._write(_BEGUN, json.dumps(asdict(request)).encode())
        for folder in _FOLDERS:
            self._fs.makedirs(f"{self._path}/{folder}", exist_ok=True)
            self._write(f"{folder}/{UNFINISHED}", b"")

    def finish(self, summary: PhantomSummary) -> None:
        for folder in _FOLDERS:
            self._fs.rm_file(f"{self._path}/{folder}/{UNFINISHED}")
        self._write(_DONE, (json.dumps(asdict(summary), indent=2) + "\n").encode())
        self._fs.rm(f"{self._path}/{_BEGUN}")

    def write_slice(self, kind: str, z: int, plane: np.ndarray[Any, Any]) -> None:
        encoded = io.BytesIO()
        compression = "zlib" if kind == "labels" else None
        tifffile.imwrite(
            encoded, plane, photometric="minisblack", metadata=None, software=False, compression=compression
        )
        self._write(f"{kind}/{z:04d}.tif", encoded.getvalue())

    def _write(self, name: str, content: bytes) -> None:
        with self._fs.open(f"{self._path}/{name}", "wb") as file:
            file.write(content)

    def _read(self, name: str) -> dict[str, Any] | None:
        try:
            return dict(json.loads(self._fs.cat_file(f"{self._path}/{name}")))
        except FileNotFoundError:
            return None

    def _insist(self, found: dict[str, Any], request: _Request) -> None:
        wanted = asdict(request)
        standing = {name: _tuples(found).get(name) for name in wanted}
        if standing != wanted:
            different = "; ".join(
                f"{n} is {standing[n]}, asked {wanted[n]}" for n in wanted if standing[n] != wanted[n]
            )
            raise SourceError(
                f"{self.url} holds another phantom ({different}): choose another folder, or remove it first"
            )


def _tuples(record: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in record.items()}
