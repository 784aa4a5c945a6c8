"""How a source is changed on the way in, as it is asked for and kept with the scan."""

from dataclasses import dataclass
from typing import Any

from perfuse.geometry import Box, Spacing, index3
from perfuse_ingest.clahe import Equalised
from perfuse_ingest.sources.source import Source
from perfuse_ingest.transforms import Cropped, Resampled, Windowed


@dataclass(frozen=True)
class Shaping:
    """How a source is changed before it is stored; by default not at all."""

    crop: tuple[slice, slice, slice] | None = None
    """Voxels of the source that are kept: z, y, x."""
    target_um: float | None = None
    """Edge of the voxels that are stored, where the source's are finer or coarser."""
    window: tuple[float, float] | None = None
    """Intensities that become 0 and 255."""
    clahe: bool = False
    """Contrast-limited adaptive histogram equalisation of the whole volume."""

    def as_json(self) -> dict[str, Any]:
        """As it is kept with a scan."""
        crop = None if self.crop is None else [[s.start, s.stop] for s in self.crop]
        window = None if self.window is None else list(self.window)
        return {"crop": crop, "target_um": self.target_um, "window": window, "clahe": self.clahe}

    @classmethod
    def from_json(cls, kept: dict[str, Any]) -> "Shaping":
        """The opposite of `as_json`."""
        crop, window = kept["crop"], kept["window"]
        return cls(
            None if crop is None else tuple(slice(*ends) for ends in crop),  # type: ignore[arg-type]
            kept["target_um"],
            None if window is None else (window[0], window[1]),
            kept["clahe"],
        )

    def origin_um(self, voxel_size_um: Spacing) -> Spacing:
        """Centre of the first voxel that is stored, from that of the source's first voxel: z, y, x."""
        start = [0, 0, 0] if self.crop is None else [s.start or 0 for s in self.crop]
        z, y, x = (
            a * v + (0.0 if self.target_um is None else (self.target_um - v) / 2)
            for a, v in zip(start, voxel_size_um, strict=True)
        )
        return z, y, x

    def of(self, source: Source, voxel_size_um: Spacing) -> Source:
        """The source as it will be stored. Raises SourceError for a crop or window that cannot be."""
        if self.crop is not None:
            cut = [s.indices(n)[:2] for s, n in zip(self.crop, source.shape_zyx, strict=True)]
            source = Cropped(source, Box(index3([a for a, _ in cut]), index3([b for _, b in cut])))
        if self.target_um is not None:
            source = Resampled(source, voxel_size_um, self.target_um)
        if self.clahe:
            source = Equalised(source)
        return source if self.window is None else Windowed(source, self.window)
