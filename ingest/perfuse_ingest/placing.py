"""Where in a scan a mask lies: where it is said to, where the names of its slices say, or everywhere."""

import re
from itertools import pairwise
from pathlib import PurePosixPath

from perfuse.catalog import Scan
from perfuse.console import say
from perfuse.errors import ShapeMismatchError, SourceError
from perfuse.geometry import Box, Index3
from perfuse_ingest.mask_sources import MaskSource

_FILE = re.compile(r".+\.[A-Za-z0-9]+")
"""The name of a slice that is a file of its own; pages and planes are called otherwise."""


def place(masks: MaskSource, scan: Scan, at_zyx: Index3 | None) -> Box:
    """The box of a scan that a mask is for.

    Without `at_zyx`, a mask of fewer slices than the scan lies where the scan's slices have the names of its own,
    whatever their endings. Raises ShapeMismatchError when it does not fit, SourceError when its names do not say where.
    """
    depth, *plane = masks.shape_zyx
    if at_zyx is not None or not masks.names or depth >= scan.shape_zyx[0] or plane != list(scan.shape_zyx[1:]):
        return masks.box_in(scan.shape_zyx, at_zyx)
    box = Box.whole(masks.shape_zyx).shifted((_first_by_name(masks, scan), 0, 0))
    say(
        f"{depth} slices of {masks.url} lie at slices {box.start[0]} to {box.stop[0] - 1} of {scan.info.id}, by their names: "
        f"{masks.names[0]} to {masks.names[-1]}"
    )
    return box


def stem(name: str) -> str:
    """A slice's name without its ending."""
    return PurePosixPath(name).stem


def _first_by_name(masks: MaskSource, scan: Scan) -> int:
    files = {index: stem(name) for index, name in enumerate(scan.slice_names()) if _FILE.fullmatch(name)}
    there = {name: index for index, name in files.items()}
    if not files or len(there) < len(files):
        raise ShapeMismatchError(
            f"The labels {masks.url} have {masks.shape_zyx[0]} slices, the scan has {scan.shape_zyx[0]}, whose names are not "
            "known (pages and planes have none) or not unique, so their place is not known. Say it: --at Z,0,0"
        )
    strangers = [name for name in masks.names if stem(name) not in there]
    if strangers:
        first, *_, last = scan.slice_names()
        raise SourceError(
            f"{masks.url}: {_some(strangers)} bears the name of no slice of {scan.url} (they are {first} to {last}), and there "
            f"are {masks.shape_zyx[0]} slices of labels for {scan.shape_zyx[0]}. Rename them, or say where the first lies: --at Z,0,0"
        )
    for one, other in pairwise(masks.names):
        if there[stem(other)] != there[stem(one)] + 1:
            raise SourceError(
                f"{masks.url}: {one} and {other} follow one another, but bear the names of slices {there[stem(one)]} and "
                f"{there[stem(other)]} of {scan.url}. Labels of a part are of consecutive slices: add them run by run."
            )
    return there[stem(masks.names[0])]


def _some(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} (and {len(names) - 1} more)"
