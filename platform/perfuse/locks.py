"""One writer at a time: flock where the store is a disk, a conditional-PUT lease with heartbeat where it is S3.

The lock of `…/kidney.ome.zarr` is `…/.kidney.ome.zarr.<what>.lock`: beside the scan, which holds nothing but Zarr.
"""

import fcntl
import json
import os
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from perfuse import storage
from perfuse.errors import BusyError, ServerError

LEASE_S = 60.0
"""A lease that was not renewed for this long is taken to be abandoned."""

SETTLE_S = 2.0
"""After taking over an abandoned lease: time in which another who takes it over at the same moment shows itself."""


@contextmanager
def writing(url: str, what: str = "scan") -> Iterator[None]:
    """Hold the only right to write `what` at a URL; BusyError when somebody else holds it, or took it in between."""
    folder, name = storage.normal(url).rsplit("/", 1)
    lock_url = storage.join(folder, f".{name}.{what}.lock")
    with _lease(lock_url) if storage.is_remote(url) else _flock(lock_url, url):
        yield


@contextmanager
def _flock(lock_url: str, url: str) -> Iterator[None]:
    path = storage.local_path(lock_url)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BusyError(f"Another process is writing {url}. Wait for it, or end it, then try again.") from error
        yield


@contextmanager
def _lease(lock_url: str) -> Iterator[None]:
    owner = f"{os.uname().nodename}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    _take(lock_url, owner)
    stop, lost = threading.Event(), threading.Event()
    beat = threading.Thread(target=_heartbeat, args=(lock_url, owner, stop, lost), daemon=True)
    beat.start()
    try:
        yield
    finally:
        stop.set()
        beat.join()
        if _owner(lock_url) == owner:
            storage.filesystem(lock_url).rm_file(lock_url)
    if lost.is_set():
        raise BusyError(f"The lease {lock_url} was lost to another process. Run the same command again: it resumes.")


def _take(lock_url: str, owner: str) -> None:
    if storage.create_bytes(lock_url, _lease_bytes(owner)):
        return
    _drop_abandoned(lock_url)
    if storage.create_bytes(lock_url, _lease_bytes(owner)):
        time.sleep(SETTLE_S)
        if _owner(lock_url) == owner:
            return
    raise BusyError(f"Another process has just taken {lock_url}. Wait for it, then try again.")


def _lease_bytes(owner: str) -> bytes:
    return json.dumps({"owner": owner, "renewed": time.time()}).encode()


def _owner(lock_url: str) -> str | None:
    try:
        return str(storage.read_json(lock_url)["owner"])
    except FileNotFoundError:
        return None


def _drop_abandoned(lock_url: str) -> None:
    try:
        lease = storage.read_json(lock_url)
    except FileNotFoundError:
        return
    age = time.time() - float(lease["renewed"])
    if age < LEASE_S:
        raise BusyError(
            f"{lease['owner']} is writing (lease {lock_url}, renewed {age:.0f} s ago). Wait for it; a lease that is "
            f"not renewed for {LEASE_S:.0f} s is taken over."
        )
    storage.filesystem(lock_url).rm_file(lock_url)


def _heartbeat(lock_url: str, owner: str, stop: threading.Event, lost: threading.Event) -> None:
    """Renew the lease until `stop`; a store that is away for a while is asked again at the next beat."""
    while not stop.wait(LEASE_S / 4):
        try:
            if _owner(lock_url) != owner:
                lost.set()
                return
            storage.write_bytes(lock_url, _lease_bytes(owner))
        except ServerError:
            continue
