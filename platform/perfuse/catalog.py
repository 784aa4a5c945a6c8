"""Scans as their users know them: specimen, donor, labels, coverage, validity; and splits by donor."""

from collections.abc import Iterable, Sequence
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
import zarr
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from perfuse import storage, volumes
from perfuse.errors import RecipeError, ScanError
from perfuse.geometry import Box, Index3, Spacing, index3

SUFFIX = ".ome.zarr"
ORGAN = "organ"
"""Name of the label group that says where the organ is."""


class ModelRef(BaseModel):
    """The bundle that made a soft label."""

    model_config = ConfigDict(extra="forbid")
    uri: str
    forward_digest: str
    bundle_digest: str
    threshold: int
    precision: str


class LabelInfo(BaseModel):
    """What is known of one label group; stored as its attribute `perfuse`, last, when the label is complete."""

    model_config = ConfigDict(extra="forbid")
    name: str
    kind: Literal["dense", "sparse", "soft"]
    coverage: float = Field(1.0, gt=0, le=1)
    """Share of the vessels that is marked."""
    foreground: float
    """Share of voxels with p ≥ 0.5."""
    digest: str
    """Root over the done-marks of level 0."""
    key: str = ""
    """Digest of what the label was made from; the same key is never computed twice."""
    box: tuple[Index3, Index3] | None = None
    """Where the label was given; unknown elsewhere. None: everywhere."""
    model: ModelRef | None = None
    lineage: dict[str, Any] = {}
    complete: Literal[True] = True


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
        return _array(self.group, "0")

    @property
    def levels(self) -> int:
        """How many levels the image pyramid has."""
        return len(self.group.attrs["ome"]["multiscales"][0]["datasets"])  # type: ignore[index,call-overload,arg-type]

    def labels(self) -> dict[str, LabelInfo]:
        """The complete labels of this scan, by name."""
        if "labels" not in self.group:
            return {}
        found = {}
        for name, child in _group(self.group, "labels").groups():
            summary = child.attrs.get("perfuse")
            if isinstance(summary, dict) and summary.get("complete") is True:
                found[name] = _validated(LabelInfo, summary, f"{self.url}/labels/{name}")
        return dict(sorted(found.items()))

    def label_info(self, name: str) -> LabelInfo:
        """What is known of one label; ScanError naming those there are."""
        labels = self.labels()
        if name not in labels:
            there = ", ".join(labels) or "none"
            raise ScanError(f"Scan {self.url} has no label {name!r}. Its labels: {there}.")
        return labels[name]

    def label(self, name: str) -> zarr.Array[Any]:
        """Level 0 of a label: uint8, p = value / 255."""
        self.label_info(name)
        return _array(self.group, f"labels/{name}/0")

    def histogram(self) -> npt.NDArray[np.int64]:
        """Exact counts per intensity of level 0: 256 bins for uint8, 65,536 for uint16."""
        return np.asarray(_array(self.group, "perfuse/histogram")[:], np.int64)

    def percentile(self, percent: float) -> float:
        """The intensity below or at which `percent` % of all voxels lie, exactly, from the histogram."""
        counts = np.cumsum(self.histogram())
        return float(np.searchsorted(counts, percent / 100 * counts[-1]))

    def read_known(self, name: str, box: Box, values: npt.NDArray[np.uint8] | None = None) -> npt.NDArray[np.bool_]:
        """Where a label is known inside `box`: bool[z, y, x].

        Dense and soft: everywhere that it was given. Sparse: marked voxels, and background stated by the organ mask.
        values: the label's voxels in that box, when the caller has them already.
        """
        info = self.label_info(name)
        known = np.ones(box.shape, np.bool_)
        if info.kind == "sparse":
            marked = (np.asarray(self.label(name)[box.slices]) if values is None else values) > 0
            known = marked | self._outside_organ(box)
        if info.box is not None:
            given = np.zeros(box.shape, np.bool_)
            inside = Box(*info.box).intersect(box)
            if not inside.empty:
                given[inside.relative_to(box.start).slices] = True
            known &= given
        return known

    def _outside_organ(self, box: Box) -> npt.NDArray[np.bool_]:
        if ORGAN not in self.labels():
            return np.zeros(box.shape, np.bool_)
        outside: npt.NDArray[np.bool_] = np.asarray(self.label(ORGAN)[box.slices]) == 0
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


def _array(group: zarr.Group, path: str) -> zarr.Array[Any]:
    found = group.get(path)
    if not isinstance(found, zarr.Array):
        raise ScanError(f"{group.store_path} lacks the array {path}: the scan is damaged. Ingest it again.")
    return found


def _group(group: zarr.Group, path: str) -> zarr.Group:
    found = group.get(path)
    if not isinstance(found, zarr.Group):
        raise ScanError(f"{group.store_path} lacks the group {path}: the scan is damaged. Ingest it again.")
    return found


def find_scans(root_url: str) -> list[Scan]:
    """All complete scans directly under a URL, by id; ScanError when there are none."""
    root = storage.normal(root_url)
    with storage.reaching(root):
        files = storage.filesystem(root)
        names = files.ls(root, detail=False) if files.exists(root) else []
    scans: list[Scan] = []
    for name in sorted(storage.name_of(str(n)) for n in names):
        if name.endswith(SUFFIX):
            scans.extend(_complete(storage.join(root, name)))
    if not scans:
        raise ScanError(f"No complete scans (folders named *{SUFFIX}) under {root}. Make some with `perfuse ingest`.")
    return scans


def _complete(url: str) -> Iterable[Scan]:
    try:
        return [Scan.open(url)]
    except ScanError:
        return []


class Split(BaseModel):
    """Which scans train, which select, which stay unseen; no donor stands on two sides."""

    model_config = ConfigDict(arbitrary_types_allowed=True, frozen=True)
    train: tuple[Scan, ...]
    validation: tuple[Scan, ...]
    holdout: tuple[Scan, ...]


def split_by_donor(
    scans: Sequence[Scan],
    *,
    labels: Sequence[str],
    train: Sequence[str] = (),
    validation: Sequence[str] = (),
    holdout: Sequence[str] = (),
) -> Split:
    """Divide scans by specimen, never dividing a donor.

    labels: names in order of preference; a scan is labelled when it has one of them.
    train: specimens; empty means every labelled scan that is not held out.
    validation: specimens; empty means one dense labelled donor, the last in order of specimen.
    holdout: specimens that training and selection must not see, with all else of their donors.
    Raises RecipeError when a specimen is unknown or unlabelled, a donor would stand on two sides, or a side is empty.
    """
    labelled = [s for s in scans if set(labels) & set(s.labels())]
    _check_named([*train, *validation], labelled, labels)
    _check_named(holdout, scans, ())
    held = [s for s in scans if s.info.specimen in holdout]
    held_donors = {s.info.donor for s in held}
    free = [s for s in labelled if s.info.donor not in held_donors]
    chosen = [s for s in labelled if s.info.specimen in validation] or _choose_validation(free, labels, train)
    donors = {s.info.donor for s in chosen}
    rest = [s for s in labelled if s.info.specimen in train] or [s for s in free if s.info.donor not in donors]
    _check_disjoint(rest, chosen, held)
    if not rest or not chosen:
        raise RecipeError(
            f"Training needs labelled scans of at least two donors (one to train on, one to select by); found "
            f"{len({s.info.donor for s in free})} with labels {', '.join(labels)} after holding out {list(holdout)}."
        )
    return Split(train=tuple(rest), validation=tuple(chosen), holdout=tuple(held))


def _check_named(names: Sequence[str], scans: Sequence[Scan], labels: Sequence[str]) -> None:
    there = sorted({s.info.specimen for s in scans})
    for name in names:
        if name not in there:
            which = f"with one of the labels {', '.join(labels)}" if labels else "here"
            raise RecipeError(f"No specimen {name!r} {which}. There are: {', '.join(there) or 'none'}.")


def _choose_validation(free: Sequence[Scan], labels: Sequence[str], train: Sequence[str]) -> list[Scan]:
    training = {s.info.donor for s in free if s.info.specimen in train}
    dense = [s for s in free if s.info.donor not in training and _is_dense(s, labels)]
    if not dense:
        return []
    donor = max(dense, key=lambda s: s.info.specimen).info.donor
    return [s for s in dense if s.info.donor == donor]


def _is_dense(scan: Scan, labels: Sequence[str]) -> bool:
    infos = scan.labels()
    return any(name in infos and infos[name].kind == "dense" for name in labels)


def _check_disjoint(*sides: Sequence[Scan]) -> None:
    seen: dict[str, int] = {}
    for number, side in enumerate(sides):
        for scan in side:
            if seen.setdefault(scan.info.donor, number) != number:
                raise RecipeError(
                    f"Donor {scan.info.donor!r} (specimen {scan.info.specimen!r}) would stand on two sides of "
                    "the split. Splits are by donor: put all specimens of a donor on one side."
                )


def preferred_label(scan: Scan, names: Sequence[str]) -> str:
    """The first of `names` that the scan holds; ScanError when it holds none."""
    infos = scan.labels()
    for name in names:
        if name in infos:
            return name
    raise ScanError(
        f"Scan {scan.url} has none of the labels {', '.join(names)}. Its labels: {', '.join(infos) or 'none'}."
    )


def shape_of(array: zarr.Array[Any]) -> Index3:
    """An array's shape as z, y, x."""
    return index3(array.shape)
