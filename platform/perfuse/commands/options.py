"""Options that several verbs have."""

import math
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, nothing else.")]
Processes = Annotated[
    int | None,
    typer.Option("--workers", min=1, help="Processes on the Ray cluster; without it, the cores of this machine."),
]


def finite(value: float | None) -> float | None:
    """The value of an option; typer.BadParameter for one without end, which its least and most let through."""
    if value is not None and math.isinf(value):
        raise typer.BadParameter(f"{value} is no finite number.")
    return value
