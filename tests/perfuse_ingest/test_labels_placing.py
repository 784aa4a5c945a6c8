"""Where labels of a part lie, by their names; and labels that are probabilities."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from perfuse import locks
from perfuse.catalog import Scan
from perfuse.cli import build
from perfuse.errors import BusyError, PerfuseError, ShapeMismatchError, SourceError
from perfuse.labels import check_output
from perfuse_ingest import labels
from perfuse_ingest.ingest import ingest
from perfuse_ingest.labels import add_labels
from perfuse_ingest.mask_sources import MaskSource

Volume = np.ndarray[Any, Any]
StackFolder = Callable[..., Path]
Bytes = Callable[[Path], dict[str, str]]
SHAPE = (70, 66, 90)
ABOUT: dict[str, Any] = {"voxel_size_um": (50, 50, 50), "specimen": "k3", "organ": "kidney", "mask": False}


@pytest.fixture
def scan_url(tmp_path: Path, stack_folder: StackFolder, noise: Callable[..., Volume]) -> str:
    url = str(tmp_path / "k3.ome.zarr")
    ingest(str(stack_folder(tmp_path / "slices", noise(SHAPE), first=466, name="{:04d}.tif")), url, **ABOUT)
    return url


@pytest.fixture
def part() -> Volume:
    return (np.random.default_rng(3).random((12, *SHAPE[1:])) < 0.1) * np.uint8(255)


def test_slices_find_their_places_by_their_names(
    tmp_path: Path, scan_url: str, stack_folder: StackFolder, part: Volume, capsys: pytest.CaptureFixture[str]
) -> None:
    """As kidney_3_dense: labels only, from slice 0496 on; the endings need not agree."""
    source = stack_folder(tmp_path / "dense", part, first=496, name="{:04d}.TIFF")
    info = add_labels(scan_url, str(source), name="human")
    assert info.box == ((30, 0, 0), (42, *SHAPE[1:]))
    np.testing.assert_array_equal(Scan.open(scan_url).label("human")[30:42], part)
    assert "lie at slices 30 to 41 of k3, by their names: 0496.TIFF to 0507.TIFF" in capsys.readouterr().err


def test_names_that_do_not_say_where_are_errors(
    tmp_path: Path, scan_url: str, stack_folder: StackFolder, part: Volume
) -> None:
    strange = str(stack_folder(tmp_path / "strange", part, first=530, name="{:04d}.tif"))
    with pytest.raises(
        SourceError, match=r"0536.tif \(and 5 more\) bears the name of no slice .*0466.tif to 0535.tif.*--at"
    ):
        add_labels(scan_url, strange, name="human")
    narrow = str(stack_folder(tmp_path / "narrow", part[:, 1:], first=496, name="{:04d}.tif"))
    with pytest.raises(ShapeMismatchError, match=r"have shape \(12, 65, 90\)"):
        add_labels(scan_url, narrow, name="human")
    assert add_labels(scan_url, strange, name="human", at_zyx=(3, 0, 0)).box == ((3, 0, 0), (15, 66, 90))


class Stub(MaskSource):
    """Values that are given; a slice of each name."""

    def __init__(self, values: Volume, *, soft: bool = False, names: tuple[str, ...] = ()) -> None:
        self.url, self.identity, self.values = "stub", str(values.sum()), values
        self.shape_zyx, self.probability, self.names = values.shape, soft, names

    def planes(self, start: int, stop: int) -> Volume:
        return self.values[start:stop]


def give(patch: pytest.MonkeyPatch, stub: Stub, scan_url: str, **about: Any) -> Any:
    patch.setattr(labels, "open_masks", lambda _: nullcontext(stub))
    return add_labels(scan_url, "stub", name="human", **about)


def test_planes_that_are_no_files_have_no_names_to_go_by(
    tmp_path: Path, stack_folder: StackFolder, part: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Page 3 of one file is not page 3 of another."""
    import tifffile

    path, url = tmp_path / "pages.tif", str(tmp_path / "k.ome.zarr")
    tifffile.imwrite(path, np.repeat(part, 2, axis=0), photometric="minisblack")
    ingest(str(path), url, **ABOUT)
    names = Scan.open(url).slice_names()
    assert len(names) == 24
    with pytest.raises(ShapeMismatchError, match=r"names are not known.*--at Z,0,0"):
        give(monkeypatch, Stub(part, names=names[:12]), url)


def test_names_must_follow_one_another(scan_url: str, part: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        SourceError, match=r"0466.tif and 0468.tif follow one another, but bear the names of slices 0 and 2"
    ):
        give(monkeypatch, Stub(part[:2], names=("0466.tif", "0468.tif")), scan_url)


def test_probabilities_are_soft_and_belong_to_people(scan_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    soft = np.random.default_rng(1).integers(0, 256, SHAPE).astype(np.uint8)
    with pytest.raises(SourceError, match="leave --coverage out"):
        give(monkeypatch, Stub(soft, soft=True), scan_url, coverage=0.5)
    info = give(monkeypatch, Stub(soft, soft=True), scan_url, author="Ada")
    scan = Scan.open(scan_url)
    np.testing.assert_array_equal(scan.label("human")[:], soft)
    assert (info.kind, info.boxes[0].author, info.model) == ("soft", "Ada", None)
    assert info.foreground == (soft >= 128).mean()
    with pytest.raises(PerfuseError, match="given by a person"):
        check_output(scan, "human")


def test_versions_are_listed(tmp_path: Path, scan_url: str, stack_folder: StackFolder, part: Volume) -> None:
    runner, app = CliRunner(), build()
    folder = str(stack_folder(tmp_path / "dense", part, first=496, name="{:04d}.tif"))
    command = ["labels", "add", scan_url, folder, "--name", "human"]
    assert runner.invoke(app, [*command, "--coverage", "0.85"]).exit_code == 0
    assert runner.invoke(app, [*command, "--at", "36,0,0", "--author", "Ada"]).exit_code == 0
    listed = json.loads(runner.invoke(app, ["labels", "ls", scan_url, "--json"]).stdout)
    ((name, boxes),) = ((label["name"], label["boxes"]) for label in listed["labels"])
    assert name == "human"
    shown = [(b["version"], b["kind"], b["coverage"], b["author"], b["start"]) for b in boxes]
    assert shown == [(1, "sparse", 0.85, None, [30, 0, 0]), (2, "dense", 1.0, "Ada", [36, 0, 0])]
    old, new = part[6:] > 0, part[:6] > 0
    assert (boxes[1]["added"], boxes[1]["removed"]) == ((new & ~old).sum() + (part[6:] > 0).sum(), (old & ~new).sum())
    assert boxes[1]["source"] == folder
    assert "Ada" in runner.invoke(app, ["labels", "ls", scan_url]).stdout


def test_two_at_once(tmp_path: Path, scan_url: str, stack_folder: StackFolder, part: Volume) -> None:
    folder = str(stack_folder(tmp_path / "dense", part, first=496, name="{:04d}.tif"))
    with locks.writing(scan_url, "label-human"), pytest.raises(BusyError):
        add_labels(scan_url, folder, name="human")


def test_kill_9_at_random_moments(
    tmp_path: Path, scan_url: str, stack_folder: StackFolder, part: Volume, stored_bytes: Bytes
) -> None:
    import shutil

    whole = stack_folder(tmp_path / "whole", np.repeat(part, 6, axis=0)[:70], name="{:04d}.tif")
    add_labels(scan_url, str(whole), name="human", coverage=0.85)
    kept = tmp_path / "kept"
    shutil.copytree(scan_url, kept)
    folder = str(stack_folder(tmp_path / "dense", part, first=496, name="{:04d}.tif"))
    code = (
        "import sys; from perfuse_ingest.labels import add_labels; print('in', flush=True); "
        "add_labels(*sys.argv[1:], name='human', author='Ada')"
    )
    command = [sys.executable, "-c", code, scan_url, folder]
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        process.stdout.readline()
        started = time.perf_counter()
    took = time.perf_counter() - started
    wanted, rng = stored_bytes(Path(scan_url)), np.random.default_rng()
    shutil.rmtree(scan_url)
    shutil.copytree(kept, scan_url)
    killed = 0
    for latest in (0, took / 4, took / 2, took):  # another run may be faster than the first
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(float(rng.uniform(0, latest)))
            os.kill(process.pid, signal.SIGKILL)
        killed += process.returncode == -signal.SIGKILL
    assert killed
    add_labels(scan_url, folder, name="human", author="Ada")
    partial = (".partial",)
    assert {k: v for k, v in stored_bytes(Path(scan_url)).items() if not k.endswith(partial)} == wanted
