"""Zip and tar archives of slices, read where they lie: each member is a range of the archive's bytes."""

import re
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import BinaryIO

from perfuse import storage
from perfuse.errors import SourceError
from perfuse_ingest.sources.naming import is_slice
from perfuse_ingest.sources.stored import Stored

_ZIP, _TAR = (".zip",), (".tar",)
_COMPRESSED_TAR = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")
_DEFLATE_AT_MOST = 1100
"""Deflate cannot shrink more than 1,032 times."""
_INFLATED_AT_MOST = 8 * 2**30
_ENCRYPTED = 0x1
_BLOCK = 512


def is_archive(name: str) -> bool:
    """True by the ending of a name."""
    return name.lower().endswith(_ZIP + _TAR + _COMPRESSED_TAR)


def members(archive: Stored) -> dict[str, list[Stored]]:
    """The files of an archive, by folder ("." for those that lie in none).

    Raises SourceError for an archive that is damaged, is a compressed tar, or has members that lie outside of it, are
    links or devices, are encrypted or state an absurd size.
    """
    where = archive.where
    if archive.name.lower().endswith(_COMPRESSED_TAR):
        raise SourceError(
            f"{where} is a compressed tar, which cannot be read from the middle. Decompress it to a plain .tar (as with "
            "gunzip or bunzip2), or make it a .zip."
        )
    folders: dict[str, list[Stored]] = {}
    seen: set[str] = set()
    with storage.reaching(archive.url), archive.open() as file:
        listed = _zip(archive, file) if archive.name.lower().endswith(_ZIP) else _tar(archive, file)
        for stored in listed:
            _check_inside(where, stored.member)
            if stored.member in seen:
                raise SourceError(f"{stored.where} is there twice. Keep one of them.")
            seen.add(stored.member)
            folders.setdefault(str(PurePosixPath(stored.member).parent), []).append(stored)
    return folders


def _check_inside(where: str, path: str) -> None:
    parts = path.replace("\\", "/").split("/")
    if ".." in parts or not parts[0] or re.match(r"[A-Za-z]:", path):
        raise SourceError(f"{where} holds {path!r}, a name that points outside of the archive. It is not read.")


def _zip(archive: Stored, file: BinaryIO) -> Iterator[Stored]:
    try:
        with zipfile.ZipFile(file) as listing:
            infos, end = listing.infolist(), listing.start_dir
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise SourceError(f"{archive.where} is no readable zip archive: {error}. Copy it again.") from error
    infos.sort(key=lambda info: info.header_offset)
    limits = [info.header_offset for info in infos[1:]] + [end]
    for info, limit in zip(infos, limits, strict=True):
        if not info.is_dir():
            if is_slice(PurePosixPath(info.filename).name):
                _check_zipped(archive.where, info, limit)
            packed = info.compress_size if info.compress_type == zipfile.ZIP_DEFLATED else None
            yield Stored(archive.url, info.file_size, info.header_offset, packed, info.CRC, info.filename)


def _check_zipped(where: str, info: zipfile.ZipInfo, limit: int) -> None:
    name = f"{where}!{info.filename}"
    if info.flag_bits & _ENCRYPTED:
        raise SourceError(f"{name} is encrypted. Make an archive without a password.")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise SourceError(f"{name} is compressed by method {info.compress_type}; allowed are stored and deflated.")
    if info.file_size > min(_DEFLATE_AT_MOST * max(info.compress_size, 1), _INFLATED_AT_MOST) and info.compress_type:
        raise SourceError(
            f"{name} states {info.file_size:,} bytes, compressed to {info.compress_size:,}: at most "
            f"{_DEFLATE_AT_MOST:,} times as many, and {_INFLATED_AT_MOST:,}, are inflated. Store it uncompressed."
        )
    stored = not info.compress_type and info.file_size != info.compress_size
    if stored or info.header_offset + info.compress_size > limit:
        raise SourceError(f"{name} overlaps what follows: the archive is damaged, or made to deceive. Copy it again.")


def _tar(archive: Stored, file: BinaryIO) -> Iterator[Stored]:
    end = 0
    try:
        with tarfile.open(fileobj=file, mode="r:") as listing:
            for info in listing:
                end = info.offset_data + -(-info.size // _BLOCK) * _BLOCK if info.isfile() else info.offset_data
                if info.isfile():
                    _check_tarred(archive, info)
                    yield Stored(archive.url, info.size, info.offset_data, member=info.name)
                elif not info.isdir():
                    raise SourceError(f"{archive.where}!{info.name} is a link or device. Archive the files themselves.")
    except tarfile.TarError as error:
        raise SourceError(f"{archive.where} is no readable tar archive: {error}. Copy it again.") from error
    file.seek(end)
    if file.read(_BLOCK) != bytes(_BLOCK):
        raise SourceError(f"{archive.where} is damaged or truncated at byte {end:,}. Copy it again.")


def _check_tarred(archive: Stored, info: tarfile.TarInfo) -> None:
    name = f"{archive.where}!{info.name}"
    if info.issparse():
        raise SourceError(f"{name} is stored as a sparse file. Archive it without --sparse.")
    if info.offset_data + info.size > archive.size:
        raise SourceError(f"{name} is truncated: the archive ends at byte {archive.size:,}. Copy the archive again.")
