"""Masks in containers that are cut where they lie: TIFF, HDF5, Zarr."""

from typing import Any

import fsspec
import numpy as np
from numpy.typing import NDArray

from perfuse.errors import SourceError
from perfuse_ingest.masks.volume import MaskVolume, VoxelSize, three_axes

_UM_PER_UNIT = {"nanometer": 1e-3, "micrometer": 1.0, "millimeter": 1e3, "centimeter": 1e4, "meter": 1e6}


class TiffMask(MaskVolume):
    """One page a slice."""

    def __init__(self, url: str) -> None:
        import tifffile
        import zarr

        super().__init__(url)
        file = self._files.enter_context(fsspec.open(url, "rb"))
        series = self._files.enter_context(tifffile.TiffFile(file)).series[0]
        self.shape_zyx, self.dtype = three_axes(series.shape, url), series.dtype
        self._array: Any = zarr.open_array(series.aszarr(level=0), mode="r")

    def _read(self, z_begin: int, z_end: int) -> NDArray[Any]:
        try:
            return np.asarray(self._array[z_begin:z_end])
        except (ValueError, OSError, RuntimeError) as error:
            raise SourceError(f"{self.url}: pages {z_begin}–{z_end - 1} cannot be decoded ({error})") from error


class Hdf5Mask(MaskVolume):
    """A dataset by name, or the only one of the file."""

    def __init__(self, path: str, dataset: str) -> None:
        import h5py

        super().__init__(path)
        file = self._files.enter_context(h5py.File(self._files.enter_context(fsspec.open(path, "rb")), "r"))
        found: list[str] = []
        file.visititems(lambda name, item: found.append(name) if isinstance(item, h5py.Dataset) else None)
        name = dataset.strip("/") or (found[0] if len(found) == 1 else "")
        if name not in found:
            raise SourceError(f"{path} holds the datasets {', '.join(found) or '(none)'}: pick one, as {path}:NAME")
        self._dataset = file[name]
        self.shape_zyx, self.dtype = three_axes(self._dataset.shape, path), self._dataset.dtype
        self.voxel_size_um = _element_size(self._dataset.attrs.get("element_size_um"))

    def _read(self, z_begin: int, z_end: int) -> NDArray[Any]:
        try:
            return np.asarray(self._dataset[z_begin:z_end])
        except OSError as error:
            raise SourceError(f"{self.url}: planes {z_begin}–{z_end - 1} cannot be decoded ({error})") from error


class ZarrMask(MaskVolume):
    """An array, or the finest level of an OME-Zarr group."""

    def __init__(self, url: str) -> None:
        import zarr

        super().__init__(url)
        self._array: Any = zarr.open(url, mode="r")
        if isinstance(self._array, zarr.Group):
            multiscale = _multiscale(dict(self._array.attrs), url)
            self._array = self._array[multiscale["datasets"][0]["path"]]
            self.voxel_size_um = _ome_voxel_size(multiscale)
        shape = tuple(self._array.shape)
        self._leading = (0,) * max(0, len(shape) - 3)
        if any(n != 1 for n in shape[: len(self._leading)]):
            raise SourceError(f"{url} has shape {shape}: axes before z, y, x must have length 1")
        self.shape_zyx, self.dtype = three_axes(shape[len(self._leading) :], url), self._array.dtype

    def _read(self, z_begin: int, z_end: int) -> NDArray[Any]:
        try:
            return np.asarray(self._array[(*self._leading, slice(z_begin, z_end))])
        except (ValueError, OSError, RuntimeError) as error:
            raise SourceError(f"{self.url}: planes {z_begin}–{z_end - 1} cannot be decoded ({error})") from error


def _element_size(size: Any) -> VoxelSize | None:
    """`element_size_um`, z, y, x: what several segmentation tools write beside an HDF5 dataset."""
    return None if size is None else (float(size[0]), float(size[1]), float(size[2]))


def _multiscale(attributes: dict[str, Any], url: str) -> dict[str, Any]:
    """The first multiscale of OME-Zarr 0.5 (below `ome`) or 0.4."""
    multiscales = attributes.get("ome", attributes).get("multiscales")
    if not multiscales:
        raise SourceError(f"{url} is a Zarr group without OME-Zarr metadata: give the URL of one of its arrays")
    return dict(multiscales[0])


def _ome_voxel_size(multiscale: dict[str, Any]) -> VoxelSize | None:
    """The scale of the finest level, where all three axes state a unit of length."""
    transformations = multiscale["datasets"][0].get("coordinateTransformations", [])
    scales = [t["scale"][-3:] for t in transformations if t["type"] == "scale"]
    units = [_UM_PER_UNIT.get(axis.get("unit", "")) for axis in multiscale["axes"][-3:]]
    if not scales or None in units:
        return None
    z, y, x = (float(scale) * unit for scale, unit in zip(scales[0], units, strict=True) if unit)
    return z, y, x
