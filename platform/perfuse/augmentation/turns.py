"""Quarter turns and mirrors: pixels change places, none changes its value."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from perfuse.augmentation.draws import Draws

if TYPE_CHECKING:
    from perfuse.recipes import Augmentation

Crops = tuple[Tensor, Tensor, Tensor]
"""Images, targets and knowns."""


def turned(crops: Crops, settings: "Augmentation", draws: Draws, classes: int = 1) -> Crops:
    """Each crop turned, then mirrored, as it drew; image, target and known alike, planes of each class among themselves."""
    turns = draws.integers(4) * draws.chosen(settings.quarter_turns)
    mirrors = draws.chosen(settings.flips, 3)
    if not turns.any() and not mirrors.any():
        return crops
    new = tuple(torch.empty_like(parts, memory_format=torch.contiguous_format) for parts in crops)
    for parts, outs, volumes in zip(crops, new, (1, classes, classes), strict=True):
        for crop, k, mirrored, out in zip(parts, turns, mirrors, outs, strict=True):
            for volume, place in zip(crop.chunk(volumes), out.chunk(volumes), strict=True):
                turn(volume, int(k), *map(bool, mirrored), out=place)
    return new[0], new[1], new[2]


def turn(crop: Tensor, turns: int, planes: bool, rows: bool, columns: bool, *, out: Tensor) -> None:
    """Into `out`: [planes, n, n] turned counterclockwise by so many quarters; then planes, rows, columns in the other order."""
    rows, columns = rows != (turns in (1, 2)), columns != (turns in (2, 3))
    mirrored = (planes, columns, rows) if turns % 2 else (planes, rows, columns)
    crop = crop.flip([axis for axis in range(3) if mirrored[axis]]) if any(mirrored) else crop
    # torch transposes one matrix in blocks, several at once pixel by pixel
    for plane, place in zip(crop, out, strict=True):
        place.copy_(plane.T if turns % 2 else plane)
