"""Volumes in containers: OME-Zarr, Zarr, N5, NIfTI, HDF5, .npy; from local disk and object stores."""

from perfuse import storage
from perfuse.errors import SourceError
from perfuse_ingest.sources.source import Source
from perfuse_ingest.sources.volumes.chunked import open_chunked
from perfuse_ingest.sources.volumes.flat import FlatVolume
from perfuse_ingest.sources.volumes.hdf5 import Hdf5Volume
from perfuse_ingest.sources.volumes.layout import find_layout
from perfuse_ingest.sources.volumes.stores import is_reachable

__all__ = ["FORMATS", "is_volume", "open_volume"]

FORMATS = (
    "OME-Zarr, Zarr or N5 folders, NIfTI (.nii, .nii.gz), HDF5 (.h5, .hdf5; FILE.h5:DATASET picks one), NumPy (.npy)"
)
_FLAT, _HDF5, _FOLDERS = (".nii", ".nii.gz", ".npy"), (".h5", ".hdf5"), (".zarr", ".n5")
_SLICES = (".tif", ".tiff", ".jp2", ".j2k", ".zip", ".tar", ".gz", ".tgz")


def is_volume(url: str) -> bool:
    """True for what `open_volume` is for: by the ending of the name, or by the metadata that a folder holds."""
    name = _dataset_of(url)[0].rstrip("/").lower()
    if name.endswith((*_FLAT, *_HDF5, *_FOLDERS)):
        return True
    if name.endswith(_SLICES):
        return False
    if not is_reachable(url):
        return False
    try:
        return find_layout(storage.normal(url)) is not None
    except SourceError:
        return True  # metadata are there, and `open_volume` says what is wrong with them


def open_volume(url: str, *, level: int = 0) -> Source:
    """A volume as a source; only metadata are read now, and a few blocks of a single file. level: of a pyramid, 0 the finest.

    Raises SourceError when it does not exist, is no volume or has no such level (the message lists those that there
    are); SliceError for a file that is truncated; ServerError when the store is away.
    """
    path, dataset = _dataset_of(url)
    path = storage.normal(path)
    name = path.lower()
    if not name.endswith((*_FLAT, *_HDF5)):
        return open_chunked(path, level)
    if level:
        raise SourceError(f"{url} has no levels: only OME-Zarr and N5 volumes have. Leave the level out.")
    try:
        return FlatVolume(path) if name.endswith(_FLAT) else Hdf5Volume(path, dataset)
    except FileNotFoundError as error:
        raise SourceError(f"{path} does not exist. Give the path or URL of a volume: {FORMATS}.") from error


def _dataset_of(url: str) -> tuple[str, str]:
    """FILE.h5:DATASET as (FILE.h5, DATASET); anything else as (url, "")."""
    path, _, dataset = url.rpartition(":")
    return (path, dataset) if path.lower().endswith(_HDF5) else (url, "")
