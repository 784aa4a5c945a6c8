"""Masks as tables of run lengths, as stacks of TIFF slices, and as NIfTI volumes."""

import gzip
import io
from pathlib import Path
from typing import Any

import numpy as np

from perfuse import storage
from perfuse.errors import ScanError
from perfuse_ingest.export.masks import Mask, Slabs

_GZIP_LEVEL = 6
UNFINISHED = "unfinished.json"
"""In a folder of slices that is being written: of what."""


def write_table(slabs: Slabs, out: Path) -> None:
    """`id,rle` with a row a slice, as Kaggle's vessel competition asks: SPECIMEN_0000, voxels from 1, along the rows."""
    name = slabs.scan.info.specimen
    with out.open("w", newline="\n") as file:
        file.write("id,rle\n")
        for first, mask in slabs:
            file.writelines(f"{name}_{first + n:04d},{encode(plane)}\n" for n, plane in enumerate(mask))


def encode(plane: Mask) -> str:
    """The runs of a slice bool[y, x] as pairs `start length`, counted from 1 along the rows; `1 0` when it is empty."""
    edges = np.flatnonzero(np.diff(plane.ravel(), prepend=False, append=False))
    if not len(edges):
        return "1 0"
    start, stop = edges[::2], edges[1::2]
    return " ".join(map(str, np.stack([start + 1, stop - start], 1).ravel().tolist()))


def write_slices(slabs: Slabs, url: str) -> None:
    """A folder of TIFF slices, 0 and 255, deflated, with the voxel size (that along z as ImageJ has it).

    What was cut off is written anew by the same request: until all slices are there, `unfinished.json` says whose they are.
    Raises ScanError for a folder with anything else in it: slices would mix.
    """
    import tifffile

    note = storage.join(url, UNFINISHED)
    begun = {"label": slabs.scan.label_info(slabs.label).digest, "threshold": slabs.threshold}
    if not storage.is_empty(url) and not (storage.exists(note) and storage.read_json(note) == begun):
        raise ScanError(
            f"The folder {url} is not empty: slices would mix with what lies there. Name a new one, or empty it."
        )
    storage.write_json(note, begun)
    z_um, y_um, x_um = slabs.scan.info.voxel_size_um
    digits = max(4, len(str(slabs.scan.shape_zyx[0] - 1)))
    for first, mask in slabs:
        for number, plane in enumerate(mask, first):
            slice_ = io.BytesIO()
            tifffile.imwrite(
                slice_,
                plane.astype(np.uint8) * np.uint8(255),
                compression="zlib",
                resolution=(1e4 / x_um, 1e4 / y_um),
                resolutionunit="CENTIMETER",
                description=f"ImageJ=1.11a\nunit=um\nspacing={z_um}\n",
                metadata=None,
            )
            storage.write_bytes(storage.join(url, f"{number:0{digits}d}.tif"), slice_.getvalue())
    storage.remove_leftovers(url)
    storage.remove_file(note)


def write_nifti(slabs: Slabs, out: Path) -> None:
    """NIfTI-1 of uint8, 0 and 1, in mm from the scan's origin, with x the fastest axis; compressed when its name ends in .gz."""
    import nibabel

    z, y, x = slabs.scan.shape_zyx
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.uint8)
    header.set_data_shape((x, y, z))
    header.set_xyzt_units("mm")
    affine = np.diag([*reversed(slabs.scan.info.voxel_size_um), 1000.0]) / 1000
    affine[:3, 3] = np.array(slabs.scan.info.origin_um[::-1]) / 1000
    header.set_sform(affine, code="scanner")
    header.set_qform(affine, code="scanner")
    header["vox_offset"], header["magic"] = 352, b"n+1"
    with _opened(out) as file:
        file.write(header.binaryblock + bytes(4))
        for _, mask in slabs:
            file.write(mask.tobytes())


def _opened(out: Path) -> Any:
    return gzip.open(out, "wb", _GZIP_LEVEL) if out.suffix == ".gz" else out.open("wb")
