"""Where voxels come from: stacks of slices and volumes, in any format, on any fsspec URL."""

from perfuse import storage
from perfuse.errors import SourceError
from perfuse_ingest.sources.source import Source
from perfuse_ingest.sources.stack import open_stack
from perfuse_ingest.sources.volumes import is_volume, open_volume

__all__ = ["Source", "check_dtype", "open_source"]


def open_source(url: str, *, level: int = 0, allow_gaps: bool = False) -> Source:
    """Open what stands at a URL, a stack or a volume, and check its headers.

    url: a folder of slices (TIFF or JPEG 2000, one a file), one multi-page TIFF, a zip or tar archive of either
    (ARCHIVE::FOLDER picks one of its folders), OME-Zarr, Zarr, N5, NIfTI or HDF5 (FILE.h5:DATASET); a path, s3://,
    gs://, http(s)://. level: of a volume with several, 0 the finest. allow_gaps: slice numbers that are missing read as
    zeros. Raises SourceError; SliceError naming file and index; ServerError for a store that is away.
    """
    if is_volume(url):
        return open_volume(url, level=level)
    if level:
        raise SourceError(f"{url} is a stack of slices and has no level {level}: leave the level out.")
    return open_stack(url, allow_gaps=allow_gaps)


def check_dtype(source: Source, allowed: tuple[str, ...]) -> None:
    """Raises SourceError when an image's dtype is none of `allowed`. Masks have any, and are checked by value."""
    if str(source.dtype) not in allowed:
        raise SourceError(
            f"The slices of {storage.public(source.url)} have dtype {source.dtype} ({source.names[0]}); allowed are "
            f"{', '.join(allowed)}. Convert the stack first."
        )
