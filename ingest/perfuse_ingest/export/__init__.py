"""Labels as files for others: run lengths, slices, volumes, meshes and pictures, written slab by slab."""

from perfuse_ingest.export.masks import Mask, Slabs
from perfuse_ingest.export.writing import FORMATS, export

__all__ = ["FORMATS", "Mask", "Slabs", "export"]
