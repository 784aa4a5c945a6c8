"""What a file's name says of how a label is written into it."""

from collections.abc import Callable
from pathlib import Path

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
    "/": (write_slices, "a folder of TIFF slices"),
    ".nii": (write_nifti, "NIfTI"),
    ".nii.gz": (write_nifti, "NIfTI, compressed"),
    ".stl": (write_stl, "a mesh of triangles"),
    ".ply": (write_ply, "a mesh with shared vertices"),
    ".png": (write_projections, "maximum intensity projections along the three axes"),
    ".gif": (write_turning, "a turning projection, shaded by depth"),
}


def export(scan: Scan, label: str, out: str, threshold: float | None = None) -> Path:
    """Write the voxels of a label from a threshold on into a file or a folder; returns its path.

    threshold: a probability; None: that of the model that made the label, else ½. The file appears when it is whole.
    Raises ScanError for a label that is not there or a name that says no format.
    """
    own = own_threshold(scan.label_info(label))
    slabs = Slabs(scan, label, own if threshold is None else threshold_of(threshold))
    ending = next((e for e in sorted(FORMATS, key=len, reverse=True) if out.lower().endswith(e)), None)
    if ending is None:
        known = "; ".join(f"{e}: {what}" for e, (_, what) in FORMATS.items())
        raise ScanError(f"The name of the file says the format, and {out!r} says none. There are {known}.")
    write, path = FORMATS[ending][0], Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    if ending == "/":
        write(slabs, path)
        return path
    unfinished = path.with_name(f".{path.name[: -len(ending)]}.unfinished{ending}")
    try:
        write(slabs, unfinished)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path
