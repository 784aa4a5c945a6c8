"""What perfuse says: progress and messages on stderr, results on stdout, JSON alone when asked."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

messages = Console(stderr=True, highlight=False, soft_wrap=True)
"""For people: progress, warnings, errors."""

results = Console(highlight=False)
"""What was asked for."""


class Advance:
    """Tells a progress bar how much of the work is done."""

    def __init__(self, bar: Progress, what: str, total: int) -> None:
        self._bar, self._task = bar, bar.add_task(what, total=total, note="")

    def __call__(self, done: int = 1, note: str | None = None) -> None:
        """Count `done` more units; `note` replaces the text beside the bar."""
        self._bar.update(self._task, advance=done)
        if note is not None:
            self._bar.update(self._task, note=note)

    def to(self, done: int, total: int) -> None:
        """Say that `done` units of `total` are done."""
        self._bar.update(self._task, completed=done, total=total)


@contextmanager
def progress(what: str, total: int) -> Iterator[Advance]:
    """A bar with count, time spent and time left, on stderr."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=messages) as bar:
        yield Advance(bar, what, total)


def say(text: str) -> None:
    """One line to the person at the terminal."""
    messages.print(text, markup=False)


def print_json(value: dict[str, Any]) -> None:
    """One JSON object on stdout and nothing else; NaN becomes null."""
    sys.stdout.write(json.dumps(_finite(value), indent=2, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value


def print_entry(name: str, *lines: str) -> None:
    """One of a list on stdout: its name, and beneath it lines that are wrapped to the terminal, never cut."""
    from rich.padding import Padding
    from rich.text import Text

    results.print(Text(name, style="bold"))
    for line in lines:
        results.print(Padding(Text(line), (0, 0, 0, 4)))
