"""What a person at the terminal sees of a damaged shard: code 3 and one message, and mended, only what was missing is done."""

import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from perfuse.bundle import Bundle
from perfuse.catalog import Scan
from perfuse.contract import Contract, Forward, Network
from perfuse.models import build
from perfuse.registry import register
from perfuse.tracking import Run

TINY = Network(encoder="tu-test_resnet", encoder_weights=None, decoder_channels=(16, 8, 8, 8, 8))
SLABS = ("planes 0 to 63", "planes 64 to 127", "planes 128 to 135")


@pytest.fixture
def model(mlflow_sqlite: str) -> str:
    torch.manual_seed(0)
    forward = Forward(network=TINY, voxel_size_um=(10, 100), tile=64, axes=("z",))
    return register(Bundle(Contract(forward=forward), build(TINY).state_dict(), {}), "tubes", Run.start("tubes").id)


@pytest.fixture
def url(verb: Callable[..., object], tmp_path: Path) -> str:
    verb("phantom", tmp_path / "slices", "--shape", "136,72,96", "--seed", "3")
    about = ["--voxel-size-um", "50", "--specimen", "p", "--organ", "phantom"]
    verb("ingest", tmp_path / "slices/images", tmp_path / "p.ome.zarr", *about)
    return str(tmp_path / "p.ome.zarr")


def perfuse(*words: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "perfuse.cli", *words]
    return subprocess.run(line, env=os.environ, capture_output=True, text=True, check=False)


def test_a_damaged_shard(url: str, model: str) -> None:
    """In this process, then by two of Ray, which find that one slab alone is left; mended, it is done and no other."""
    predict = ("predict", url, "--model", model, "--output")
    assert perfuse(*predict, "undisturbed").returncode == 0
    shard = Path(url, "0/c/1/0/0")
    kept = shard.read_bytes()
    shard.write_bytes(
        kept[:-12] + bytes(255 - byte for byte in kept[-12:-8]) + kept[-8:]
    )  # in its index, before the CRC
    for by in (["--local"], ["--workers", "2"]):
        failed = perfuse(*predict, "mended", *by)
        assert failed.returncode == 3, failed.stderr
        assert "Traceback" not in failed.stderr
        (message,) = re.findall("^Error: .*", failed.stderr, re.MULTILINE)
        assert message.startswith("Error: Failed 3 times: slab axis z, planes 64 to 127 (ScanError: ")
        assert "is damaged" in message
        assert message.endswith("say the same command again: only they are computed.")
        assert [planes for planes in SLABS if planes in message] == [SLABS[1]]
        assert failed.stdout == ""
    assert list(Scan.open(url).labels()) == ["organ", "undisturbed"]
    (logits,) = Path(url, "perfuse").glob("scratch/*/z/c")
    written = {path.relative_to(logits).parts[0]: path.stat().st_mtime_ns for path in logits.glob("*/*/*")}
    assert sorted(written) == ["0", "2"]
    shard.write_bytes(kept)
    assert perfuse(*predict, "mended", "--keep-scratch").returncode == 0
    again = {path.relative_to(logits).parts[0]: path.stat().st_mtime_ns for path in logits.glob("*/*/*")}
    assert {name: again[name] for name in written} == written
    assert again.keys() - written.keys() == {"1"}
    mended, undisturbed = (np.asarray(Scan.open(url).label(name)[:]) for name in ("mended", "undisturbed"))
    assert hashlib.sha256(mended).digest() == hashlib.sha256(undisturbed).digest()
    assert mended.std() > 0
