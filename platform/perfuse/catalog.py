"""Scans as their users know them: specimen, donor, labels, coverage, validity."""

from collections.abc import Iterator
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
import zarr
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from perfuse import intensity, measured, storage, volumes
from perfuse.errors import ScanError
from perfuse.geometry import Box, Index3, Spacing
from perfuse.measured import array_of
from perfuse.shards import ShardFormat
from perfuse.validity import Kind, LabelBox, identity

SUFFIX = ".ome.zarr"
ORGAN = "organ"
"""Name of the label group that says where the organ is."""


class ModelRef(BaseModel):
    """The bundle that made a soft label."""

    model_config = ConfigDict(extra="forbid")
    uri: str
    forward_digest: str
    bundle_digest: str
    class_name: str = Field("", exclude_if=lambda name: not name)
    """Which of its classes the label shows, where it has several."""
    threshold: int
    backend: str = Field(validation_alias=AliasChoices("backend", "precision"))
    """How its logits were computed, as compiled-bf16; of several members all that were used. Older labels say precision."""


class LabelInfo(BaseModel):
    """What is known of one label group; stored as its attribute `perfuse`, last, when the label is complete."""

    model_config = ConfigDict(extra="forbid")
    name: str
    kind: Kind
    """Sparse when any voxel's box is, else soft when any is."""
    coverage: float = Field(1.0, gt=0, le=1)
    """Share of the vessels that is marked, in all boxes together."""
    foreground: float
    """Share of voxels with p ≥ 0.5."""
    digest: str
    """Identity of its voxels, and of what is known where."""
    key: str = ""
    """Digest of what the label was made from; the same key is never computed twice."""
    box: tuple[Index3, Index3] | None = None
    """The smallest box around all boxes in which the label was given; unknown elsewhere. None: it was given everywhere."""
    boxes: tuple[LabelBox, ...] = ()
    """Where people gave it, in that order; the last box that covers a voxel says what is known there. Empty: `Scan.label_boxes`."""
    model: ModelRef | None = None
    """The bundle that made it; None when people had a hand in it."""
    lineage: dict[str, Any] = {}
    complete: Literal[True] = True

    @property
    def donors(self) -> dict[str, str]:
        """Donors whose data are in the label by way of the models that made it, each with that way; none of people's own."""
        ways = [self.lineage, *(box.lineage for box in self.boxes)]
        return {donor: way for lineage in ways for donor, way in lineage.get("donors", {}).items()}

    def digest_over(self, voxels: str) -> str:
        """The digest that this label has when the root over the done-marks of its level 0 is `voxels`."""
        return identity(voxels, self.boxes)


class ScanInfo(BaseModel):
    """What is known of a scan; stored as the attribute `perfuse` of its group, last, when it is complete."""

    model_config = ConfigDict(extra="forbid")
    id: str
    specimen: str
    donor: str
    organ: str
    voxel_size_um: Spacing
    shape_zyx: Index3
    dtype: str
    digest: str
    """Root over the done-marks of level 0: the identity of the voxels."""
    intensity: dict[str, float]
    """min, max, mean and percentiles (p0.5 … p99.5), from the exact histogram."""
    origin_um: Spacing = (0.0, 0.0, 0.0)
    """Centre of the first voxel, from that of the source's first voxel; z, y, x. Not 0 for a crop."""
    window: tuple[float, float] | None = None
    """Intensities of the source that became 0 and 255; None: stored as they were."""
    gaps: list[int] = []
    """Slices that the source lacks, stored as zeros."""
    lineage: dict[str, Any] = {}
    complete: Literal[True] = True


class Scan:
    """A complete scan at a URL, opened for reading."""

    def __init__(self, url: str, group: zarr.Group, info: ScanInfo) -> None:
        self.url = url
        self.group = group
        self.info = info

    @classmethod
    def open(cls, url: str) -> "Scan":
        """Open a scan; ScanError when the URL holds none, or one that was never finished."""
        url = storage.normal(url)
        group = volumes.open_group(url)
        summary = group.attrs.get("perfuse")
        if not isinstance(summary, dict) or summary.get("complete") is not True:
            raise ScanError(
                f"{url} is not a complete perfuse scan: its metadata has no finished `perfuse` summary. If an ingest "
                "was interrupted, run the same `perfuse ingest` again: it resumes."
            )
        return cls(url, group, _validated(ScanInfo, summary, url))

    @property
    def shape_zyx(self) -> Index3:
        """Voxels along each axis."""
        return self.info.shape_zyx

    @property
    def image(self) -> zarr.Array[Any]:
        """Level 0 of the image."""
        return array_of(self.group, "0")

    def level(self, level: int) -> zarr.Array[Any]:
        """A level of the image; 0 is the finest."""
        return array_of(self.group, str(level))

    @property
    def levels(self) -> int:
        """How many levels the image pyramid has."""
        return len(self.group.attrs["ome"]["multiscales"][0]["datasets"])  # type: ignore[index,call-overload,arg-type]

    def labels(self) -> dict[str, LabelInfo]:
        """The complete labels of this scan, by name."""
        if "labels" not in self.group:
            return {}
        found = {name: self._summary(name, child) for name, child in _group(self.group, "labels").groups()}
        return {name: info for name, info in sorted(found.items()) if info is not None}

    def _summary(self, name: str, group: Any) -> LabelInfo | None:
        summary = group.attrs.get("perfuse") if isinstance(group, zarr.Group) else None
        if not isinstance(summary, dict) or summary.get("complete") is not True:
            return None
        return _validated(LabelInfo, summary, f"{self.url}/labels/{name}")

    def label_info(self, name: str) -> LabelInfo:
        """What is known of one label; ScanError naming those there are."""
        group = self.group.get(f"labels/{name}") if name and "/" not in name else None
        info = self._summary(name, group)
        if info is None:
            torn = f" {name!r} is unfinished: `perfuse labels add` goes on with it." if group is not None else ""
            there = ", ".join(self.labels()) or "none"
            raise ScanError(f"Scan {self.url} has no label {name!r}. Its labels: {there}.{torn}")
        return info

    def label_boxes(self, name: str) -> tuple[LabelBox, ...]:
        """The boxes in which a label was given, in order; one for a label that says no more than a kind. See LabelInfo."""
        info = self.label_info(name)
        if info.boxes:
            return info.boxes
        start, stop = info.box or ((0, 0, 0), self.shape_zyx)
        marked = round(info.foreground * Box.whole(self.shape_zyx).size)
        about = info.model_dump(include={"kind", "coverage", "key"})
        made_by = {"model": info.model.uri} if info.model else {}
        lineage = {**info.lineage, **made_by}
        return (
            LabelBox(
                version=1, start=start, stop=stop, marked=marked, added=marked, removed=0, lineage=lineage, **about
            ),
        )

    def label(self, name: str) -> zarr.Array[Any]:
        """Level 0 of a label: uint8, p = value / 255."""
        self.label_info(name)
        return array_of(self.group, f"labels/{name}/0")

    def label_level(self, name: str, level: int) -> zarr.Array[Any]:
        """A level of a label; each has the shape of the image's level of that number."""
        return array_of(self.group, f"labels/{name}/{level}")

    def read_image(self, box: Box, level: int = 0) -> npt.NDArray[Any]:
        """Voxels of a level of the image inside a box of it, [z, y, x]; ScanError when a stored chunk is damaged."""
        return self._read(self.level(level), box)

    def read_label(self, name: str, box: Box) -> npt.NDArray[np.uint8]:
        """Voxels of a label inside a box, [z, y, x]; ScanError when there is no such label or a stored chunk is damaged."""
        return self._read(self.label(name), box)

    def _read(self, array: zarr.Array[Any], box: Box) -> npt.NDArray[Any]:
        return self.read_stored(ShardFormat.of(array), box)

    def read_stored(self, form: ShardFormat, box: Box, out: npt.NDArray[Any] | None = None) -> npt.NDArray[Any]:
        """See ShardFormat.read_box; ScanError, which names the array and the box, when a stored chunk is damaged."""
        try:
            return form.read_box(box, out)
        except (ValueError, RuntimeError) as error:
            raise ScanError(
                f"{self.url} is damaged: {form.url}, voxels {box.start} to {box.stop} (z, y, x), cannot be decoded ({error}). "
                f"Say: perfuse scan verify {self.url}"
            ) from error

    @property
    def organ(self) -> LabelInfo | None:
        """The label that says where the organ is; None: it was not marked, and counts as everywhere."""
        return self.labels().get(ORGAN)

    @property
    def organ_identity(self) -> list[str]:
        """Digests of the image and of the organ mask: what statistics inside the organ follow from. Empty without a mask."""
        organ = self.organ
        return [] if organ is None else [self.info.digest, organ.digest]

    def histogram(self) -> npt.NDArray[np.int64]:
        """Exact counts per bin of intensity (see `intensity`), inside the organ where it is marked, else of all voxels.

        ScanError when the organ mask was changed after its statistics were made.
        """
        made_from = self.organ_identity
        if not made_from:
            return measured.everywhere(self.group)
        return measured.inside_organ(self.group, made_from, measured.ORGAN_HISTOGRAM, self.url)

    def percentile(self, percent: float) -> float:
        """The intensity below or at which `percent` % of the voxels lie that `histogram` counts: exact for integers."""
        return intensity.percentile(self.histogram(), np.dtype(self.info.dtype), percent)

    def slice_names(self) -> tuple[str, ...]:
        """The names of the slices that the image was made from, in order; empty when they were not kept."""
        if "perfuse/slice_names" not in self.group:
            return ()
        rows = np.asarray(array_of(self.group, "perfuse/slice_names")[:], np.uint8)
        return tuple(row.tobytes().rstrip(b"\0").decode() for row in rows)

    def organ_share(self) -> npt.NDArray[np.int64] | None:
        """How many voxels of each chunk of level 0 are organ: [layers, rows, columns]; None where it is not marked."""
        made_from = self.organ_identity
        return measured.inside_organ(self.group, made_from, measured.ORGAN_SHARE, self.url) if made_from else None

    def read_known(self, name: str, box: Box, values: npt.NDArray[np.uint8] | None = None) -> npt.NDArray[np.bool_]:
        """Where a label is known inside `box`: bool[z, y, x]; what the last of the label's boxes over each voxel says.

        Dense and soft boxes: everywhere. Sparse: marked voxels, and background stated by the organ mask.
        values: the label's voxels in that box, when the caller has them already.
        """
        known, stated = np.zeros(box.shape, np.bool_), None
        for given, where in self._given(name, box):
            if given.kind != "sparse":
                known[where] = True
                continue
            if stated is None:
                stated = ((self.read_label(name, box) if values is None else values) > 0) | self._outside_organ(box)
            known[where] = stated[where]
        return known

    def read_given(self, name: str, box: Box) -> npt.NDArray[np.bool_]:
        """Where a label was given inside `box`, known or not: bool[z, y, x]."""
        covered = np.zeros(box.shape, np.bool_)
        for _, where in self._given(name, box):
            covered[where] = True
        return covered

    def _given(self, name: str, box: Box) -> Iterator[tuple[LabelBox, tuple[slice, slice, slice]]]:
        """The label's boxes that meet `box`, in order, and where in it."""
        for given in self.label_boxes(name):
            inside = given.box.intersect(box)
            if not inside.empty:
                yield given, inside.relative_to(box.start).slices

    def _outside_organ(self, box: Box) -> npt.NDArray[np.bool_]:
        if self._summary(ORGAN, self.group.get(f"labels/{ORGAN}")) is None:
            return np.zeros(box.shape, np.bool_)
        outside: npt.NDArray[np.bool_] = self.read_label(ORGAN, box) == 0
        return outside


Summary = TypeVar("Summary", bound=BaseModel)


def _validated(kind: type[Summary], summary: dict[str, Any], where: str) -> Summary:
    try:
        return kind.model_validate(summary)
    except ValidationError as error:
        raise ScanError(
            f"The summary of {where} is not one that this version of perfuse reads: {error.errors()[0]['msg']} "
            f"({'.'.join(map(str, error.errors()[0]['loc']))}). Use the version that made it, or make it again."
        ) from error


def _group(group: zarr.Group, path: str) -> zarr.Group:
    found = group.get(path)
    if not isinstance(found, zarr.Group):
        raise ScanError(f"{group.store_path} lacks the group {path}: the scan is damaged. Ingest it again.")
    return found
