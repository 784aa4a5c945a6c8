"""A store that goes away, or takes the credentials back, in the middle of an ingest: one message, and the same again resumes."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tifffile

from perfuse import storage
from perfuse.verify import verify

pytestmark = pytest.mark.journey

WORDS = ["--voxel-size-um", "50", "--specimen", "k1", "--organ", "kidney", "--no-mask"]
SLOWLY = (
    "import sys, time\nfrom perfuse.cli import main\nfrom perfuse_ingest.sources.stack import Stack\n"
    "real = Stack.slice_into\n"
    "def slowly(stack, *what):\n    time.sleep(0.03)\n    return real(stack, *what)\n"
    "Stack.slice_into = slowly\nsys.argv = ['perfuse', *sys.argv[1:]]\nmain()\n"
)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """330 slices: six slabs."""
    folder = tmp_path / "slices"
    folder.mkdir()
    for k, plane in enumerate(np.random.default_rng(0).integers(0, 60000, (330, 70, 90)).astype(np.uint16)):
        tifffile.imwrite(folder / f"{k:04d}.tif", plane, photometric="minisblack")
    return folder


def objects(url: str) -> dict[str, bytes]:
    """All that a scan consists of, by name."""
    files = storage.filesystem(url)
    files.invalidate_cache()
    root = files._strip_protocol(url)
    return {p.removeprefix(root): files.cat_file(p) for p in files.find(root) if not p.endswith(".lock")}


def marks(url: str) -> int:
    files = storage.filesystem(url)
    files.invalidate_cache()
    return len(files.find(f"{url}/perfuse/done/0/c"))


def begin(source: Path, url: str) -> subprocess.Popen[str]:
    """An ingest that has done at least one slab, and not all."""
    words = [sys.executable, "-c", SLOWLY, "ingest", str(source), url, *WORDS]
    child = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=os.environ)
    deadline = time.monotonic() + 120
    while not marks(url) and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    return child


def ingest(source: Path, url: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "perfuse.cli", "ingest", str(source), url, *WORDS]
    return subprocess.run(words, capture_output=True, text=True, check=False)


def test_a_store_that_goes_away(
    source: Path, s3_url: str, s3_again: Callable[[], object], stack_folder: Path, tmp_path: Path
) -> None:
    url = f"{s3_url}/k1.ome.zarr"
    child = begin(source, url)
    os.kill(int((stack_folder / "run/radosgw.pid").read_text().split()[0]), signal.SIGKILL)
    try:
        told = child.communicate(timeout=240)[1]
    finally:
        s3_again()
    assert child.returncode == 2, told
    assert f"Cannot reach the store of {s3_url}" in told
    assert "Traceback" not in told
    assert 0 < marks(url) < 6, "it was stopped in the middle"
    deadline = time.monotonic() + 90
    while "a lease that is not renewed for 60 s is taken over" in (done := ingest(source, url)).stderr:
        assert time.monotonic() < deadline
        time.sleep(2)
    assert done.returncode == 0, done.stderr
    assert ingest(source, str(tmp_path / "k1.ome.zarr")).returncode == 0
    assert objects(url) == objects(str(tmp_path / "k1.ome.zarr"))
    assert verify(url).faults == []


@pytest.fixture
def user(stack_folder: Path) -> Iterator[Callable[[str], None]]:
    """Suspends or enables the store's user."""

    def do(what: str) -> None:
        words = ["radosgw-admin", "-c", stack_folder / "s3/ceph.conf", "-n", "client.rgw", "user", what]
        subprocess.run([*words, "--uid=perfuse"], check=True, capture_output=True)

    yield do
    do("enable")


def test_credentials_that_expire(source: Path, s3_url: str, user: Callable[[str], None]) -> None:
    url = f"{s3_url}/k1.ome.zarr"
    child = begin(source, url)
    user("suspend")
    told = child.communicate(timeout=240)[1]
    user("enable")
    assert child.returncode == 2, told
    assert "No permission for s3://" in told
    assert "Traceback" not in told
    assert 0 < marks(url) < 6, "what was written stays"
