"""What a file's name says of how a label is written into it."""

import tempfile
from collections.abc import Callable
from pathlib import Path

from perfuse import storage
from perfuse.catalog import Scan
from perfuse.contract import threshold_of
from perfuse.errors import ScanError
from perfuse.labels import own_threshold
from perfuse_ingest.export.files import write_nifti, write_slices, write_table
from perfuse_ingest.export.masks import Slabs
from perfuse_ingest.export.mesh import write_ply, write_stl
from perfuse_ingest.export.views import write_projections, write_turning

FORMATS: dict[str, tuple[Callable[[Slabs, Path], None], str]] = {
    ".csv": (write_table, "run lengths by slice, as the competition asks"),
    ".nii": (write_nifti, "NIfTI"),
    ".nii.gz": (write_nifti, "NIfTI, compressed"),
    ".stl": (write_stl, "a mesh of triangles"),
    ".ply": (write_ply, "a mesh with shared vertices"),
    ".png": (write_projections, "maximum intensity projections along the three axes"),
    ".gif": (write_turning, "a turning projection, shaded by depth"),
}


def export(scan: Scan, label: str, out: str, threshold: float | None = None) -> str:
    """Write the voxels of a label from a threshold on into a file or a folder at any URL; returns that URL.

    threshold: a probability; None: that of the model that made the label, else ½. The file appears when it is whole: one for a
    store is written here, then uploaded. Raises ScanError for a label that is not there, a name that says no format, or a folder
    that is in use, and ServerError, before the work, for a store that cannot be reached.
    """
    own = own_threshold(scan.label_info(label))
    slabs = Slabs(scan, label, own if threshold is None else threshold_of(threshold))
    url = storage.normal(out)
    if out.endswith("/"):
        write_slices(slabs, url)
        return url
    ending = next((e for e in sorted(FORMATS, key=len, reverse=True) if out.lower().endswith(e)), None)
    if ending is None:
        known = "; ".join([*(f"{e}: {what}" for e, (_, what) in FORMATS.items()), "/: a folder of TIFF slices"])
        raise ScanError(f"The name of the file says the format, and {out!r} says none. There are {known}.")
    with tempfile.TemporaryDirectory(prefix=".perfuse-", dir=_beside(url)) as folder:
        unfinished = Path(folder, f"unfinished{ending}")
        FORMATS[ending][0](slabs, unfinished)
        storage.move_to(unfinished, url)
    return url


def _beside(url: str) -> Path | None:
    """The folder of a file on a disk, made where it is not there; None in a store, which is asked whether it can be reached."""
    if storage.is_remote(url):
        storage.exists(url)
        return None
    folder = storage.local_path(url).parent
    folder.mkdir(parents=True, exist_ok=True)
    return folder
