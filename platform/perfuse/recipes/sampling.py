"""Which crops of the scans a training sees."""

from typing import Literal

from pydantic import Field, model_validator

from perfuse.contract import Finite
from perfuse.geometry import Spacing

LEAST_SCALE, MOST_SCALE = 0.25, 4.0
"""Smaller pixels than these, in voxels, show nothing; larger ones are those of a coarser scan, not of an emulation."""


class Sampling(Finite):
    """Which crops are seen."""

    order: Literal["random", "grid"] = "random"
    """grid: each epoch sees every crop of a grid over all scans and axes once, in random order."""
    overlap: float = Field(0.0, ge=0, lt=1)
    """grid: share of a crop that it has in common with the next."""
    foreground_share: float = Field(0.7, ge=0, le=1)
    """random: share of crops that are laid over a vessel voxel."""
    axis_weights: tuple[float, ...] = ()
    """random: how often each axis of the recipe is taken; empty: equally often."""
    oblique: float = Field(0.0, ge=0, le=1)
    """random: share of crops whose plane is turned about a random direction."""
    scale: tuple[float, float] = (1.0, 1.0)
    """random: pixels of a crop are larger than the scan's by a factor between these: 1.26 brings 50 µm to 63 µm."""
    pixel_um: tuple[float, float] | None = None
    """random: pixels of a crop have an edge between these, in µm, whatever the scan's: `scale` by each scan's own finest voxel."""
    by_coverage: bool = True
    """random: scans are taken the more often the more of them is annotated; else equally often."""

    @model_validator(mode="after")
    def _possible(self) -> "Sampling":
        if not LEAST_SCALE <= self.scale[0] <= self.scale[1] <= MOST_SCALE:
            raise ValueError(
                f"scale goes from the smaller factor to the larger, {LEAST_SCALE:g} to {MOST_SCALE:g}; got {self.scale}"
            )
        if self.pixel_um is not None and (self.scale != (1, 1) or not 0 < self.pixel_um[0] <= self.pixel_um[1]):
            raise ValueError(
                f"pixel_um goes from the smaller edge in µm to the larger, above 0, and stands in place of scale; got {self.pixel_um} "
                f"and scale {self.scale}"
            )
        if any(weight <= 0 for weight in self.axis_weights):
            raise ValueError(f"axis_weights are above 0; got {self.axis_weights}. Leave an axis out by --set axes=…")
        if self.order == "grid" and (self.scale != (1, 1) or self.pixel_um or self.oblique or self.axis_weights):
            raise ValueError(
                "order=grid sees every crop once as it is: leave out scale, pixel_um, oblique and axis_weights"
            )
        return self

    def factors(self, voxel_size_um: Spacing) -> tuple[float, float]:
        """The smallest and the largest pixel of crops, in the finest voxels of a scan."""
        if self.pixel_um is None:
            return self.scale
        return self.pixel_um[0] / min(voxel_size_um), self.pixel_um[1] / min(voxel_size_um)
