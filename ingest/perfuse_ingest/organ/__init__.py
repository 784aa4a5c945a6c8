"""Where the organ is: found on a coarse level, written as a label that people may replace."""

from perfuse_ingest.organ.find import Found, find_organ
from perfuse_ingest.organ.mask import mask_organ

__all__ = ["Found", "find_organ", "mask_organ"]
