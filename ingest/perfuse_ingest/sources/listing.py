"""What files stand at a source's URL: in a folder, on a web server's index page, in an archive; or one file."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

from perfuse import storage
from perfuse.errors import SourceError
from perfuse_ingest.sources import archives
from perfuse_ingest.sources.naming import SLICES, is_slice
from perfuse_ingest.sources.stored import Stored, fetch_http, is_http, size_of, unquoted_name

_HINT = (
    "Give a folder of slices, one multi-page TIFF (.tif, .tiff), or an archive of slices (.zip, .tar); "
    "ARCHIVE::FOLDER picks a folder of several."
)


@dataclass(frozen=True)
class Files:
    """Files that stand side by side."""

    url: str
    where: str
    """How messages call the place."""
    files: dict[str, Stored]
    """By name."""


def files_at(url: str) -> Files:
    """The files of a source. Raises SourceError when it is absent, no source, or an archive of several folders."""
    archive, _, inside = url.rpartition("::")
    if not archives.is_archive(unquoted_name(archive)):
        archive, inside = url, ""
    name = unquoted_name(archive)
    with storage.reaching(archive):
        if archives.is_archive(name):
            return _in_archive(url, _one_file(archive), inside.strip("/"))
        if _is_folder(archive, name):
            return Files(url, storage.public(url), {f.name: f for f in _in_folder(archive)})
    if not is_slice(name):
        raise SourceError(f"{storage.public(url)} is no TIFF, JPEG 2000 or archive. {_HINT}")
    one = _one_file(archive)
    return Files(url, one.where, {one.name: one})


def _is_folder(url: str, name: str) -> bool:
    if is_http(url):  # whose folders are files as well
        return not is_slice(name)
    files = storage.filesystem(url)
    if not files.exists(url):
        raise _absent(url)
    return bool(files.isdir(url))


def _absent(url: str) -> SourceError:
    return SourceError(f"{storage.public(url)} does not exist. {_HINT}")


def _one_file(url: str) -> Stored:
    where = storage.public(url)
    try:
        with storage.reaching(url):
            stored = Stored(url, size_of(url))
            if is_http(url) and stored.size > 1:
                fetch_http(url, 1, 2)
            return stored
    except FileNotFoundError:
        raise _absent(url) from None
    except ValueError as error:
        raise SourceError(f"{where} cannot be read by parts ({error}). Download it first.") from error


def _in_folder(url: str) -> list[Stored]:
    if is_http(url):
        return _on_index_page(url)
    if not storage.is_remote(url):
        with os.scandir(storage.local_path(url)) as entries:
            found = [(e.name, e.stat().st_size) for e in entries if e.is_file()]
    else:
        listed = storage.filesystem(url).ls(url, detail=True)
        key = storage.filesystem(url)._strip_protocol(url)
        found = [
            (storage.name_of(e["name"]), int(e["size"])) for e in listed if e["type"] == "file" and e["name"] != key
        ]
    return [Stored(storage.join(url, name), size) for name, size in sorted(found)]


def _on_index_page(url: str) -> list[Stored]:
    """The links of a web server's page that lead to files of this very folder; their sizes are asked for later."""
    folder = url.split("?", 1)[0].rstrip("/") + "/"
    try:
        links = storage.filesystem(url).ls(folder, detail=False)
    except FileNotFoundError:
        raise _absent(url) from None
    names = {link.removeprefix(folder) for link in links if link.startswith(folder)}
    found = sorted(n for n in names if n and not set(n) & set("/?#"))
    if not found:
        raise SourceError(
            f"{storage.public(url)} lists no files: a web server shows a folder only by an index page with links. Give "
            "an archive of the slices (.zip, .tar) or one multi-page TIFF on that server, or download the folder."
        )
    return [Stored(folder + n, -1) for n in found]


def _in_archive(url: str, archive: Stored, inside: str) -> Files:
    folders = archives.members(archive)
    where = f"{archive.where}::{inside}" if inside else archive.where
    if inside and inside not in folders:
        folder = str(PurePosixPath(inside).parent)
        return Files(url, where, _by_name(f for f in folders.get(folder, []) if f.name == PurePosixPath(inside).name))
    if inside:
        return Files(url, where, _by_name(folders[inside]))
    holding = sorted(name for name, files in folders.items() if any(is_slice(f.name) for f in files))
    if not holding:
        raise SourceError(f"{where} holds no {SLICES}.")
    if len(holding) > 1:
        raise SourceError(
            f"{where} holds images in several folders: {', '.join(holding)}. Pick one, as {where}::{holding[0]}"
        )
    return Files(url, where, _by_name(folders[holding[0]]))


def _by_name(files: Iterable[Stored]) -> dict[str, Stored]:
    return {f.name: f for f in files}
