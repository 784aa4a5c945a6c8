"""The networks of a prediction, and what each of them saw: its logits along its axes, in a scratch of its own."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from perfuse import storage
from perfuse.catalog import Scan
from perfuse.contract import Forward, Frozen
from perfuse.geometry import Box
from perfuse.inference.choosing import Choice
from perfuse.inference.grid import Grid
from perfuse.inference.logits import Seen
from perfuse.inference.scratch import SLAB, Scratch
from perfuse.locks import writing
from perfuse.volumes import open_group

SCRATCH = "perfuse/scratch"
"""The group of all members' logits, relative to the scan. Whoever writes, reads or removes what is in it holds the lock of its name."""
KEPT = "kept"
"""The attribute of a member's scratch that stays until `perfuse scan clean`."""


class Member(Frozen):
    """One of the networks whose logits are averaged, on one scan."""

    key: str
    """Of what it says of the scan."""
    seen_key: str
    """Of what it sees along any one axis."""
    forward: Forward
    choice: Choice
    slab: int = SLAB
    """Planes of its slabs."""

    @property
    def scratch(self) -> str:
        """The scratch group, relative to the scan."""
        return f"{SCRATCH}/{self.seen_key[:16]}"

    @contextmanager
    def held(self, scan_url: str) -> Iterator[None]:
        """The only right to its scratch; BusyError when somebody else holds it."""
        with writing(scan_url, storage.name_of(self.scratch)):
            yield

    def keep(self, scan_url: str) -> None:
        """Let its scratch stay when the prediction is done."""
        open_group(storage.join(scan_url, self.scratch), "r+").attrs[KEPT] = True

    def drop(self, scan_url: str) -> None:
        """Remove its scratch, if it is there and was not to be kept."""
        url = storage.join(scan_url, self.scratch)
        if storage.exists(url) and not open_group(url, "r").attrs.get(KEPT):
            storage.remove_tree(url)

    @property
    def axes(self) -> list[int]:
        """Along which it sees planes."""
        return ["zyx".index(name) for name in self.forward.axes]


class Sight:
    """What members saw of a scan, opened once and read box by box."""

    def __init__(self, scan: Scan, members: Sequence[Member], class_names: Sequence[str]) -> None:
        self.members = members
        self.grids = [Grid.of(scan, member.forward) for member in members]
        self.scratches = [
            {a: Scratch(scan.url, m.scratch, a, m.seen_key, grid.shape_zyx, class_names, m.slab) for a in m.axes}
            for m, grid in zip(members, self.grids, strict=True)
        ]

    def of(self, box: Box, class_number: int = 0) -> Iterator[Seen]:
        """What each member saw of a class in a box of the scan."""
        for member, grid, along in zip(self.members, self.grids, self.scratches, strict=True):
            reads = (partial(scratch.read, class_number=class_number) for scratch in along.values())
            yield Seen.of(member.forward, (grid.back(read, box) for read in reads))
