"""The catalogue of the Human Organ Atlas, out of the metadata that hoa-tools publishes.

Only what says where a dataset lies and how to cite it is taken from a record, key by key, while it is parsed. What the
records tell of donors' lives and deaths is not kept, not shown and not stored: of a donor there is nothing but the id.
"""

import difflib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from math import prod
from typing import Any

from perfuse import storage
from perfuse.errors import PerfuseError, SourceError
from perfuse.geometry import Spacing

PREFIX = "hoa:"
ROOT_VARIABLE = "PERFUSE_HOA_ROOT"
"""Where a copy of the atlas lies, as a path or URL; its own bucket when not set."""
_TAKEN = frozenset(
    {
        *("name", "dataset_type", "donor", "id", "sample", "organ", "organ_context"),
        *("data", "shape", "voxel_size_um", "gcs_url", "citation", "title", "doi", "author_list"),
    }
)
_FORMATS = {"n5": "N5", "zarr": "OME-Zarr"}
_ASSUMED_ITEM_BYTES = 2
"""The catalogue does not state the dtype; the atlas stores 16 bits a voxel."""


@dataclass(frozen=True)
class Dataset:
    """One volume of the atlas, as its catalogue describes it."""

    name: str
    donor: str
    specimen: str
    """Donor and organ, with the side or part where the catalogue tells several organs of a donor apart."""
    organ: str
    kind: str
    """`complete organ`, or `VOI`: a zoom into one."""
    voxel_size_um: float
    extent: tuple[int, ...]
    """Voxels along three axes, in the order of the catalogue, which is not the same for all; the volume itself says."""
    format: str | None
    """N5 or OME-Zarr; None where nothing is linked."""
    path: str
    """Below the root of the atlas."""
    bucket: str
    doi: str | None
    citation: str

    @property
    def size_gb(self) -> float:
        """Of the finest level, not compressed, at 16 bits a voxel."""
        return prod(self.extent) * _ASSUMED_ITEM_BYTES / 1e9


@dataclass(frozen=True)
class Resolved:
    """What `ingest` needs to know of a dataset."""

    url: str
    level: int
    voxel_size_um: Spacing
    """z, y, x; of the level."""
    donor: str
    specimen: str
    organ: str
    lineage: dict[str, str | int]


def is_hoa(source: str) -> bool:
    """True for hoa:NAME."""
    return source.startswith(PREFIX)


def find(organs: Sequence[str] = ()) -> list[Dataset]:
    """Datasets of these organs, of all when none is named, by name. Raises SourceError for an unknown organ."""
    datasets = _catalogue()
    known = sorted({d.organ for d in datasets.values()})
    strange = [organ for organ in organs if organ.lower() not in map(str.lower, known)]
    if strange:
        raise SourceError(f"The Human Organ Atlas has no organ {strange[0]!r}. It has {', '.join(known)}.")
    wanted = {organ.lower() for organ in organs or known}
    return [d for _, d in sorted(datasets.items()) if d.organ.lower() in wanted]


def resolve(source: str, *, level: int = 0) -> Resolved:
    """Where hoa:NAME lies and what it is. level: 0 is the finest, each further one is half as fine.

    Raises SourceError, with the nearest names, for one that the catalogue does not hold.
    """
    name = source.removeprefix(PREFIX)
    datasets = _catalogue()
    if name not in datasets:
        near = difflib.get_close_matches(name, datasets, n=3, cutoff=0.3)
        hint = f"Near it are {', '.join(near)}. " if near else ""
        raise SourceError(f"The Human Organ Atlas has no dataset {name!r}. {hint}`perfuse hoa ls` lists all.")
    one = datasets[name]
    if level < 0 or one.format is None:
        why = f"has no level {level}" if one.format else "has no volume in chunks that could be read"
        raise SourceError(f"{PREFIX}{name} {why}. Choose another (`perfuse hoa ls`).")
    size = one.voxel_size_um * 2**level
    lineage: dict[str, str | int] = {
        "catalogue": f"Human Organ Atlas (hoa-tools {version('hoa-tools')})",
        "dataset": name,
        "level": level,
        "citation": one.citation,
        **({"doi": one.doi} if one.doi else {}),
    }
    root = os.environ.get(ROOT_VARIABLE) or f"gs://{one.bucket}"
    return Resolved(
        storage.join(root, one.path), level, (size, size, size), one.donor, one.specimen, one.organ, lineage
    )


@cache
def _catalogue() -> dict[str, Dataset]:
    """The records are files of the package; the library itself, which reads all of them whole, is not imported."""
    try:
        folder = files("hoa_tools") / "data" / "metadata" / "metadata"
    except ModuleNotFoundError as error:
        raise PerfuseError(
            "The catalogue of the Human Organ Atlas needs hoa-tools: pip install 'perfuse[hoa]'."
        ) from error
    found = [_dataset(_parsed(f.read_text("utf-8"))) for f in folder.iterdir() if f.name.endswith(".json")]
    return {one.name: one for one in found}


def _parsed(text: str) -> dict[str, Any]:
    """A record without any key but those of `_TAKEN`: the others are dropped as the parser meets them."""
    return dict(json.loads(text, object_pairs_hook=lambda pairs: {k: v for k, v in pairs if k in _TAKEN}))


def _dataset(record: dict[str, Any]) -> Dataset:
    sample, data, cited = record["sample"], record["data"], record["citation"]
    donor = record["donor"]["id"]
    stored, _, place = (data.get("gcs_url") or "").partition("://")
    bucket, _, path = place.removeprefix("gs://").strip("/").partition("/")
    doi = cited.get("doi")
    source = f" https://doi.org/{doi}" if doi else ""
    return Dataset(
        name=record["name"],
        donor=donor,
        specimen="_".join(filter(None, (donor, sample["organ"], sample.get("organ_context")))),
        organ=sample["organ"],
        kind="complete organ" if record["dataset_type"] == "overview" else "VOI",
        voxel_size_um=float(data["voxel_size_um"]),
        extent=tuple(int(n) for n in data["shape"]),
        format=_FORMATS.get(stored),
        path=path,
        bucket=bucket,
        doi=doi,
        citation=f"{', '.join(cited['author_list'])}. {cited['title']}{source}",
    )
