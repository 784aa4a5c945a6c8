"""Law: the Euler number of a volume is the sum over its blocks; oracle: scikit-image."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from skimage.measure import euler_number

from perfuse.geometry import blocks
from perfuse.metrics import euler_eighths, read_cubes

SHAPES = st.tuples(*[st.integers(1, 8)] * 3)


@settings(deadline=None)
@given(st.data(), SHAPES, st.tuples(*[st.integers(1, 5)] * 3))
def test_blocks_add_up_to_the_volume(data, shape, block):
    mask = data.draw(arrays.arrays(np.bool_, shape))
    eighths = sum(
        euler_eighths(read_cubes(lambda box: mask[box.slices], owned, shape)) for owned in blocks(shape, block)
    )
    assert eighths == 8 * euler_number(np.pad(mask, 1), connectivity=3)
