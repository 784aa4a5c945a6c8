"""What is known of a label, box by box: for each voxel, the last box that covers it says it; outside all, nothing is known."""

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from perfuse import storage
from perfuse.geometry import Box, Index3, index3

Kind = Literal["dense", "sparse", "soft"]


class LabelBox(BaseModel):
    """A box in which a label was given, once. A later one may lie over it, in part or whole."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    version: int
    """1 for the first box of a label, then 2, …: each box makes a new version of the label."""
    start: Index3
    stop: Index3
    kind: Kind
    coverage: float = Field(1.0, gt=0, le=1)
    """Share of the vessels in it that is marked."""
    author: str | None = None
    marked: int
    """Voxels with p ≥ 0.5, where no later box lies over it."""
    added: int
    """Voxels with p ≥ 0.5 where there were none before."""
    removed: int
    """Voxels without, where there were some before."""
    key: str = ""
    """Digest of what the box was made from; the same is never added twice."""
    lineage: dict[str, Any] = {}

    @property
    def box(self) -> Box:
        """Where it lies."""
        return Box(self.start, self.stop)


def visible(boxes: Sequence[Box]) -> list[list[Box]]:
    """For each box the parts of it that no later box covers; none where later ones cover it whole."""
    parts = []
    for number, box in enumerate(boxes):
        left = [] if box.empty else [box]
        for later in boxes[number + 1 :]:
            left = [rest for part in left for rest in part.minus(later)]
        parts.append(left)
    return parts


def identity(voxels: str, boxes: Sequence[LabelBox]) -> str:
    """The digest of a label: of its voxels (the root over the done-marks) and of what is known where."""
    known = [[b.start, b.stop, b.kind, b.coverage] for b in boxes]
    return storage.digest_json([voxels, known]) if known else voxels


def summary(boxes: Sequence[LabelBox], shape_zyx: Index3) -> dict[str, Any]:
    """kind, coverage, foreground and box of a label that was given in these boxes; see LabelInfo.

    Sparse when any voxel's box is, else soft when any is. The coverage of a mixture is that of all vessels together, as
    many as each box's marks and coverage let expect.
    """
    parts = visible([b.box for b in boxes])
    seen = [b for b, left in zip(boxes, parts, strict=True) if left]
    kinds = {b.kind for b in seen}
    marked = sum(b.marked for b in seen)
    return {
        "kind": next(kind for kind in ("sparse", "soft", "dense") if kind in kinds),
        "coverage": _coverage(seen, marked),
        "foreground": marked / Box.whole(shape_zyx).size,
        "box": _around(boxes) if sum(p.size for left in parts for p in left) < Box.whole(shape_zyx).size else None,
    }


def _coverage(seen: Sequence[LabelBox], marked: int) -> float:
    shares = {b.coverage for b in seen}
    if len(shares) == 1 or not marked:
        return min(shares)
    return min(marked / sum(b.marked / b.coverage for b in seen), 1.0)


def _around(boxes: Sequence[LabelBox]) -> tuple[Index3, Index3]:
    start = index3([min(b.start[axis] for b in boxes) for axis in range(3)])
    return start, index3([max(b.stop[axis] for b in boxes) for axis in range(3)])
