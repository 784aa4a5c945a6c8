"""Slices to sharded OME-Zarr, on Dask."""
