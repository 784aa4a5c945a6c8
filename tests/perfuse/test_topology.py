"""Betti and Euler numbers of any mask, cut anyhow: those of the whole volume, by scikit-image, SciPy and homology itself."""

from itertools import product
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage.measure import euler_number

from perfuse.catalog import Scan
from perfuse.geometry import Box
from perfuse.topology import Topology, topology

RING = np.pad(np.ones((1, 3, 3)), 1)
RING[1, 2, 2] = 0
SHELL = np.pad(np.ones((3, 3, 3)), 1)
SHELL[2, 2, 2] = 0


class Stored:
    """As much of a scan as `topology` asks for, its label in shards of any shape."""

    def __init__(self, mask: np.ndarray, block: tuple[int, int, int]) -> None:
        self.values, self.shape_zyx = mask.astype(np.uint8) * np.uint8(255), mask.shape
        self.array = SimpleNamespace(shards=block)
        self.info = SimpleNamespace(voxel_size_um=(1.0, 1.0, 1.0))

    def label_info(self, name: str) -> None: ...

    def label(self, name: str) -> SimpleNamespace:
        return self.array

    def read_label(self, name: str, box: Box) -> np.ndarray:
        return self.values[box.slices]


def of_blocks(mask: np.ndarray, block: tuple[int, int, int]) -> Topology:
    with patch.object(Scan, "open", return_value=Stored(mask, block)):
        return topology("scan", "label", 0.5, listed=9)


masks = st.builds(
    lambda shape, share, seed: np.random.default_rng(seed).random(shape) < share,
    st.tuples(*[st.integers(1, 9)] * 3),
    st.sampled_from([0.0, 0.1, 0.4, 0.7, 0.9, 1.0]),
    st.integers(0, 999),
)
cuts = st.tuples(*[st.integers(1, 6)] * 3)


@settings(deadline=None, max_examples=40)
@given(masks, cuts)
@example(RING > 0, (2, 2, 2))
@example(SHELL > 0, (2, 3, 2))
def test_blocks_of_any_shape_are_the_whole(mask, block):
    found = of_blocks(mask, block)
    assert found == of_blocks(mask, mask.shape)
    b0, b1, b2 = found.betti
    labels, components = ndimage.label(mask, np.ones((3, 3, 3)))
    assert b0 == found.components == components
    assert b2 == ndimage.label(np.pad(~mask, 1, constant_values=True))[1] - 1
    assert b0 - b1 + b2 == found.euler == euler_number(np.pad(mask, 1), connectivity=3)
    sizes = sorted(np.bincount(labels.ravel(), minlength=2)[1:], reverse=True)
    assert [component.voxels for component in found.listed] == [n for n in sizes[:9] if n]
    assert (found.voxels, found.largest) == (mask.sum(), sizes[0])
    assert list(found.sizes) == [sum(2**k <= n < 2 ** (k + 1) for n in sizes) for k in range(len(found.sizes))]
    assert sum(found.sizes) == components


@settings(deadline=None, max_examples=40)
@given(st.lists(st.booleans(), min_size=27, max_size=27), cuts)
@example([True] * 13 + [False] + [True] * 13, (2, 2, 2))
@example([False] * 9 + [True] * 4 + [False] + [True] * 4 + [False] * 9, (1, 2, 3))
def test_betti_numbers_are_those_of_homology(voxels, block):
    mask = np.array(voxels).reshape(3, 3, 3)
    assert of_blocks(mask, block).betti == homology(mask)


def homology(mask: np.ndarray) -> tuple[int, int, int]:
    """Betti numbers of the voxels as closed cubes, from the ranks of the boundaries over two elements.

    A cell is named by the doubled place of its middle: each odd coordinate is an edge's length along that axis.
    """
    around = [np.array(step) for step in product((-1, 0, 1), repeat=3)]
    cells = {tuple(2 * at + 1 + step) for at in np.argwhere(mask) for step in around}
    of = [sorted(c for c in cells if sum(n % 2 for n in c) == size) for size in range(4)]
    ranks = [0, *(rank(of[k], {c: n for n, c in enumerate(of[k - 1])}) for k in (1, 2, 3)), 0]
    b0, b1, b2, b3 = (len(of[k]) - ranks[k] - ranks[k + 1] for k in range(4))
    assert b3 == 0
    return b0, b1, b2


def rank(cells: list[tuple[int, ...]], numbers: dict[tuple[int, ...], int]) -> int:
    pivots: dict[int, int] = {}
    for cell in cells:
        column = 0
        for axis in (a for a in range(3) if cell[a] % 2):
            for side in (-1, 1):
                column ^= 1 << numbers[(*cell[:axis], cell[axis] + side, *cell[axis + 1 :])]
        while column and column.bit_length() in pivots:
            column ^= pivots[column.bit_length()]
        if column:
            pivots[column.bit_length()] = column
    return len(pivots)
