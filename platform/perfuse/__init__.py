"""perfuse: vessel maps from organ-scale X-ray scans. The library; it never imports Ray or Dask."""

__version__ = "0.1.0"
