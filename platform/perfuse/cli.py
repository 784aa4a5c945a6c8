"""The command `perfuse`. Rooms add their verbs by the entry point group `perfuse.commands`."""

import sys
from importlib.metadata import entry_points
from typing import Annotated

import typer

from perfuse import __version__
from perfuse.commands import models, postprocessing, quickstart, recipes, scans, scoring
from perfuse.console import say
from perfuse.errors import PerfuseError


def build() -> typer.Typer:
    """The application with the verbs of all rooms."""
    app = typer.Typer(
        name="perfuse",
        help="From slices of organ-scale X-ray scans to promoted, served vessel-segmentation models.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        add_completion=False,
    )
    app.callback()(_root)
    for room in (scans, recipes, scoring, postprocessing, models, quickstart):
        room.register(app)
    for entry in sorted(entry_points(group="perfuse.commands"), key=lambda e: e.name):
        entry.load()(app)
    return app


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """From slices of organ-scale X-ray scans to promoted, served vessel-segmentation models."""


def main() -> None:
    """Run the command line: user errors, and those of disks and networks, end with one message and code 2; code 3: parts failed."""
    try:
        build()()
    except (PerfuseError, OSError) as error:
        say(f"Error: {error}")
        sys.exit(error.exit_code if isinstance(error, PerfuseError) else 2)


if __name__ == "__main__":
    main()
