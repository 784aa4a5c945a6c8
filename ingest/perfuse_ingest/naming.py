"""The order of slices, from their file names."""

import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import PurePosixPath

from perfuse.errors import SliceError, SourceError

_DIGITS = re.compile(r"(\d+)")

UNFINISHED = "unfinished"
"""A file that stands among slices while they are being written."""


def in_order(folder: str, names: Sequence[str]) -> list[str]:
    """File names by slice number: the last number in a name that differs between the files, natural order.

    Raises SliceError when a name is not built like the others, two files bear one number, or a number is missing.
    """
    if len(names) == 1:
        return list(names)
    parts = {name: _DIGITS.split(PurePosixPath(name).stem) for name in names}
    _check_pattern(folder, parts)
    fields = len(next(iter(parts.values())))
    varying = [i for i in range(1, fields, 2) if len({int(p[i]) for p in parts.values()}) > 1]
    if not varying:
        first, second = sorted(names)[:2]
        raise SliceError(_double(folder, first, second))
    numbered = sorted((int(p[varying[-1]]), name) for name, p in parts.items())
    _check_consecutive(folder, numbered)
    return [name for _, name in numbered]


def _check_pattern(folder: str, parts: dict[str, list[str]]) -> None:
    patterns = {name: tuple(p[::2]) for name, p in parts.items()}
    usual, _ = Counter(patterns.values()).most_common(1)[0]
    model = next(name for name, pattern in patterns.items() if pattern == usual)
    for index, (name, pattern) in enumerate(patterns.items()):
        if pattern != usual:
            raise SliceError(
                f"{folder}: the image {name} (file {index}) does not fit the others, which are named like {model}. "
                "A folder holds the slices of one stack; move the file away or rename it."
            )
    if len(usual) == 1:
        raise SliceError(
            f"{folder}: {model} has no slice number in its name, so its place is unknown. Rename the slices."
        )


def _check_consecutive(folder: str, numbered: Sequence[tuple[int, str]]) -> None:
    for index, ((before, first), (number, second)) in enumerate(pairwise(numbered)):
        if number == before:
            raise SliceError(_double(folder, first, second))
        if number > before + 1:
            lost = str(before + 1) if number == before + 2 else f"{before + 1} to {number - 1}"
            raise SliceError(
                f"{folder}: slice number {lost} is missing, between {first} (index {index}) and {second}. Add what is "
                "missing; if the numbers are meant to jump, rename the files so that they follow one another."
            )


def _double(folder: str, first: str, second: str) -> str:
    return f"{folder}: {first} and {second} have the same slice number. Keep one of them."


def slices_among(folder: str, names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Divide a folder's files into TIFF slices and what is passed over (texts, tables, hidden files).

    Raises SourceError for images of another kind, for a folder that is marked `UNFINISHED`, and when there is no slice.
    """
    if UNFINISHED in names:
        raise SourceError(
            f"{folder} is unfinished: what wrote it was interrupted. Run that again; it completes the folder."
        )
    strange = [n for n in names if PurePosixPath(n).suffix.lower() in _OTHER_IMAGES]
    if strange:
        raise SourceError(
            f"{folder} holds {strange[0]}, an image that is no TIFF slice. Allowed: .tif, .tiff. Move it away."
        )
    slices = [n for n in names if PurePosixPath(n).suffix.lower() in (".tif", ".tiff") and not n.startswith(".")]
    if not slices:
        raise SourceError(f"{folder} holds no TIFF slices (*.tif, *.tiff). Give the folder that holds them.")
    return slices, [n for n in names if n not in slices]


_OTHER_IMAGES = {
    *(".jp2", ".j2k", ".jpx", ".png", ".jpg", ".jpeg", ".bmp", ".gif", ".dcm"),
    *(".nii", ".gz", ".h5", ".hdf5", ".npy", ".npz", ".raw", ".vol", ".mha", ".zip"),
}
