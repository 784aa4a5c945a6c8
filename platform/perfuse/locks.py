"""One writer at a time: flock where the store is a disk, a conditional-PUT lease with heartbeat where it is S3."""

import fcntl
import json
import os
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from perfuse import storage
from perfuse.errors import BusyError

LEASE_S = 60.0
"""A lease that was not renewed for this long is taken to be abandoned."""


@contextmanager
def writing(url: str, what: str = "scan") -> Iterator[None]:
    """Hold the only right to write `what` at a URL; BusyError when somebody else holds it."""
    lock_url = storage.join(storage.normal(url), f".{what}.lock")
    with _lease(lock_url) if storage.is_remote(url) else _flock(lock_url):
        yield


@contextmanager
def _flock(lock_url: str) -> Iterator[None]:
    path = storage.local_path(lock_url)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BusyError(
                f"Another process is writing {path.parent}. Wait for it, or end it, then try again."
            ) from error
        yield


@contextmanager
def _lease(lock_url: str) -> Iterator[None]:
    owner = f"{os.uname().nodename}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    _take(lock_url, owner)
    stop = threading.Event()
    beat = threading.Thread(target=_heartbeat, args=(lock_url, owner, stop), daemon=True)
    beat.start()
    try:
        yield
    finally:
        stop.set()
        beat.join()
        storage.filesystem(lock_url).rm_file(lock_url)


def _take(lock_url: str, owner: str) -> None:
    for _ in range(2):
        try:
            with storage.reaching(lock_url):
                storage.filesystem(lock_url).pipe_file(lock_url, _lease_bytes(owner), mode="create")
        except FileExistsError as error:
            _drop_if_abandoned(lock_url, error)
        else:
            return
    raise BusyError(f"Another process has just taken {lock_url}. Wait for it, then try again.")


def _lease_bytes(owner: str) -> bytes:
    return json.dumps({"owner": owner, "renewed": time.time()}).encode()


def _drop_if_abandoned(lock_url: str, error: FileExistsError) -> None:
    try:
        lease = storage.read_json(lock_url)
    except FileNotFoundError:
        return
    age = time.time() - float(lease["renewed"])
    if age < LEASE_S:
        raise BusyError(
            f"{lease['owner']} is writing (lease {lock_url}, renewed {age:.0f} s ago). Wait for it; a lease that is "
            f"not renewed for {LEASE_S:.0f} s is taken over."
        ) from error
    storage.filesystem(lock_url).rm_file(lock_url)


def _heartbeat(lock_url: str, owner: str, stop: threading.Event) -> None:
    while not stop.wait(LEASE_S / 4):
        storage.write_bytes(lock_url, _lease_bytes(owner))
