"""The whole competition folder is one source: laid out as Kaggle gives it, with kidney_3_dense's labels without images."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from perfuse.catalog import Scan
from perfuse.cli import build
from perfuse_ingest.kaggle import DATASETS

Volume = np.ndarray[Any, Any]
StackFolder = Callable[..., Path]
Bytes = Callable[[Path], dict[str, str]]
SHAPES = {
    "kidney_1_dense": (6, 20, 18),
    "kidney_1_voi": (5, 24, 24),
    "kidney_2": (7, 16, 20),
    "kidney_3_sparse": (520, 10, 12),
    "kidney_3_dense": (16, 10, 12),
}
FIRST = {"kidney_3_dense": 496}


def encode(plane: Volume) -> str:
    edges = np.flatnonzero(np.diff(np.concatenate([[0], plane.ravel() > 0, [0]]).astype(int)))
    return " ".join(f"{a + 1} {b - a}" for a, b in edges.reshape(-1, 2)) or "1 0"


@pytest.fixture
def masks() -> dict[str, Volume]:
    rng = np.random.default_rng(0)
    return {name: (rng.random(shape) < 0.15) * np.uint8(255) for name, shape in SHAPES.items()}


@pytest.fixture
def folder(tmp_path: Path, stack_folder: StackFolder, noise: Callable[..., Volume], masks: dict[str, Volume]) -> Path:
    """kidney_2 has its labels in the table alone; all others in both."""
    home = tmp_path / "blood-vessel-segmentation"
    lines = ["id,rle"]
    for name, shape in SHAPES.items():
        first = FIRST.get(name, 0)
        if name != "kidney_3_dense":
            stack_folder(home / "train" / name / "images", noise(shape), name="{:04d}.tif")
        if name != "kidney_2":
            stack_folder(home / "train" / name / "labels", masks[name], first=first, name="{:04d}.tif")
        lines += [f"{name}_{first + k:04d},{encode(plane)}" for k, plane in enumerate(masks[name])]
    (home / "train_rles.csv").write_text("\n".join(lines) + "\n")
    stack_folder(home / "test/kidney_5/images", noise((3, 8, 8)), name="{:04d}.tif")
    return home


def run(*words: object) -> Any:
    return CliRunner().invoke(build(), [str(w) for w in words])


def test_every_dataset_becomes_a_scan_with_what_is_known_of_it(
    tmp_path: Path, folder: Path, masks: dict[str, Volume], stored_bytes: Bytes
) -> None:
    root = tmp_path / "scans"
    done = run("ingest-kaggle", folder, root)
    assert done.exit_code == 0, done.output
    assert "kidney_2: labels from" in done.stderr
    assert "train_rles.csv:kidney_2" in done.stderr
    assert "(and not from train_rles.csv)" in done.stderr
    assert "passed over" in done.stderr
    assert "test/kidney_5" in done.stderr
    scans = {p.name.removesuffix(".ome.zarr"): Scan.open(str(p)) for p in root.glob("*.ome.zarr")}
    known = {name: (s.info.donor, s.info.voxel_size_um[0], s.label_info("human").kind) for name, s in scans.items()}
    assert known == {
        "kidney_1_dense": ("kidney_1", 50, "dense"),
        "kidney_1_voi": ("kidney_1", 5.2, "dense"),
        "kidney_2": ("kidney_2", 50, "sparse"),
        "kidney_3_sparse": ("LADAF-2020-27", 50.16, "sparse"),
    }
    assert scans["kidney_2"].label_info("human").coverage == 0.65
    wanted = masks["kidney_3_sparse"].copy()
    wanted[496:512] = masks["kidney_3_dense"]
    third = scans["kidney_3_sparse"]
    np.testing.assert_array_equal(third.label("human")[:], wanted)
    boxes = [(b.kind, b.coverage, b.start[0], b.stop[0]) for b in third.label_boxes("human")]
    assert boxes == [("sparse", 0.85, 0, 520), ("dense", 1.0, 496, 512)]
    for name in ("kidney_1_dense", "kidney_1_voi", "kidney_2"):
        np.testing.assert_array_equal(scans[name].label("human")[:], masks[name])
    stored = stored_bytes(root)
    assert run("ingest-kaggle", folder, root).exit_code == 0
    assert stored_bytes(root) == stored, "again: nothing to do"


def test_a_plan_writes_nothing(tmp_path: Path, folder: Path) -> None:
    planned = run("ingest-kaggle", folder, tmp_path / "scans", "--plan")
    assert planned.exit_code == 0
    lines = {line.split(" → ")[0]: line for line in planned.stdout.splitlines()}
    assert lines.keys() >= set(DATASETS)
    assert "kidney_3_sparse.ome.zarr: 520 × 10 × 12 uint16, 124,800 bytes, 50.16 µm; labels" in lines["kidney_3_sparse"]
    assert "kidney_3_sparse.ome.zarr: labels" in lines["kidney_3_dense"]
    assert lines["kidney_2"].endswith("train_rles.csv:kidney_2, coverage 0.65")
    assert "passed over" in planned.stdout
    assert not (tmp_path / "scans").exists()


def test_a_bad_slice_does_not_lose_the_others(tmp_path: Path, folder: Path, masks: dict[str, Volume]) -> None:
    root = tmp_path / "scans"
    torn = folder / "train/kidney_1_dense/images/0003.tif"
    good = torn.read_bytes()
    torn.write_bytes(good[:100])
    label = folder / "train/kidney_3_sparse/labels/0100.tif"
    kept = label.read_bytes()
    label.write_bytes(kept[:100])
    done = run("ingest-kaggle", folder, root)
    message = str(done.exception)
    assert done.exit_code != 0
    assert "3 of 5 datasets failed. kidney_1_dense: " in message
    assert "0003.tif" in message
    assert "0100.tif" in message
    assert "kidney_3_dense: Its labels belong into the scan of kidney_3_sparse, which failed." in message
    assert {p.name for p in root.glob("*.ome.zarr")} >= {"kidney_2.ome.zarr", "kidney_1_voi.ome.zarr"}
    assert "human" in Scan.open(str(root / "kidney_2.ome.zarr")).labels()
    torn.write_bytes(good)
    label.write_bytes(kept)
    assert run("ingest-kaggle", folder, root).exit_code == 0
    third = Scan.open(str(root / "kidney_3_sparse.ome.zarr"))
    np.testing.assert_array_equal(third.label("human")[496:512], masks["kidney_3_dense"])
    np.testing.assert_array_equal(third.label("human")[:496], masks["kidney_3_sparse"][:496])


def test_what_is_no_competition_folder(tmp_path: Path) -> None:
    (tmp_path / "train/other/images").mkdir(parents=True)
    failed = run("ingest-kaggle", tmp_path, tmp_path / "scans")
    assert "holds none of train/kidney_1_dense" in str(failed.exception)
