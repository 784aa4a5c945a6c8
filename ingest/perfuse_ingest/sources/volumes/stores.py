"""Folders of chunks as tensorstore reaches them: local, s3://, gs://, http(s)://; one client for metadata and voxels."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from perfuse import storage
from perfuse.errors import PerfuseError, ServerError, SourceError

_PROTOCOLS = ("http", "https", "gs", "gcs", "s3")
_AWAY = ("ABORTED", "UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED")
_REFUSED = ("PERMISSION_DENIED", "UNAUTHENTICATED")


def is_reachable(url: str) -> bool:
    """True for the kinds of URL that tensorstore reads."""
    return not storage.is_remote(url) or url.split("://", 1)[0] in _PROTOCOLS


def kvstore(url: str) -> dict[str, Any]:
    """Tensorstore's description of a folder. Raises SourceError for a kind of URL that it does not read."""
    if not storage.is_remote(url):
        return {"driver": "file", "path": f"{storage.local_path(url).absolute()}/"}
    if not is_reachable(url):
        raise SourceError(f"{url}: volumes in chunks are read from local folders, s3://, gs:// and http(s)://.")
    protocol, rest = url.rstrip("/").split("://", 1)
    if protocol in ("http", "https"):
        return {"driver": "http", "base_url": f"{protocol}://{rest}/"}
    bucket, _, path = rest.partition("/")
    place = {"bucket": bucket, "path": f"{path}/" if path else ""}
    return {"driver": "s3", **place, **_s3_settings()} if protocol == "s3" else {"driver": "gcs", **place}


def _s3_settings() -> dict[str, Any]:
    """What other S3 clients take from the environment and tensorstore does not."""
    settings: dict[str, Any] = {}
    if endpoint := os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"):
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
        settings |= {"endpoint": endpoint, "aws_region": region}
    if "AWS_ACCESS_KEY_ID" in os.environ:  # else each client complains on stderr of profile files that are not there
        settings["aws_credentials"] = {"type": "environment"}
    return settings


@cache
def context() -> Any:
    """Shared by all volumes of the process. Its own 32 retries would keep a user waiting for an hour."""
    import tensorstore

    patience = {"max_retries": 5, "initial_delay": "200ms", "max_delay": "5s"}
    return tensorstore.Context({f"{kind}_request_retries": patience for kind in ("s3", "gcs", "http")})


def read_files(url: str, names: list[str]) -> dict[str, bytes]:
    """Those of the named small files of a folder that are there. Raises ServerError."""
    import tensorstore

    with reaching(url):
        store = tensorstore.KvStore.open(kvstore(url), context=context()).result()
        asked = {name: store.read(name) for name in names}
        found = {name: future.result() for name, future in asked.items()}
    return {name: bytes(read.value) for name, read in found.items() if read.state == "value"}


@contextmanager
def reaching(url: str) -> Iterator[None]:
    """Turn a store's connection and credential failures into one message that names the store."""
    try:
        yield
    except PerfuseError:
        raise
    except ValueError as error:
        status, words = str(error).split(":", 1)[0], str(error).split(" [", 1)[0]
        if status in _REFUSED:
            raise ServerError(
                f"No permission for {storage.public(url)}: {words}. Check the credentials (for s3://: AWS_ACCESS_KEY_ID, "
                "AWS_SECRET_ACCESS_KEY or AWS_PROFILE) and the bucket's policy."
            ) from error
        if status in _AWAY:
            raise ServerError(
                f"Cannot reach the store of {storage.public(url)}: {words}. Check the address (for s3://: "
                "AWS_ENDPOINT_URL), the credentials and the network, then run the same command again."
            ) from error
        raise
