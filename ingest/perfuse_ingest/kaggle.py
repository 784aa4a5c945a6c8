"""Kaggle's competition SenNet + HOA 2023 (vessels of kidneys in 3D) as one source: every dataset a scan, with its labels.

FOLDER/train/DATASET/images/NNNN.tif, FOLDER/train/DATASET/labels/NNNN.tif, FOLDER/train_rles.csv; FOLDER/test/DATASET/images.
"""

from collections.abc import Callable, Sequence, Sized
from dataclasses import dataclass
from math import prod
from typing import TypeVar

from perfuse import storage
from perfuse.catalog import SUFFIX, LabelInfo
from perfuse.console import say
from perfuse.errors import PerfuseError, SourceError
from perfuse_ingest.ingest import ingest
from perfuse_ingest.labels import add_labels
from perfuse_ingest.rle import datasets
from perfuse_ingest.sources import open_source

TABLE = "train_rles.csv"
ORGAN = "kidney"
T = TypeVar("T")


@dataclass(frozen=True)
class Dataset:
    """What the organisers say of a dataset."""

    specimen: str
    donor: str
    voxel_um: float
    coverage: float
    """Share of the vessels that its labels mark."""
    images: str | None = None
    """The dataset that has the images for its labels; None: itself."""


DATASETS = {
    "kidney_1_dense": Dataset("kidney_1", "kidney_1", 50.0, 1.0),
    "kidney_1_voi": Dataset("kidney_1", "kidney_1", 5.2, 1.0),
    "kidney_2": Dataset("kidney_2", "kidney_2", 50.0, 0.65),
    "kidney_3_sparse": Dataset("kidney_3", "LADAF-2020-27", 50.16, 0.85),
    "kidney_3_dense": Dataset("kidney_3", "LADAF-2020-27", 50.16, 1.0, images="kidney_3_sparse"),
}
"""In the order in which they are ingested: a dense slab after the sparse whole that it lies in."""


@dataclass(frozen=True)
class Step:
    """One dataset: its scan, or labels for the scan of another."""

    dataset: str
    about: Dataset
    scan_url: str
    images: str | None
    """URL of its slices; None where it holds labels only."""
    labels: str | None
    """URL of its masks, or TABLE:DATASET; None where it has no labels."""


def plan(folder: str, root_url: str) -> list[Step]:
    """What is to be done with a competition folder, in order; nothing is written.

    Raises SourceError when the folder holds none of the datasets that are known.
    """
    folder = storage.normal(folder)
    steps = []
    for name, about in DATASETS.items():
        images = storage.join(folder, "train", name, "images")
        has_images = about.images is None and storage.exists(images)
        labels = _labels(folder, name) if has_images or about.images is not None else None
        if has_images or labels is not None:
            scan = storage.join(root_url, (about.images or name) + SUFFIX)
            steps.append(Step(name, about, scan, images if has_images else None, labels))
    if not steps:
        raise SourceError(
            f"{folder} holds none of train/{', train/'.join(DATASETS)}. Give the competition's own folder."
        )
    return steps


def described(step: Step) -> str:
    """A line of what would be made: scan, shape, bytes, labels, coverage. Raises SourceError, SliceError for bad images."""
    line = f"{step.dataset} → {step.scan_url}: "
    if step.images is not None:
        stack = open_source(step.images)
        size = prod(stack.shape_zyx) * stack.dtype.itemsize
        line += f"{' × '.join(map(str, stack.shape_zyx))} {stack.dtype}, {size:,} bytes, {step.about.voxel_um:g} µm; "
    return line + (f"labels {step.labels}, coverage {step.about.coverage:g}" if step.labels else "no labels")


def _labels(folder: str, name: str) -> str | None:
    """Its masks; where there are none, its rows of the table."""
    masks, table = storage.join(folder, "train", name, "labels"), storage.join(folder, TABLE)
    if storage.exists(masks):
        return masks
    return f"{table}:{name}" if storage.exists(table) and name in datasets(table) else None


def strangers(folder: str) -> list[str]:
    """Folders of images of which no voxel size and donor is known: they are passed over."""
    folder = storage.normal(folder)
    found = []
    for part in ("train", "test"):
        home = storage.join(folder, part)
        entries = storage.filesystem(home).ls(home, detail=True) if storage.exists(home) else []
        names = sorted(storage.name_of(str(e["name"])) for e in entries if e["type"] == "directory")
        known = DATASETS if part == "train" else {}
        found += [storage.join(home, name, "images") for name in names if name not in known]
    return [url for url in found if storage.exists(url)]


def ingest_folder(folder: str, root_url: str, *, name: str) -> dict[str, LabelInfo | None]:
    """Ingest every known dataset of a competition folder under `root_url`, and add its labels as `name`.

    Gives the label of each dataset, None where it has none. The same call resumes. What is wrong with one dataset keeps
    none of the others from being done; at the end SourceError names all that failed.
    """
    for url in strangers(folder):
        say(f"passed over {url}: its voxel size and donor are not known; it can be ingested by `perfuse ingest`")
    failed: dict[str, PerfuseError] = {}
    done = for_each(plan(folder, root_url), lambda step: _take(step, name, failed), failed)
    insist_on_all(done, failed)
    return done


def for_each(steps: Sequence[Step], work: Callable[[Step], T], failed: dict[str, PerfuseError]) -> dict[str, T]:
    """What `work` gives for each dataset; what it cannot do is said, and put down in `failed`."""
    done = {}
    for step in steps:
        try:
            done[step.dataset] = work(step)
        except PerfuseError as error:
            failed[step.dataset] = error
            say(f"{step.dataset} failed: {error}")
    return done


def insist_on_all(done: Sized, failed: dict[str, PerfuseError]) -> None:
    """SourceError naming the datasets that failed, if any did."""
    if failed:
        raise SourceError(
            f"{len(failed)} of {len(done) + len(failed)} datasets failed. "
            + " ".join(f"{dataset}: {error}" for dataset, error in failed.items())
            + " Mend these and run the same command again; what is done is not done again."
        )


def _take(step: Step, name: str, failed: dict[str, PerfuseError]) -> LabelInfo | None:
    about, size = step.about, step.about.voxel_um
    if step.images is not None:
        ingest(
            step.images,
            step.scan_url,
            voxel_size_um=(size, size, size),
            specimen=about.specimen,
            organ=ORGAN,
            donor=about.donor,
        )
    elif about.images in failed or not storage.exists(step.scan_url):
        why = "which failed" if about.images in failed else "which is not there"
        raise SourceError(f"Its labels belong into the scan of {about.images}, {why}.")
    if step.labels is None:
        return None
    beside = "" if TABLE in step.labels else f" (and not from {TABLE})"
    say(f"{step.dataset}: labels from {step.labels}{beside}")
    return add_labels(step.scan_url, step.labels, name=name, coverage=about.coverage)
