"""Masks as volumes that are read slab by slab: NIfTI, HDF5, multi-page TIFF, Zarr; from any fsspec URL.

A mask has two values: zero, and whatever stands for the vessels. Axes are z, y, x; a NIfTI file, which holds x, y, z,
is turned on reading (its affine is not applied).
"""

import hashlib

import fsspec

from perfuse.errors import SourceError
from perfuse_ingest.masks.nifti import NiftiMask
from perfuse_ingest.masks.stored import Hdf5Mask, TiffMask, ZarrMask
from perfuse_ingest.masks.volume import MaskVolume

__all__ = ["FORMATS", "MaskVolume", "content_digest", "open_mask"]

FORMATS = "NIfTI (.nii, .nii.gz), HDF5 (.h5, .hdf5; FILE.h5:DATASET picks one), TIFF (.tif, .tiff), Zarr (.zarr)"


def open_mask(url: str) -> MaskVolume:
    """Opens a mask by the ending of its name, as a context manager; only metadata is read now.

    Raises SourceError when the format is not one of FORMATS, the file is absent or damaged, or it is not 3D.
    """
    try:
        return _open(url)
    except SourceError:
        raise
    except FileNotFoundError as error:
        raise SourceError(f"{url} does not exist: give the path or URL of a mask, as {FORMATS}") from error
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise SourceError(f"{url} cannot be read as a mask ({error}): it should be one of {FORMATS}") from error


def _open(url: str) -> MaskVolume:
    path, dataset = _split_dataset(url)
    name = path.rstrip("/").lower()
    if name.endswith((".nii", ".nii.gz")):
        return NiftiMask(url)
    if name.endswith((".tif", ".tiff")):
        return TiffMask(url)
    if name.endswith((".h5", ".hdf5")):
        return Hdf5Mask(path, dataset)
    if ".zarr" in name:
        return ZarrMask(url)
    raise SourceError(f"{url}: unknown kind of mask; allowed are {FORMATS}")


def content_digest(url: str) -> str:
    """SHA-256 over the bytes of a file, or of all files of a folder by name: equal digests, equal masks."""
    path, dataset = _split_dataset(url)
    fs, root = fsspec.core.url_to_fs(path.rstrip("/"))
    digest = hashlib.sha256(dataset.encode())
    for name in sorted(fs.find(root)):
        digest.update(name[len(root) :].encode() + b"\0")
        with fs.open(name, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _split_dataset(url: str) -> tuple[str, str]:
    """FILE.h5:DATASET as (FILE.h5, DATASET); anything else as (url, "")."""
    path, _, dataset = url.rpartition(":")
    return (path, dataset) if path.lower().endswith((".h5", ".hdf5")) else (url, "")
