"""Phantoms: vascular organs whose truth is exact, as HiP-CT would show them."""

from perfuse_ingest.phantom.write import PhantomSummary, write_phantom

__all__ = ["PhantomSummary", "write_phantom"]
