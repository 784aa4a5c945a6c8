"""Grey levels of HiP-CT, measured on three consecutive 50 µm slices of a human kidney (1303 × 912, uint16).

The slices show agar lumps in fluid and the tip of the organ. How each figure was got:

* whole slices: mean 21405, standard deviation 556, percentiles 1 / 50 / 99 = 20213 / 21391 / 22758.
* noise: half the variance of (slice 2 − slice 0), by median absolute deviation: 224, the same at every grey level.
  Its autocorrelation, on the difference of two slices: 0.36 one voxel away in y or x, 0.13 diagonally, 0.0 two away;
  slices high-passed at 3 voxels correlate 0.33 with the next one. White noise, then, under a small isotropic kernel.
* large scales: standard deviation after a Gaussian of 64 voxels 351, of 128 voxels 263.
* texture: bands between Gaussians of 4–8 and 8–16 voxels have standard deviations of 66 and 85.
* levels, by eye on slices smoothed at 4 voxels: fluid 20450–20700, agar lumps 21200–21600, organ 22000–22700.
* rings: mean over circles about the slice centre 5.6, where noise alone gives 4.1. The phantom's are stronger (other
  scans show them plainly), yet below the noise of a single voxel.

Vessels are dark by default: after fixation and degassing most stand open and hold the fluid that surrounds the agar,
so an open lumen has the level of the gaps outside of the organ. The wall is tissue, denser than what it runs through.
"""

from typing import Final

FLUID: Final = 20750.0
AGAR: Final = 21380.0
AGAR_SPREAD: Final = 170.0
TISSUE: Final = 21830.0
SLIVER: Final = 1500.0
"""Bright faces of agar lumps stand this far above them; rare, they carry the histogram's long upper tail."""

NOISE: Final = 212.0
"""Less than measured between slices, where texture changes too."""
NOISE_NEIGHBOUR: Final = 0.19
"""Kernel (a, 1, a) along each axis; one voxel away it correlates by 2a / (1 + 2a²) = 0.355."""
DRIFT: Final = 260.0
TEXTURE_COARSE: Final = 85.0
TEXTURE_FINE: Final = 45.0
RING: Final = 55.0

LUMEN_CONTRAST: Final = 1150.0
"""Tissue minus open lumen. Drift alone spans more than this between its 1st and 99th percentile."""
WALL_CONTRAST: Final = 550.0
BLOB_CONTRAST: Final = 900.0
"""Dark blobs of tissue (cysts, tubules) look like lumens to any global threshold; bright ones like walls."""
