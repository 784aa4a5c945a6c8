"""Datasets of HDF5 files."""

from concurrent.futures import Executor
from functools import cached_property
from math import prod
from typing import Any

import fsspec
import numpy as np

from perfuse import storage
from perfuse.errors import SliceError, SourceError
from perfuse.geometry import Box
from perfuse_ingest.sources.source import Voxels
from perfuse_ingest.sources.volumes.probes import digest_of_file
from perfuse_ingest.sources.volumes.volume import Volume, check_finite, volume_shape


class Hdf5Volume(Volume):
    """A dataset by name, or the only one of the file. HDF5 decodes in one thread at a time."""

    _opened = ("_dataset",)

    def __init__(self, path: str, dataset: str) -> None:
        super().__init__()
        self._path, self._name = path, dataset.strip("/")
        stored = self._dataset
        shape, url = tuple(stored.shape or ()), f"{path}:{dataset}" if dataset else path
        self._describe(url, volume_shape(shape, stored.dtype, url), stored.dtype)
        self._leading = (0,) * (len(shape) - 3)
        self.largest_bytes = 2 * prod(stored.chunks or shape[-2:]) * self.dtype.itemsize
        size = stored.attrs.get("element_size_um")  # z, y, x: what several segmentation tools write
        self.voxel_size_um = None if size is None else (float(size[0]), float(size[1]), float(size[2]))
        self.identity = storage.digest_json([stored.name, digest_of_file(path)])

    @cached_property
    def _dataset(self) -> Any:
        """Opened again in every process."""
        import h5py

        with storage.reaching(self._path):
            opened = self._files.enter_context(fsspec.open(self._path, "rb"))
        try:
            file = self._files.enter_context(h5py.File(opened, "r"))
        except OSError as error:
            raise SourceError(f"{self._path} cannot be read as HDF5 ({error}). Copy the file again.") from error
        found: list[str] = []
        file.visititems(lambda name, item: found.append(name) if isinstance(item, h5py.Dataset) else None)
        name = self._name or (found[0] if len(found) == 1 else "")
        if name not in found:
            raise SourceError(
                f"{self._path} holds the datasets {', '.join(found) or '(none)'}: pick one, as {self._path}:NAME."
            )
        return file[name]

    def rows(self, box: Box, pool: Executor) -> Voxels:  # noqa: ARG002
        """See Source; only the chunks that the box touches are read."""
        try:
            voxels = np.asarray(self._dataset[(*self._leading, *box.slices)], self.dtype)
        except OSError as error:
            raise SliceError(
                f"Planes {box.start[0]} to {box.stop[0] - 1} of {self.url} cannot be decoded ({error}). Copy the file again."
            ) from error
        check_finite(voxels, box, self.url)
        return voxels
