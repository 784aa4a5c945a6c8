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
from perfuse_ingest.export.views import PIXELS
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
def make_label(stack_folder):
    """make_label(folder, values, voxel_size_um=(20, 20, 20)) → a scan with these values as its label `soft`."""

    def make(folder: Path, values: np.ndarray, voxel_size_um: tuple[float, float, float] = (20.0,) * 3) -> Scan:
        slices = stack_folder(folder / "slices", np.zeros(values.shape, np.uint16))
        url = str(folder / "k1.ome.zarr")
        ingest(str(slices), url, voxel_size_um=voxel_size_um, specimen="k1", organ="kidney", mask=False)
        writer = writer_for(Scan.open(url), "soft", "key")
        for task in writer.todo():
            writer.write(task, values[writer.tasks[task].slices])
        writer.finish(lambda share, digest: LabelInfo(name="soft", kind="soft", foreground=share, digest=digest))
        return Scan.open(url)

    return make


@pytest.fixture(scope="module")
def scan(tmp_path_factory, make_label, values) -> Scan:
    return make_label(tmp_path_factory.mktemp("export"), values, VOXEL_UM)


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


def test_a_picture_is_the_maximum_along_each_axis(scan, values, tmp_path):
    """Voxels of 50 × 25 × 20 µm: each is 2.5, 1.25 and 1 pixels wide."""
    picture = np.asarray(Image.open(export(scan, "soft", str(tmp_path / "vessels.png"), 0.6)))
    seen = np.where(values >= 153, values, 0)
    depth, height, width = 375, 50, 56
    assert picture.shape == (depth, width + 1 + width + 1 + height)

    def wide(plane: np.ndarray, rows: int, columns: int) -> np.ndarray:
        at = (((np.arange(n) + 0.5) * m / n).astype(int) for n, m in zip((rows, columns), plane.shape, strict=True))
        return plane[np.ix_(*at)]

    along_z, along_y, along_x = np.split(picture, [width, 2 * width + 1], axis=1)
    np.testing.assert_array_equal(along_z[:height], wide(seen.max(0), height, width))
    np.testing.assert_array_equal(along_y[:, 1:], wide(seen.max(1), depth, width))
    np.testing.assert_array_equal(along_x[:, 1:], wide(seen.max(2), depth, height))
    assert not along_z[height:].any()
    assert not along_y[:, 0].any()
    assert not along_x[:, 0].any()
    assert len(np.unique(picture)) > 50, "values, not a mask"


def test_frames_turn_about_z(tmp_path, make_label):
    """One voxel beside the axis: its column follows the sine of the turn, its row stays, and it is the brighter the nearer it is."""
    values = np.zeros((32, 64, 64), np.uint8)
    values[8, 32, 60] = 255
    with Image.open(export(make_label(tmp_path, values), "soft", str(tmp_path / "vessels.gif"))) as turning:
        frames = []
        for number in range(turning.n_frames):
            turning.seek(number)
            frames.append(np.asarray(turning.convert("L")).astype(float))
    turns = 2 * np.pi * np.arange(len(frames)) / len(frames)
    z, y, x = 8 - 15.5, 0.5, 28.5
    voxel = PIXELS / (2 * (np.hypot(x, y) + 1) + 2)
    rows, columns = np.array([[at.mean() for at in np.nonzero(frame > 20)] for frame in frames]).T
    np.testing.assert_allclose(rows, PIXELS / 2 + z * voxel, atol=1.5)
    np.testing.assert_allclose(columns, PIXELS / 2 + (x * np.cos(turns) + y * np.sin(turns)) * voxel, atol=1.5)
    depth = (y * np.cos(turns) - x * np.sin(turns)) * voxel
    np.testing.assert_allclose([frame.max() for frame in frames], 255 * (0.65 - 0.7 * depth / PIXELS), atol=3)


def test_the_verb_and_what_it_refuses(scan, tmp_path):
    words = ["export", scan.url, "--labels", "soft"]
    shown = CliRunner().invoke(build(), [*words, str(tmp_path / "a.csv")], catch_exceptions=False)
    assert (shown.exit_code, (tmp_path / "a.csv").exists()) == (0, True)
    with pytest.raises(ScanError, match=r"\.nii\.gz: NIfTI"):
        CliRunner().invoke(build(), [*words, str(tmp_path / "a.doc")], catch_exceptions=False)
    assert [p.name for p in tmp_path.iterdir()] == ["a.csv"]
