"""Killed anywhere, an ingest goes on where it stopped, and ends with the bytes of one that was never disturbed."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from perfuse.catalog import Scan
from perfuse.errors import BusyError, ScanError
from perfuse.locks import writing
from perfuse.verify import verify
from perfuse_ingest.ingest import ingest
from perfuse_ingest.sources.stack import Stack

Volume = np.ndarray[Any, Any]
Bytes = Callable[[Path], dict[str, str]]
ABOUT: dict[str, Any] = {"voxel_size_um": (50, 50, 50), "specimen": "k1", "organ": "kidney", "mask": False}
DEPTH = 330


@pytest.fixture
def source(tmp_path: Path, stack_folder: Callable[..., Path], noise: Callable[..., Volume]) -> Path:
    return stack_folder(tmp_path / "slices", noise((DEPTH, 70, 90)))


@pytest.fixture
def undisturbed(tmp_path: Path, source: Path, stored_bytes: Bytes) -> dict[str, str]:
    ingest(str(source), str(tmp_path / "whole" / "k1.ome.zarr"), **ABOUT)
    return stored_bytes(tmp_path / "whole" / "k1.ome.zarr")


def reads_of(monkeypatch: pytest.MonkeyPatch, fail_at: int | None = None) -> list[int]:
    """Slices that are decoded from now on; decoding one of them fails as a disk does."""
    decoded: list[int] = []
    real = Stack.slice_into

    def read(stack: Stack, index: int, *where: Any) -> bytes:
        if index == fail_at:
            raise OSError("the disk is gone")
        decoded.append(index)
        return real(stack, index, *where)

    monkeypatch.setattr(Stack, "slice_into", read)
    return decoded


@pytest.mark.parametrize("fail_at", [3, 130, 329])
def test_a_failed_ingest_resumes(
    tmp_path: Path,
    source: Path,
    undisturbed: dict[str, str],
    stored_bytes: Bytes,
    monkeypatch: pytest.MonkeyPatch,
    fail_at: int,
) -> None:
    url = tmp_path / "k1.ome.zarr"
    with monkeypatch.context() as patch:
        reads_of(patch, fail_at)
        with pytest.raises(OSError, match="the disk is gone"):
            ingest(str(source), str(url), **ABOUT)
    with pytest.raises(ScanError, match="run the same `perfuse ingest` again"):
        Scan.open(str(url))
    ingest(str(source), str(url), **ABOUT)
    assert stored_bytes(url) == undisturbed


def test_only_what_was_lost_is_decoded_again(
    tmp_path: Path, source: Path, undisturbed: dict[str, str], stored_bytes: Bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = tmp_path / "whole" / "k1.ome.zarr"
    unfinish(url)
    (url / "0/c/2/0/0").write_bytes(b"torn")
    (url / "1/c/0/0/0").unlink()
    decoded = reads_of(monkeypatch)
    ingest(str(source), str(url), **ABOUT)
    assert sorted(decoded) == list(range(128, 192)), "slab 2, once; what level 1 lacks comes from stored halves"
    assert stored_bytes(url) == undisturbed


def unfinish(url: Path) -> None:
    """As a scan is just before its last step."""
    import zarr

    del zarr.open_group(url, mode="r+").attrs["perfuse"]


def test_an_unfinished_ingest_of_something_else_is_begun_anew(
    tmp_path: Path, source: Path, undisturbed: dict[str, str], stored_bytes: Bytes
) -> None:
    url = tmp_path / "k1.ome.zarr"
    ingest(str(source), str(url), **{**ABOUT, "voxel_size_um": (25, 50, 50)})
    unfinish(url)
    ingest(str(source), str(url), **ABOUT)
    assert stored_bytes(url) == undisturbed


def slow_ingest(source: Path, url: Path) -> str:
    return (
        "import time\nfrom perfuse_ingest.ingest import ingest\nfrom perfuse_ingest.sources.stack import Stack\n"
        "real = Stack.slice_into\n"
        "def slowly(stack, *what):\n    time.sleep(0.01)\n    return real(stack, *what)\n"
        "Stack.slice_into = slowly\n"
        f"ingest({str(source)!r}, {str(url)!r}, voxel_size_um=(50, 50, 50), specimen='k1', organ='kidney', mask=False)\n"
    )


def run_cli(words: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "perfuse.cli", *words], capture_output=True, text=True, check=False)


def test_kill_9_in_the_middle(tmp_path: Path, source: Path, undisturbed: dict[str, str], stored_bytes: Bytes) -> None:
    url = tmp_path / "k1.ome.zarr"
    child = subprocess.Popen([sys.executable, "-c", slow_ingest(source, url)], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not marks(url) and time.monotonic() < deadline:
        time.sleep(0.005)
    with pytest.raises(BusyError, match="Another process is writing"):
        ingest(str(source), str(url), **ABOUT)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL, "it was to die in the middle"
    assert 0 < marks(url) < 6
    ingest(str(source), str(url), **ABOUT)
    assert stored_bytes(url) == undisturbed
    assert verify(str(url)).faults == []


def marks(url: Path) -> int:
    return sum(path.is_file() for path in (url / "perfuse/done/0/c").rglob("0"))


def test_kill_9_at_ten_random_moments(
    tmp_path: Path, source: Path, undisturbed: dict[str, str], stored_bytes: Bytes
) -> None:
    rng, reached = np.random.default_rng(), set()
    for k in range(10):
        url = tmp_path / str(k) / "k1.ome.zarr"
        child = subprocess.Popen([sys.executable, "-c", slow_ingest(source, url)], stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while not ((url / "zarr.json").exists() and marks(url) >= k // 2) and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(wait := rng.uniform(0, 0.7))  # a slab takes about as long
        child.send_signal(signal.SIGKILL)
        child.wait()
        reached.add(marks(url))
        ingest(str(source), str(url), **ABOUT)
        assert stored_bytes(url) == undisturbed, f"killed {wait:.3f} s after {k // 2} slabs were there"
        shutil.rmtree(url)
    assert len(reached) > 2, "the moments differed"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_a_full_disk_is_one_message_and_resumes(
    tmp_path: Path, source: Path, undisturbed: dict[str, str], stored_bytes: Bytes
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], check=False).returncode:
        pytest.skip("this machine does not let a disk be mounted")
    words = ["ingest", str(source), str(disk / "k1.ome.zarr"), "--voxel-size-um", "50", "--no-mask"]
    words += ["--specimen", "k1", "--organ", "kidney"]
    try:
        full = run_cli(words)
        assert (full.returncode, full.stderr.count("Error: ")) == (2, 1)
        assert "No space left on device" in full.stderr
        assert "Traceback" not in full.stderr
        subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
        assert run_cli(words).returncode == 0
        assert stored_bytes(disk / "k1.ome.zarr") == undisturbed
    finally:
        subprocess.run(["umount", disk], check=True)


def test_two_do_not_write_one_scan(tmp_path: Path, source: Path) -> None:
    url = str(tmp_path / "k1.ome.zarr")
    with writing(url), pytest.raises(BusyError, match="Another process is writing"):
        ingest(str(source), url, **ABOUT)


def test_memory_does_not_grow_with_depth(tmp_path: Path, stack_folder: Callable[..., Path]) -> None:
    """How many slabs the threads hold at one time is up to the scheduler (9 to 23 MB were seen, at any depth)."""
    import tracemalloc

    def stack(depth: int) -> Path:
        volume = np.random.default_rng(0).integers(0, 4000, (depth, 96, 96), dtype=np.uint16)
        return stack_folder(tmp_path / str(depth), volume)

    ingest(str(stack(96)), str(tmp_path / "imports.ome.zarr"), **ABOUT)
    deep, voxels = stack(5760), 5760 * 96 * 96
    tracemalloc.start()
    ingest(str(deep), str(tmp_path / "deep.ome.zarr"), **ABOUT)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * voxels / 3, f"{peak} bytes for a stack of {2 * voxels}"
