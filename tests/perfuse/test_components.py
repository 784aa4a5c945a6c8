"""Law: components of blocks are those of the whole volume, whatever the blocks; oracles: scipy and cc3d, volumes in memory."""

from pathlib import Path

import cc3d
import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import ndimage

from perfuse.components import Block, Connectivity, Gathering, Rule, find_components, label_block
from perfuse.geometry import Box, blocks
from perfuse.parallel import in_order

FAR = {6: 1, 18: 2, 26: 3}
SHAPES = st.tuples(*[st.integers(1, 9)] * 3)
CONNECTIVITIES = st.sampled_from([6, 18, 26])
RULES = st.builds(
    Rule,
    min_voxels=st.integers(1, 4),
    largest=st.sampled_from([None, 1, 2, 3]),
    marked=st.sampled_from([None, True, False]),
)


def chosen_of_whole(mask: np.ndarray, marks: np.ndarray, connectivity: Connectivity, rule: Rule) -> np.ndarray:
    labels, count = ndimage.label(mask, ndimage.generate_binary_structure(3, FAR[connectivity]))
    size = np.bincount(labels.ravel(), minlength=count + 1)
    first = {int(n): int(np.flatnonzero(labels.ravel() == n)[0]) for n in range(1, count + 1)}
    marked = set(np.unique(labels[marks & mask]).tolist())
    stay = [
        n
        for n in range(1, count + 1)
        if size[n] >= rule.min_voxels and (rule.marked is None or (n in marked) == rule.marked)
    ]
    stay = sorted(stay, key=lambda n: (-size[n], first[n]))[: rule.largest]
    return np.isin(labels, stay) & mask


@settings(deadline=None, max_examples=300)
@given(st.data(), SHAPES, st.tuples(*[st.integers(1, 5)] * 3), CONNECTIVITIES, RULES)
def test_blocks_are_the_whole(data, shape, block, connectivity, rule):
    mask, marks = (data.draw(arrays.arrays(np.bool_, shape)) for _ in range(2))
    parts = [label_block(mask[box.slices], box, shape, connectivity, marks[box.slices]) for box in blocks(shape, block)]
    found = find_components(iter(parts), connectivity, rule)
    out = np.zeros(shape, np.bool_)
    for part in parts:
        out[part.box.slices] = part.paint(found.chosen(part))
    expected = chosen_of_whole(mask, marks, connectivity, rule)
    np.testing.assert_array_equal(out, expected)
    labels, count = ndimage.label(expected, ndimage.generate_binary_structure(3, FAR[connectivity]))
    sizes = np.bincount(labels.ravel())[1:]
    assert (found.count, found.voxels, found.largest) == (count, sizes.sum(), sizes.max(initial=0))


@pytest.mark.parametrize("connectivity", [6, 18, 26])
def test_sizes_are_those_of_cc3d(connectivity):
    mask = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(70, 80, 90)), 1.5) > 0.05
    labels, count = cc3d.connected_components(mask, connectivity=connectivity, return_N=True)
    sizes = sorted(np.bincount(labels.ravel())[1:], reverse=True)
    gathering = Gathering(connectivity, listed=count)
    for box in blocks(mask.shape, (32, 48, 40)):
        gathering.add(label_block(mask[box.slices], box, mask.shape, connectivity))
    found = gathering.components()
    assert count > 20
    assert found.count == count
    assert [size for size, _ in found.listed] == sizes


@pytest.mark.parametrize("connectivity", [6, 18, 26])
def test_what_hangs_together_across_every_border(connectivity):
    """Two voxels side by side, in two blocks that meet in a face, an edge or a corner."""
    for step in np.ndindex(3, 3, 3):
        shape, mask = (4, 4, 4), np.zeros((4, 4, 4), np.bool_)
        there = tuple(1 + n for n in step)
        mask[2, 2, 2] = mask[there] = True
        parts = (label_block(mask[box.slices], box, shape, connectivity) for box in blocks(shape, (2, 2, 2)))
        apart = sum(abs(n - 2) for n in there)
        assert find_components(parts, connectivity).count == (1 if apart <= FAR[connectivity] else 2)


def test_real_rat_kidney(test_data: Path) -> None:
    """The published clean-up of a rat kidney's vessels is their largest component by faces."""
    raw, clean = (
        np.asarray(nibabel.load(test_data / f"rat_kidney/pred_{name}_1.nii.gz").dataobj) > 0 for name in ("raw", "ccd")
    )
    boxes = list(blocks(raw.shape, (200, 300, 500)))

    def labelled(box: Box) -> Block:
        return label_block(raw[box.slices], box, raw.shape, 6)

    parts = list(in_order(labelled, boxes))
    found = find_components(parts, 6, Rule(largest=1))
    assert (found.count, found.voxels) == (1, clean.sum())
    for part in parts:
        np.testing.assert_array_equal(part.paint(found.chosen(part)), clean[part.box.slices])
