"""Putting a box into a label that is complete, so that it is never torn.

First the shards that the box meets are staged beside the label, whole: old voxels outside the box, new ones inside. The
label stays as it is, and visible. Then its summary gives way to the one that it will have (`NEXT`), the staged shards are
put in their places, and that summary becomes visible. Whoever comes after a process that was killed meanwhile can end it.
"""

from typing import Any

import numpy as np
import zarr

from perfuse import storage, volumes
from perfuse.catalog import LabelInfo, Scan
from perfuse.errors import ScanError
from perfuse.geometry import Box, blocks, index3
from perfuse.labels import NEXT, Mask, level_of, list_labels
from perfuse.validity import LabelBox, summary, visible

STAGED = "label-"
"""How the names of what is staged begin, beside the logits of predictions."""


class LabelUpdate:
    """One box of a label in the making; a killed one goes on where it stopped.

    key: digest of what the box is made from.
    """

    def __init__(self, scan: Scan, name: str, box: Box, key: str) -> None:
        self.scan, self.name, self.box, self.key = scan, name, box, key
        self._old = scan.label_info(name)
        self._stage = _Stage.made(scan.url, name, storage.digest_json([self._old.digest, key]))
        self.tasks = self._stage.tasks
        self._met = [i for i, task in enumerate(self.tasks) if not task.intersect(box).empty]

    def todo(self) -> list[int]:
        """Tasks whose shards the box meets and that are not staged yet."""
        staged = self._stage.intact()
        return [i for i in self._met if i not in staged]

    def before(self, task: int) -> Mask:
        """What stands in the shard that a task owns."""
        return self.scan.read_label(self.name, self.tasks[task])

    def write(self, task: int, block: Mask) -> None:
        """Stage the shard that a task owns, whole."""
        self._stage.write(task, block)

    def discard(self) -> None:
        """Remove what was staged: the label stays what it is."""
        discard_stage(self.scan.url, self.name)

    def counted(self, about: dict[str, Any]) -> LabelBox:
        """The box as it will be listed, the staged voxels counted. about: kind, coverage, author, lineage."""
        marked, added, removed = np.sum(
            [self._difference(self.tasks[i].intersect(self.box)) for i in self._met], axis=0
        )
        return LabelBox(
            version=self.scan.label_boxes(self.name)[-1].version + 1,
            start=self.box.start,
            stop=self.box.stop,
            marked=marked,
            added=added,
            removed=removed,
            key=self.key,
            **about,
        )

    def _difference(self, inside: Box) -> tuple[int, ...]:
        """Voxels that are marked now, that became so, and that ceased to be."""
        new, old = np.asarray(self._stage.array[inside.slices]) >= 128, self._marked(inside)
        return tuple(int(np.count_nonzero(n)) for n in (new, new & ~old, old & ~new))

    def _marked(self, box: Box) -> Any:
        return self.scan.read_label(self.name, box) >= 128

    def apply(self, new: LabelBox) -> LabelInfo:
        """Put the staged shards in their places, and the box at the end of the label's boxes."""
        boxes = (*self._left_over(), new)
        info = LabelInfo(
            name=self.name,
            **summary(boxes, self.scan.shape_zyx),
            digest="",
            key=storage.digest_json([self._old.key, self.key]),
            boxes=boxes,
            lineage=new.lineage,
        )
        group, marks = _label(self.scan.url, self.name)
        digests = [new or old for new, old in zip(self._stage.digests(), marks.digests(), strict=True)]
        info = info.model_copy(update={"digest": info.digest_over(volumes.merkle(digests))})
        _replace(group, "perfuse", NEXT, info.model_dump(mode="json"))
        roll_forward(self.scan, self.name)
        return info

    def _left_over(self) -> list[LabelBox]:
        """The boxes that were given before, each with its marks that the new one does not cover."""
        boxes = self.scan.label_boxes(self.name)
        parts = visible([b.box for b in boxes])
        return [
            b.model_copy(update={"marked": b.marked - sum(self._count(p.intersect(self.box)) for p in left)})
            for b, left in zip(boxes, parts, strict=True)
        ]

    def _count(self, part: Box) -> int:
        cuts = (self.tasks[i].intersect(part) for i in self._met)
        return sum(int(np.count_nonzero(self._marked(c))) for c in cuts if not c.empty)


class _Stage:
    """Shards for a label's level 0, cut and compressed as it is, and their done-marks."""

    def __init__(self, group: zarr.Group) -> None:
        self.array = level_of(group, 0)
        shard = index3(self.array.shards or self.array.chunks)
        self.tasks = list(blocks(index3(self.array.shape), shard))
        self._marks = volumes.DoneMarks(group, "done", len(self.tasks), str(group.attrs["key"]))

    @classmethod
    def made(cls, scan_url: str, name: str, key: str) -> "_Stage":
        """The stage of a label, emptied when it was made for another key."""
        url = _stage_url(scan_url, name)
        group = _opened(url)
        if group is None or group.attrs.get("key") != key:
            group = volumes.open_group(url, "w", attributes={"key": key})
        if "0" not in group:
            metadata = storage.read_bytes(storage.join(scan_url, "labels", name, "0", "zarr.json"))
            storage.write_bytes(storage.join(url, "0", "zarr.json"), metadata)
        return cls(group)

    def _stored(self, task: int) -> bytes:
        return volumes.stored_digests(self.array, self.tasks[task])

    def intact(self) -> set[int]:
        return self._marks.intact(self._stored)

    def write(self, task: int, block: Mask) -> None:
        self._marks.mark(task, volumes.write_shards(self.array, self.tasks[task], block))

    def digests(self) -> list[bytes]:
        """Each task's digest; empty where nothing is staged."""
        return [digest if any(digest) else b"" for digest in self._marks.digests()]


def roll_forward(scan: Scan, name: str) -> None:
    """End what `LabelUpdate.apply` began on a label, if it did not come to its end."""
    there = _opened(storage.join(scan.url, "labels", name))
    if there is None or NEXT not in there.attrs:
        return
    staged = _opened(_stage_url(scan.url, name))
    if staged is None:
        raise ScanError(f"Label {name!r} of {scan.url} is damaged: what was to be put into it is gone. Remove it.")
    group, marks = _label(scan.url, name)
    info = LabelInfo.model_validate(group.attrs[NEXT])
    stage, level = _Stage(staged), level_of(group, 0)
    for task, digest in enumerate(stage.digests()):
        if digest:
            box = stage.tasks[task]
            volumes.write_shards(level, box, np.asarray(stage.array[box.slices]))
            marks.mark(task, digest)
    levels = volumes.pyramid_levels(scan.shape_zyx, scan.info.voxel_size_um, scan.info.origin_um)
    volumes.fill_coarser([level_of(group, k) for k in range(len(levels))], levels, "max", info.boxes[-1].box)
    _replace(group, NEXT, "perfuse", info.model_dump(mode="json"))
    list_labels(volumes.open_group(storage.join(scan.url, "labels"), "r+"))
    discard_stage(scan.url, name)


def discard_stage(scan_url: str, name: str) -> None:
    """Remove what was staged for a label, if anything was."""
    storage.remove_tree(_stage_url(scan_url, name))


def _stage_url(scan_url: str, name: str) -> str:
    return storage.join(scan_url, "perfuse", "scratch", f"{STAGED}{name}")


def _opened(url: str) -> zarr.Group | None:
    try:
        volumes.open_group(url)  # to write, a store makes the folder that it does not find
    except ScanError:
        return None
    return volumes.open_group(url, "r+")


def _label(scan_url: str, name: str) -> tuple[zarr.Group, volumes.DoneMarks]:
    group = volumes.open_group(storage.join(scan_url, "labels", name), "r+")
    level = level_of(group, 0)
    tasks = len(list(blocks(index3(level.shape), index3(level.shards or level.chunks))))
    marks = volumes.open_group(storage.join(scan_url, "perfuse", "labels"), "r+")
    return group, volumes.DoneMarks(marks, name, tasks, str(group.attrs["perfuse_key"]))


def _replace(group: zarr.Group, old: str, new: str, value: dict[str, Any]) -> None:
    """One attribute in place of another, in one write."""
    group.attrs.put({**{k: v for k, v in group.attrs.asdict().items() if k != old}, new: value})
