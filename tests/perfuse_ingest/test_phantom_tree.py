"""The tree keeps Murray's law, tapers, stays in the volume and reaches every part of the organ."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perfuse_ingest.phantom.organ import Envelope
from perfuse_ingest.phantom.tree import TIP_RADIUS, Tree, grow_tree

SHAPES = st.tuples(*[st.integers(24, 120)] * 3)


def grown(shape: tuple[int, int, int], seed: int) -> tuple[Tree, Envelope]:
    envelope = Envelope.grow(shape, seed)
    return grow_tree(envelope, shape, seed), envelope


@settings(max_examples=25, deadline=None)
@given(shape=SHAPES, seed=st.integers(0, 1000))
def test_murray_holds_at_every_bifurcation(shape: tuple[int, int, int], seed: int) -> None:
    tree, _ = grown(shape, seed)
    for branch in range(len(tree.parent)):
        children = np.flatnonzero(tree.parent == branch)
        assert len(children) in (0, 2)
        if len(children):
            np.testing.assert_allclose(tree.end_radius[branch] ** 3, (tree.start_radius[children] ** 3).sum())
            np.testing.assert_array_equal(tree.start[children], [tree.end[branch]] * 2)
        else:
            assert tree.end_radius[branch] == TIP_RADIUS


@settings(max_examples=25, deadline=None)
@given(shape=SHAPES, seed=st.integers(0, 1000))
def test_branches_taper_and_stay_in_the_volume(shape: tuple[int, int, int], seed: int) -> None:
    tree, _ = grown(shape, seed)
    assert (tree.end_radius < tree.start_radius).all()
    cones = tree.segments()
    assert (cones[:, 7] < cones[:, 3]).all()
    for ends in (cones[:, :3], cones[:, 4:7]):
        assert (ends >= 0).all()
        assert (ends <= np.array(shape) - 1).all()


@pytest.mark.parametrize("seed", [0, 1])
def test_thin_vessels_prevail_and_branches_turn_by_plausible_angles(seed: int) -> None:
    tree, _ = grown((96, 128, 128), seed)
    generations = np.zeros(len(tree.parent), int)
    for branch, parent in enumerate(tree.parent[1:], 1):
        generations[branch] = generations[parent] + 1
    assert generations.max() >= 6
    assert np.mean(tree.start_radius <= 1.5) > 0.5
    assert tree.start_radius[0] > 4
    inner = np.flatnonzero(tree.parent >= 0)
    before = tree.end[tree.parent[inner]] - tree.bend[tree.parent[inner]]
    after = tree.bend[inner] - tree.start[inner]
    cosines = (before * after).sum(1) / np.linalg.norm(before, axis=1) / np.linalg.norm(after, axis=1)
    assert 20 < np.degrees(np.arccos(np.median(cosines))) < 90


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_part_of_the_organ_is_far_from_a_vessel(seed: int) -> None:
    shape = (96, 128, 128)
    tree, envelope = grown(shape, seed)
    points = np.stack(np.meshgrid(*[np.arange(3, n, 6.0) for n in shape], indexing="ij"), -1).reshape(-1, 3)
    inside = points[envelope.depth(points) > 2]
    axis = tree.segments()[:, :3]
    nearest = np.sqrt(((inside[:, None] - axis[None]) ** 2).sum(-1).min(1))
    assert np.percentile(nearest, 99) < 20
