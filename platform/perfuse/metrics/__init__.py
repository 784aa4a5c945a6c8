"""Metrics as integers that add over disjoint blocks, and scores derived from the sums."""

from perfuse.metrics.centrelines import CentrelineCounts, centreline_counts
from perfuse.metrics.curve import Curve, CurveCounts, Plateau, curve_counts
from perfuse.metrics.euler import euler_eighths
from perfuse.metrics.otsu import otsu_threshold, otsu_upper_of_three
from perfuse.metrics.overlap import ConfusionCounts, confusion_counts, plane_counts
from perfuse.metrics.surface import SurfaceCounts, read_cubes, surface_counts, surface_layers
from perfuse.metrics.tolerance import NearCounts, near_counts

__all__ = [
    "CentrelineCounts",
    "ConfusionCounts",
    "Curve",
    "CurveCounts",
    "NearCounts",
    "Plateau",
    "SurfaceCounts",
    "centreline_counts",
    "confusion_counts",
    "curve_counts",
    "euler_eighths",
    "near_counts",
    "otsu_threshold",
    "otsu_upper_of_three",
    "plane_counts",
    "read_cubes",
    "surface_counts",
    "surface_layers",
]
