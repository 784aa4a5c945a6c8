"""Bytes on any fsspec URL: joining, small JSON files, digests, and errors that say which server is away."""

import hashlib
import json
import os
import posixpath
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from http import HTTPStatus
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import fsspec

from perfuse.errors import PerfuseError, ServerError

AT_ONCE = 64
"""Parts of files, as chunks, that are fetched from a remote store at the same time."""


def is_remote(url: str) -> bool:
    """True for URLs that are not on this machine's disk."""
    return "://" in url and not url.startswith("file://")


def local_path(url: str) -> Path:
    """The path of a local URL."""
    return Path(url.removeprefix("file://")).expanduser()


def normal(url: str) -> str:
    """One spelling per place: absolute local paths, no trailing slash."""
    return url.rstrip("/") if is_remote(url) else str(local_path(url).absolute())


def join(url: str, *parts: str) -> str:
    """Append path parts to a URL."""
    return "/".join([url.rstrip("/"), *parts])


def name_of(url: str) -> str:
    """The last part of a URL."""
    return url.rstrip("/").rsplit("/", 1)[-1]


def beside(url: str, other: str) -> str:
    """What a file means by a path that is relative to its own folder; absolute paths and URLs are what they are."""
    if "://" in other:
        return other
    protocol, slashes, path = url.rpartition("://")
    return protocol + slashes + posixpath.normpath(posixpath.join(posixpath.dirname(path), other))


def public(url: str) -> str:
    """A URL as it may be stored and shown: without user, password and query."""
    if not is_remote(url):
        return url
    protocol, rest = url.split("://", 1)
    host, slash, path = rest.split("?", 1)[0].partition("/")
    return f"{protocol}://{host.rpartition('@')[2]}{slash}{path}"


def filesystem(url: str) -> fsspec.AbstractFileSystem:
    """The filesystem that serves a URL; it asks the server each time, because other processes write too."""
    protocol = url.split("://", 1)[0] if is_remote(url) else "file"
    options: dict[str, Any] = {"auto_mkdir": True} if protocol == "file" else {"use_listings_cache": False}
    try:
        return fsspec.filesystem(protocol, **options)
    except (ValueError, ImportError) as error:
        raise PerfuseError(f"{url} cannot be opened: {error}. Give a path, or a URL as s3://bucket/…") from error


@contextmanager
def reaching(url: str) -> Iterator[None]:
    """Turn a store's connection and credential failures into one message that names the store."""
    try:
        yield
    except (PerfuseError, FileNotFoundError):
        raise
    except PermissionError as error:
        raise ServerError(
            f"No permission for {url}: {error}. Check the credentials (for s3://: AWS_ACCESS_KEY_ID, "
            "AWS_SECRET_ACCESS_KEY or AWS_PROFILE) and the bucket's policy."
        ) from error
    except Exception as error:
        if is_remote(url) and _is_connection_trouble(error):
            raise ServerError(
                f"Cannot reach the store of {url}: {type(error).__name__}: {error}. Check the address "
                "(for s3://: AWS_ENDPOINT_URL), the credentials and the network, then run the same command again."
            ) from error
        raise


def _is_connection_trouble(error: BaseException) -> bool:
    module = type(error).__module__.split(".")[0]
    return isinstance(error, OSError) or module in {"botocore", "aiobotocore", "aiohttp"}


def exists(url: str) -> bool:
    """True when a file or folder is there."""
    with reaching(url):
        return bool(filesystem(url).exists(url))


def read_bytes(url: str) -> bytes:
    """A whole small file; FileNotFoundError when it is absent."""
    with reaching(url):
        return bytes(filesystem(url).cat_file(url))


def read_ranges(ranges: Sequence[tuple[str, int, int]]) -> Iterator[bytes | None]:
    """Parts of files, in order: URL, first byte, last + 1; (URL, −n, 0): its last n bytes. None where there is no such file.

    From a remote store `AT_ONCE` are fetched at once; from a disk one after the other, as they are asked for.
    """
    if ranges and is_remote(ranges[0][0]):
        for first in range(0, len(ranges), AT_ONCE):
            yield from _fetched(ranges[first : first + AT_ONCE])
        return
    for url, of_file in groupby(ranges, key=itemgetter(0)):
        try:
            with reaching(url):
                file = local_path(url).open("rb", buffering=0)
        except FileNotFoundError:
            yield from (None for _ in of_file)
            continue
        with reaching(url), file:
            size = os.fstat(file.fileno()).st_size
            for _, start, stop in of_file:
                first = max(0, size + start) if start < 0 else start
                file.seek(first)
                yield file.read((stop if start >= 0 else size) - first)


def _fetched(ranges: Sequence[tuple[str, int, int]]) -> Iterator[bytes | None]:
    url = ranges[0][0]
    with reaching(url):
        urls, starts, stops = zip(*ranges, strict=True)
        ends = [stop or None for stop in stops]
        for found in filesystem(url).cat_ranges(list(urls), list(starts), ends, on_error="return"):
            if isinstance(found, Exception) and not isinstance(found, FileNotFoundError):
                raise found
            yield None if isinstance(found, FileNotFoundError) else bytes(found)


def write_bytes(url: str, data: bytes) -> None:
    """Write a whole file; readers see the old or the new one, never a torn one."""
    write_parts(url, [data])


def check_writable(*paths: Path | None) -> None:
    """PerfuseError unless each file that a user names for results can be written: asked before the work, lest it be lost."""
    for path in filter(None, paths):
        try:
            with path.open("ab") if path.exists() else tempfile.TemporaryFile(dir=path.parent):
                pass
        except OSError as error:
            raise PerfuseError(
                f"{path} cannot be written: {error.strerror}. Name a file in a folder of this machine that is there and may be "
                "written to."
            ) from error


def write_parts(url: str, parts: Sequence[bytes]) -> None:
    """Write a whole file from its parts, as `write_bytes` does."""
    with reaching(url):
        if is_remote(url):
            filesystem(url).pipe_file(url, b"".join(parts))
            return
        path = local_path(url)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.partial")
        with partial.open("wb") as file:
            file.writelines(parts)
        partial.replace(path)


def move_to(path: Path, url: str) -> None:
    """Move a local file to a URL, whatever stands there; on one disk readers see the old or the new one, never a torn one."""
    with reaching(url):
        if not is_remote(url):
            path.replace(local_path(url))
            return
        filesystem(url).put_file(str(path), url)
        path.unlink()


def remove_file(url: str) -> None:
    """Remove a file, if it is there."""
    with reaching(url), suppress(FileNotFoundError):
        filesystem(url).rm_file(url)


def create_bytes(url: str, data: bytes) -> bool:
    """Write a whole small file unless one is there; False when one is. Of several who try at once, one succeeds."""
    with reaching(url):
        try:
            filesystem(url).pipe_file(url, data, mode="create")
        except FileExistsError:
            return False
        except OSError as error:
            response = getattr(error.__cause__, "response", None) or {}
            if response.get("ResponseMetadata", {}).get("HTTPStatusCode") != HTTPStatus.PRECONDITION_FAILED:
                raise
            return False
    return True


def read_json(url: str) -> Any:
    """A JSON file's value."""
    return json.loads(read_bytes(url))


def write_json(url: str, value: Any) -> None:
    """Write a JSON file, the same bytes for the same value."""
    write_bytes(url, json.dumps(value, indent=2, sort_keys=True).encode())


def remove_leftovers(url: str) -> None:
    """Remove what killed writers left of files that they had not finished, on a disk; a store keeps none."""
    if not is_remote(url):
        for path in local_path(url).rglob("*.partial"):
            path.unlink()


def is_empty(url: str) -> bool:
    """True for a folder without anything in it, or where there is nothing."""
    with reaching(url):
        return not exists(url) or not filesystem(url).ls(url, detail=False)


def size_of(url: str) -> int:
    """Bytes of all files below a URL; 0 where there is nothing."""
    with reaching(url):
        return int(filesystem(url).du(normal(url))) if exists(url) else 0


def folders(url: str) -> list[str]:
    """Names of the folders in a folder, sorted; none where there is nothing."""
    with reaching(url):
        if not exists(url):
            return []
        return sorted(name_of(e["name"]) for e in filesystem(url).ls(url, detail=True) if e["type"] == "directory")


def remove_tree(url: str) -> None:
    """Remove a folder and all in it, if it is there."""
    with reaching(url):
        files = filesystem(url)
        if files.exists(url):
            files.rm(url, recursive=True)


def digest_bytes(*parts: bytes) -> str:
    """SHA-256 over length-prefixed parts, in hex: parts cannot run into one another."""
    total = hashlib.sha256()
    for part in parts:
        total.update(len(part).to_bytes(8, "little"))
        total.update(part)
    return total.hexdigest()


def digest_json(value: Any) -> str:
    """SHA-256 of a value's canonical JSON."""
    return digest_bytes(json.dumps(value, sort_keys=True, separators=(",", ":")).encode())
