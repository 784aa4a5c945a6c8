"""Writing a label group: an OME-Zarr label pyramid whose level 0 is written shard by shard, each by one task."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from perfuse import storage, volumes
from perfuse.catalog import LabelInfo, Scan
from perfuse.errors import ScanError
from perfuse.geometry import blocks, index3
from perfuse.parallel import in_order
from perfuse.shards import ShardFormat

Mask = npt.NDArray[np.uint8]

IMAGE_LABEL = {
    "colors": [{"label-value": 0, "rgba": [0, 0, 0, 0]}, {"label-value": 255, "rgba": [230, 60, 40, 255]}],
    "source": {"image": "../../"},
}
"""How a viewer shows a label, and of which image it is: metadata of OME-Zarr."""


NEXT = "perfuse_next"
"""Attribute of a label into which a box is being put: the summary that it will have. It has no other meanwhile."""

_MADE_BY = "made_by"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def check_name(name: str) -> None:
    """ScanError unless a label, and with it a model, can have this name: it becomes part of paths."""
    if not _NAME.fullmatch(name):
        raise ScanError(
            f"A name is made of letters, digits, dots, dashes and underscores, and begins with a letter or digit; got {name!r}."
        )


def check_output(scan: Scan, name: str) -> None:
    """ScanError unless a model may write a label of this name: one that a person gave is never overwritten."""
    check_name(name)
    _refuse_human(scan.group.get(f"labels/{name}"), name, scan.url, "")


class LabelWriter:
    """One label of a scan in the making. Unfinished until `finish`; a killed one goes on where it stopped.

    levels: of the scan's pyramid. key: digest of what the label is made from. Work of another key under this name is
    discarded, unless people had a hand in that label: then ScanError.
    """

    def __init__(self, scan_url: str, levels: list[volumes.Level], name: str, key: str):
        check_name(name)
        self.scan_url, self.name, self.key = storage.normal(scan_url), name, key
        self.levels = levels
        root = volumes.open_group(self.scan_url, "r+")
        labels = root.require_group("labels")
        existing = labels.get(name)
        _refuse_human(existing, name, self.scan_url, key)
        if not isinstance(existing, zarr.Group) or existing.attrs.get("perfuse_key") != key:
            if isinstance(existing, zarr.Group):
                existing.attrs.pop("perfuse", None)
            group, _ = volumes.create_pyramid(labels, name, self.levels, "uint8", ome={"image-label": IMAGE_LABEL})
            group.attrs["perfuse_key"] = key
            existing = group
        self.group = existing
        self.arrays = [level_of(self.group, k) for k in range(len(self.levels))]
        self.tasks = list(blocks(levels[0].shape_zyx, index3(self.arrays[0].shards or self.arrays[0].chunks)))
        self._marks = volumes.DoneMarks(root.require_group("perfuse/labels"), name, len(self.tasks), key)
        self._root = root

    @property
    def complete(self) -> LabelInfo | None:
        """The label's summary when it is finished, else None."""
        summary = self.group.attrs.get("perfuse")
        return LabelInfo.model_validate(summary) if isinstance(summary, dict) else None

    def todo(self) -> list[int]:
        """Tasks whose shards are missing, torn or not yet written."""
        intact = self._marks.intact(self._stored)
        return [i for i in range(len(self.tasks)) if i not in intact]

    def _stored(self, task: int) -> bytes:
        return volumes.stored_digests(self.arrays[0], self.tasks[task])

    def before(self, task: int) -> Mask:
        """What stands in the shard that a task owns: nothing."""
        return np.zeros(self.tasks[task].shape, np.uint8)

    def write(self, task: int, block: Mask) -> None:
        """Write the shard that a task owns, whole; then its done-mark."""
        self._marks.mark(task, volumes.write_shards(self.arrays[0], self.tasks[task], block))

    def finish(self, info: Callable[[float, str], LabelInfo]) -> LabelInfo:
        """Make the coarser levels, then write the summary that makes the label visible.

        info: builds the summary from the foreground share and the digest.
        """
        volumes.fill_coarser(self.arrays, self.levels, "max")
        form = ShardFormat.of(self.arrays[0])
        foreground = sum(in_order(lambda box: np.count_nonzero(form.read(box) >= 128), self.tasks))
        summary = info(foreground / float(np.prod(self.arrays[0].shape)), self._marks.root())
        self.group.attrs["perfuse"] = summary.model_dump(mode="json")
        list_labels(self._root.require_group("labels"))
        return summary

    def discard(self) -> None:
        """Remove what was written."""
        for path in (f"labels/{self.name}", f"perfuse/labels/{self.name}"):
            storage.remove_tree(storage.join(self.scan_url, path))


def list_labels(labels: zarr.Group) -> None:
    """Name the complete labels in the metadata of their group, as OME-Zarr asks."""
    names = sorted(name for name, group in labels.groups() if "perfuse" in group.attrs)
    labels.attrs["ome"] = {"version": "0.5", "labels": names}


def level_of(group: zarr.Group, level: int) -> zarr.Array[Any]:
    """The array of a label's level; ScanError when it is missing."""
    array = group[str(level)]
    if not isinstance(array, zarr.Array):
        raise ScanError(f"{group.store_path} is damaged: level {level} is no array.")
    return array


def made_by_program(verb: str) -> dict[str, str]:
    """What the lineage of a label holds that a program made without a model, and that a person's may replace."""
    return {_MADE_BY: verb}


def given_by_person(info: LabelInfo) -> bool:
    """True for labels in which people had a hand: no program overwrites them."""
    return info.model is None and _MADE_BY not in info.lineage


def own_threshold(info: LabelInfo) -> int:
    """From here on, of 255, a voxel of a label is vessel: that of the model that made it, else ½."""
    return info.model.threshold if info.model is not None else 128


def _refuse_human(existing: Any, name: str, scan_url: str, key: str) -> None:
    """ScanError when a label is there in which people had a hand, unless it was made from `key`."""
    there = existing.attrs.asdict() if isinstance(existing, zarr.Group) else {}
    summary = there.get("perfuse", there.get(NEXT))
    if not isinstance(summary, dict):
        return
    info = LabelInfo.model_validate(summary)
    if given_by_person(info) and (info.key or there.get("perfuse_key")) != key:
        raise ScanError(
            f"Label {name!r} of {scan_url} was given by a person and differs from what would be written; it is not "
            "overwritten. Choose another name; a part of it is corrected by `perfuse labels add … --at Z,Y,X`."
        )


def writer_for(scan: Scan, name: str, key: str) -> LabelWriter:
    """A writer for a label of a complete scan."""
    levels = volumes.pyramid_levels(scan.shape_zyx, scan.info.voxel_size_um, scan.info.origin_um)
    return LabelWriter(scan.url, levels, name, key)
