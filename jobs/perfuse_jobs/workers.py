"""How many processes do the work, and how that is said on the command line."""

import re
from dataclasses import dataclass
from typing import Annotated

import typer

from perfuse.errors import PerfuseError


@dataclass(frozen=True)
class Workers:
    """As many processes of Ray as find room, between these two."""

    fewest: int = 1
    most: int = 1

    def __str__(self) -> str:
        return str(self.most) if self.fewest == self.most else f"{self.fewest}..{self.most}"

    @classmethod
    def parse(cls, said: object) -> "Workers":
        """Of 2, or of 2..4; raises PerfuseError for what is neither."""
        found = re.fullmatch(r"(\d+)(?:\.\.(\d+))?", str(said))
        fewest, most = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
        if not 0 < fewest <= most:
            raise PerfuseError(f"--workers {said}: say how many, as 2, or the fewest and the most, as 2..4.")
        return cls(fewest, most)


ONE = Workers()

WorkersOption = Annotated[
    Workers,
    typer.Option(
        parser=Workers.parse,
        metavar="N|N..M",
        help="Processes on the Ray cluster; of N..M as many as find room, also when nodes come and go.",
    ),
]


def check_local(local: bool, workers: Workers) -> None:
    """Refuse several workers in one process."""
    if local and workers.most > 1:
        raise PerfuseError("--local is one process, this one: leave out --workers, or --local.")
