"""Which files of a folder are slices, and their order, from their names."""

import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import PurePosixPath

from perfuse.errors import SliceError, SourceError

_DIGITS = re.compile(r"(\d+)")

UNFINISHED = "unfinished"
"""A file that stands among slices while they are being written."""
TIFF = (".tif", ".tiff")
JPEG_2000 = (".jp2", ".j2k", ".jpx", ".j2c")
SLICES = "TIFF slices (*.tif, *.tiff) and no JPEG 2000 slices (*.jp2, *.j2k, *.jpx, *.j2c)"


def in_order(folder: str, names: Sequence[str], *, allow_gaps: bool = False) -> list[str | int]:
    """File names by slice number: the last number in a name that differs between the files, natural order.

    With `allow_gaps`, the number of a missing slice stands in its place. Raises SliceError when a name is not built
    like the others, two files bear one number, or a number is missing.
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
    _check_consecutive(folder, numbered, allow_gaps)
    by_number = dict(numbered)
    return [by_number.get(number, number) for number in range(numbered[0][0], numbered[-1][0] + 1)]


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


def _check_consecutive(folder: str, numbered: Sequence[tuple[int, str]], allow_gaps: bool) -> None:
    for index, ((before, first), (number, second)) in enumerate(pairwise(numbered)):
        if number == before:
            raise SliceError(_double(folder, first, second))
        if number > before + 1 and not allow_gaps:
            lost = str(before + 1) if number == before + 2 else f"{before + 1} to {number - 1}"
            raise SliceError(
                f"{folder}: slice number {lost} is missing, between {first} (index {index}) and {second}. Add what is "
                "missing, or allow gaps; if the numbers are meant to jump, rename the files so that they follow one "
                "another."
            )
    missing = numbered[-1][0] - numbered[0][0] + 1 - len(numbered)
    if missing > len(numbered):
        raise SliceError(
            f"{folder}: {missing:,} slice numbers are missing between {numbered[0][1]} and {numbered[-1][1]}, more than "
            f"the {len(numbered):,} that are there. Rename the files so that they follow one another."
        )


def _double(folder: str, first: str, second: str) -> str:
    return f"{folder}: {first} and {second} have the same slice number. Keep one of them."


def is_slice(name: str) -> bool:
    """True for the name of a TIFF or JPEG 2000 file that is not hidden."""
    return name.lower().endswith(TIFF + JPEG_2000) and not name.startswith(".")


def slices_among(folder: str, names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Divide a folder's files into slices of one format and what is passed over (texts, tables, hidden files).

    Raises SourceError for images of another kind, for TIFF beside JPEG 2000, for a folder that is marked `UNFINISHED`,
    and when there is no slice.
    """
    if UNFINISHED in names:
        raise SourceError(
            f"{folder} is unfinished: what wrote it was interrupted. Run that again; it completes the folder."
        )
    strange = [n for n in names if PurePosixPath(n).suffix.lower() in _OTHER_IMAGES and not n.startswith(".")]
    if strange:
        raise SourceError(
            f"{folder} holds {strange[0]}, an image that is no TIFF slice and no JPEG 2000 slice. Allowed: "
            f"{', '.join(TIFF + JPEG_2000)}. Move it away."
        )
    slices = [n for n in names if is_slice(n)]
    if not slices:
        raise SourceError(f"{folder} holds no {SLICES}. Give the folder or archive that holds them.")
    tiffs = [n for n in slices if n.lower().endswith(TIFF)]
    if tiffs and len(tiffs) < len(slices):
        other = next(n for n in slices if n not in tiffs)
        raise SourceError(f"{folder} holds both {tiffs[0]} and {other}. The slices of a stack have one format.")
    chosen = set(slices)
    return slices, [n for n in names if n not in chosen]


_OTHER_IMAGES = {
    *(".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".dcm", ".dicom", ".mrc"),
    *(".nii", ".gz", ".h5", ".hdf5", ".npy", ".npz", ".raw", ".vol", ".mha", ".mhd", ".nrrd", ".zip", ".tar", ".tgz"),
}
