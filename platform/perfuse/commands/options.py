"""Options that several verbs have."""

from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, nothing else.")]
Processes = Annotated[
    int | None,
    typer.Option("--workers", min=1, help="Processes on the Ray cluster; without it, the cores of this machine."),
]
