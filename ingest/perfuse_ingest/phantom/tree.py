"""A vascular tree that fills the organ and keeps Murray's law.

Terminals are spread evenly over the organ. From the hilum, a branch runs towards the middle of the terminals that it
feeds, then splits them in two unequal halves, and so on until each branch feeds one. Radii follow from the leaves up:
r₀³ = r₁³ + r₂³ at every bifurcation (Murray 1926), and each branch tapers along its way, as if side branches below
the resolution left it. Space filling by splitting the territory: after Wang, Bassingthwaighte 1990 and
Karch et al. 1999, without their optimisation of the bifurcation points.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from perfuse_ingest.phantom.lattice import Stream, generator
from perfuse_ingest.phantom.organ import Envelope

Vector = NDArray[np.float64]

VESSEL_SHARE = 0.055
"""Share of the organ that vessels fill, about."""
TIP_RADIUS = 0.5
"""Where every leaf ends, in voxels."""
LEAF_RADII = (0.7, 1.0)
"""Where leaves start, in voxels."""
TAPER = 1.02
"""Radius at the start of a branch over the radius at its end."""

_REACH = 0.6
"""How far a branch runs towards the middle of what it feeds."""
_SPLITS = (0.3, 0.5)
"""Range of the smaller child's part of the terminals."""
_WIGGLE = 0.12
"""Sideways bend of a branch over its length."""


@dataclass(frozen=True)
class Tree:
    """Branches in order of growth: a parent stands before its children. Lengths in voxels, points as z, y, x."""

    parent: NDArray[np.int64]
    """[branch]: index of the parent, −1 for the trunk."""
    start: Vector
    """[branch, 3]: equals the parent's end."""
    bend: Vector
    """[branch, 3]: control point of the quadratic Bézier curve from start to end."""
    end: Vector
    """[branch, 3]"""
    start_radius: Vector
    """[branch]"""
    end_radius: Vector
    """[branch]"""

    def segments(self) -> Vector:
        """float64[n, 8]: cones (z, y, x, radius) → (z, y, x, radius) that make up the branches, by rising z."""
        pieces = [self._pieces(branch) for branch in range(len(self.parent))]
        cones = np.concatenate(pieces)
        return cones[np.argsort(np.minimum(cones[:, 0], cones[:, 4]), kind="stable")]

    def _pieces(self, branch: int) -> Vector:
        start, bend, end = self.start[branch], self.bend[branch], self.end[branch]
        count = max(1, int(np.ceil(np.linalg.norm(end - start) / max(4.0, 2 * self.end_radius[branch]))))
        t = np.linspace(0, 1, count + 1)[:, None]
        points = (1 - t) ** 2 * start + 2 * t * (1 - t) * bend + t**2 * end
        radii = self.start_radius[branch] + t * (self.end_radius[branch] - self.start_radius[branch])
        knots = np.hstack([points, radii])
        return np.hstack([knots[:-1], knots[1:]])


def grow_tree(envelope: Envelope, shape_zyx: tuple[int, int, int], seed: int) -> Tree:
    """The tree of an organ: from the hilum to terminals in every part of it, all within the volume."""
    terminals = _spread_terminals(envelope, shape_zyx, seed)
    limit = np.array(shape_zyx) - 1.0
    growth = _Growth(terminals, limit, generator(seed, Stream.BRANCHES))
    growth.run(envelope.entrance())
    return growth.tree()


def _spread_terminals(envelope: Envelope, shape_zyx: tuple[int, int, int], seed: int) -> Vector:
    """One terminal at random in each cell of a lattice, where that lies inside of the organ."""
    spacing = _terminal_spacing(float(4 / 3 * np.pi * envelope.semi_axes.prod()))
    cells = np.indices([int(np.ceil(n / spacing)) for n in shape_zyx]).reshape(3, -1).T
    points = (cells + generator(seed, Stream.TERMINALS).random(cells.shape)) * spacing
    inside = points[
        (envelope.depth(points) > 1) & (points < np.array(shape_zyx) - 2).all(axis=1) & (points > 1).all(axis=1)
    ]
    return inside if len(inside) > 1 else envelope.centre[None] + np.array([[0.0, 2, 0], [0.0, -2, 0]])


def _terminal_spacing(organ_voxels: float) -> float:
    """Voxels between terminals that give the vessels their share.

    With radii by Murray's law and lengths in proportion to territories, each generation fills the same volume,
    so the share is a · generations / spacing²; a was fitted on grown trees.
    """
    spacing = 16.0
    for _ in range(20):
        generations = max(2.0, np.log2(organ_voxels / spacing**3))
        spacing = float(np.sqrt(1.0 * generations / VESSEL_SHARE))
    return spacing


class _Growth:
    """Grows branches depth first, keeping the terminals that each has still to feed."""

    def __init__(self, terminals: Vector, limit: Vector, rng: np.random.Generator) -> None:
        self._terminals, self._limit, self._rng = terminals, limit, rng
        self._parent: list[int] = []
        self._start: list[Vector] = []
        self._bend: list[Vector] = []
        self._end: list[Vector] = []

    def run(self, entrance: Vector) -> None:
        middle = self._terminals.mean(axis=0)
        waiting = [(-1, np.clip(entrance, 0, self._limit), middle - entrance, np.arange(len(self._terminals)))]
        while waiting:
            parent, start, heading, fed = waiting.pop()
            end = self._target(start, fed)
            branch = self._add(parent, start, heading, end)
            if len(fed) > 1:
                waiting += [(branch, end, end - self._bend[branch], half) for half in self._split(fed, end - start)]

    def _target(self, start: Vector, fed: NDArray[np.int64]) -> Vector:
        middle = self._terminals[fed].mean(axis=0)
        return np.asarray(middle if len(fed) == 1 else start + _REACH * (middle - start))

    def _add(self, parent: int, start: Vector, heading: Vector, end: Vector) -> int:
        chord = end - start
        length = np.linalg.norm(chord)
        forward = 0.3 * length * heading / max(float(np.linalg.norm(heading)), 1e-9) + 0.2 * chord
        bend = start + forward + _WIGGLE * length * self._rng.standard_normal(3)
        self._parent.append(parent)
        self._start.append(start)
        self._bend.append(np.clip(bend, 0, self._limit))
        self._end.append(end)
        return len(self._parent) - 1

    def _split(self, fed: NDArray[np.int64], heading: Vector) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Two parts of the terminals, cut across their longest extent, rather beside the branch than along it."""
        offsets = self._terminals[fed] - self._terminals[fed].mean(axis=0)
        direction = heading / max(float(np.linalg.norm(heading)), 1e-9)
        aside = offsets - 0.5 * np.outer(offsets @ direction, direction)
        axis = np.linalg.eigh(aside.T @ aside)[1][:, -1]
        order = fed[np.argsort(aside @ axis, kind="stable")]
        part = self._rng.uniform(*_SPLITS)
        cut = min(max(1, round(len(fed) * (part if self._rng.random() < 0.5 else 1 - part))), len(fed) - 1)
        return order[:cut], order[cut:]

    def tree(self) -> Tree:
        parent = np.array(self._parent)
        start_radius, end_radius = self._radii(parent)
        return Tree(parent, np.array(self._start), np.array(self._bend), np.array(self._end), start_radius, end_radius)

    def _radii(self, parent: NDArray[np.int64]) -> tuple[Vector, Vector]:
        """Radii at the start and end of each branch, from the leaves up."""
        cubes = np.zeros(len(parent))
        start, end = np.empty(len(parent)), np.empty(len(parent))
        leaf_radii = self._rng.uniform(*LEAF_RADII, len(parent))
        for branch in range(len(parent) - 1, -1, -1):
            leaf = cubes[branch] == 0
            end[branch] = TIP_RADIUS if leaf else np.cbrt(cubes[branch])
            start[branch] = leaf_radii[branch] if leaf else TAPER * end[branch]
            if parent[branch] >= 0:
                cubes[parent[branch]] += start[branch] ** 3
        return start, end
