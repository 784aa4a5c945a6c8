"""Blocks with the faces that were kept are blocks that were read with their neighbours."""

from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perfuse import passes
from perfuse.geometry import blocks
from perfuse.metrics import read_cubes
from perfuse.passes import over_blocks, over_cubes

sides = st.integers(1, 9)


@contextmanager
def elsewhere(processes):
    """Where runs are done one after the other, each knowing nothing of the others."""
    spread = None if processes is None else passes.Spread(processes, lambda work, items: map(work, items))
    token = passes._SPREAD.set(spread)
    yield
    passes._SPREAD.reset(token)


@pytest.mark.parametrize("processes", [None, 1, 3, 9])
@pytest.mark.parametrize("count", [0, 1, 7, 40])
def test_blocks_come_in_order(processes, count):
    with elsewhere(processes):
        assert list(over_blocks(list(range(count)), "", lambda n: n * n)) == [n * n for n in range(count)]


@settings(deadline=None, max_examples=60)
@given(
    st.tuples(sides, sides, sides), st.tuples(sides, sides, sides), st.integers(0, 9), st.sampled_from([None, 1, 2, 5])
)
def test_kept_faces_are_those_of_the_volume(shape, block, seed, processes):
    """Also where runs of layers are done elsewhere."""
    rng = np.random.default_rng(seed)
    values, known = rng.integers(0, 256, shape, np.uint8), rng.random(shape) < 0.5
    cuts = list(blocks(shape, block))

    def read(box, into):
        for array, source in zip(into, (values, known), strict=True):
            array[...] = source[box.slices]

    with elsewhere(processes):
        found = list(over_cubes(cuts, shape, "", read, (np.uint8(0), np.bool_(True)), lambda *block: block))
    assert [box for box, _ in found] == cuts
    for box, arrays in found:
        for array, source, outside in zip(arrays, (values, known), (0, 1), strict=True):
            np.testing.assert_array_equal(
                array, read_cubes(lambda b, a=source: a[b.slices], box, shape, outside), strict=True
            )


def test_each_voxel_is_read_once():
    shape, read = (5, 6, 7), np.zeros((5, 6, 7), int)

    def count(box, into):
        read[box.slices] += 1
        into[0][...] = 0

    cuts = list(blocks(shape, (2, 3, 4)))
    work = over_cubes(
        cuts, shape, "test", count, (np.uint8(0),), lambda box, arrays: np.prod(np.subtract(arrays[0].shape, 1))
    )
    assert sum(work) == np.prod(np.add(shape, 1)), "cubes in all"
    assert (read == 1).all()
