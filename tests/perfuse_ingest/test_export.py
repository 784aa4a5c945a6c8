import struct
from pathlib import Path

import nibabel
import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis.extra import numpy as arrays
from PIL import Image
from scipy import ndimage
from skimage.measure import marching_cubes, mesh_surface_area
from typer.testing import CliRunner

from perfuse.catalog import LabelInfo, Scan
from perfuse.cli import build
from perfuse.errors import ScanError
from perfuse.labels import writer_for
from perfuse_ingest.export import export
from perfuse_ingest.export.files import encode
from perfuse_ingest.ingest import ingest
from perfuse_ingest.rle import decode

SHAPE = (150, 40, 56)
"""Three slabs of a label, whose shards are 64 slices thick."""
VOXEL_UM = (50.0, 25.0, 20.0)


@pytest.fixture(scope="module")
def values() -> np.ndarray:
    smooth = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=SHAPE), 3)
    return np.clip(128 + 600 * smooth, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def scan(tmp_path_factory, stack_folder, values) -> Scan:
    folder = tmp_path_factory.mktemp("export")
    slices = stack_folder(folder / "slices", np.zeros(SHAPE, np.uint16))
    url = str(folder / "k1.ome.zarr")
    ingest(str(slices), url, voxel_size_um=VOXEL_UM, specimen="k1", organ="kidney", mask=False)
    writer = writer_for(Scan.open(url), "soft", "key")
    for task in writer.todo():
        writer.write(task, values[writer.tasks[task].slices])
    writer.finish(lambda share, digest: LabelInfo(name="soft", kind="soft", foreground=share, digest=digest))
    return Scan.open(url)


@given(arrays.arrays(np.bool_, arrays.array_shapes(min_dims=2, max_dims=2)))
def test_run_lengths_come_back(plane):
    np.testing.assert_array_equal(decode(encode(plane).encode(), plane.shape) > 0, plane)


def test_a_table_is_what_the_competition_reads(scan, values, tmp_path):
    lines = export(scan, "soft", str(tmp_path / "submission.csv"), 0.6).read_text().splitlines()
    assert lines[0] == "id,rle"
    mask = values >= 153
    for number, (line, plane) in enumerate(zip(lines[1:], mask, strict=True)):
        name, runs = line.split(",")
        assert name == f"k1_{number:04d}"
        pairs = np.array(runs.split(), int).reshape(-1, 2)
        flat = np.zeros(plane.size, bool)
        for start, length in pairs:
            flat[start - 1 : start - 1 + length] = True
        np.testing.assert_array_equal(flat.reshape(plane.shape), plane)


def test_slices_and_volumes(scan, values, tmp_path):
    mask = values >= 128
    folder = export(scan, "soft", f"{tmp_path}/slices/")
    files = sorted(folder.iterdir())
    np.testing.assert_array_equal(np.stack([tifffile.imread(f) for f in files]), mask * 255)
    for name in ("vessels.nii", "vessels.nii.gz"):
        volume = nibabel.load(export(scan, "soft", str(tmp_path / name)))
        np.testing.assert_array_equal(np.asarray(volume.dataobj).transpose(2, 1, 0), mask)
        np.testing.assert_allclose(volume.header.get_zooms(), [0.02, 0.025, 0.05], rtol=1e-6)


def read_stl(path: Path) -> np.ndarray:
    data = path.read_bytes()
    (count,) = struct.unpack("<I", data[80:84])
    assert len(data) == 84 + 50 * count
    record = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("unused", "<u2")])
    return np.frombuffer(data, record, offset=84)


def read_ply(path: Path) -> tuple[np.ndarray, np.ndarray]:
    header, _, body = path.read_bytes().partition(b"end_header\n")
    vertices, faces = (int(line.split()[-1]) for line in header.decode().splitlines() if line.startswith("element"))
    points = np.frombuffer(body, "<f4", 3 * vertices).reshape(-1, 3)
    record = np.dtype([("corners", "u1"), ("vertices", "<u4", 3)])
    return points, np.frombuffer(body, record, offset=12 * vertices, count=faces)["vertices"].astype(int)


def volume_inside(corners: np.ndarray) -> float:
    """Positive when the triangles are seen from outside."""
    a, b, c = corners.astype(float).transpose(1, 0, 2)
    return float(np.einsum("ij,ij->i", a, np.cross(b, c)).sum() / 6)


def test_meshes_are_those_of_the_whole_volume(scan, values, tmp_path):
    mask = np.pad(values >= 128, 1)
    vertices, triangles, _, _ = marching_cubes(mask.astype(np.float32), 0.5, spacing=VOXEL_UM)
    area = mesh_surface_area(vertices, triangles)
    stl = read_stl(export(scan, "soft", str(tmp_path / "vessels.stl")))
    assert len(stl) == len(triangles)
    a, b, c = stl["corners"].astype(float).transpose(1, 0, 2)
    np.testing.assert_allclose(np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() / 2, area, rtol=1e-5)
    assert volume_inside(stl["corners"]) == pytest.approx(mask.sum() * np.prod(VOXEL_UM), rel=0.1)
    points, faces = read_ply(export(scan, "soft", str(tmp_path / "vessels.ply")))
    assert (len(points), len(faces)) == (len(vertices), len(triangles))
    np.testing.assert_allclose(np.sort(points, 0)[[0, -1]], np.sort(vertices[:, ::-1], 0)[[0, -1]] - VOXEL_UM[::-1])
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    there, counts = np.unique(edges, axis=0, return_counts=True)
    assert counts.max() == 1
    assert {tuple(e) for e in there.tolist()} == {tuple(e[::-1]) for e in there.tolist()}


def test_pictures(scan, values, tmp_path):
    picture = np.asarray(Image.open(export(scan, "soft", str(tmp_path / "vessels.png"))).convert("L"))
    assert picture.std() > 10
    with Image.open(export(scan, "soft", str(tmp_path / "vessels.gif"))) as turning:
        assert turning.n_frames > 20
        first = np.asarray(turning.convert("L"))
        turning.seek(turning.n_frames // 4)
        assert np.abs(first.astype(int) - np.asarray(turning.convert("L"))).mean() > 1


def test_the_verb_and_what_it_refuses(scan, tmp_path):
    words = ["export", scan.url, "--labels", "soft"]
    shown = CliRunner().invoke(build(), [*words, str(tmp_path / "a.csv")], catch_exceptions=False)
    assert (shown.exit_code, (tmp_path / "a.csv").exists()) == (0, True)
    with pytest.raises(ScanError, match=r"\.nii\.gz: NIfTI"):
        CliRunner().invoke(build(), [*words, str(tmp_path / "a.doc")], catch_exceptions=False)
    assert [p.name for p in tmp_path.iterdir()] == ["a.csv"]
