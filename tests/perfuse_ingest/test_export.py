import errno
import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import fsspec
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

from perfuse import storage
from perfuse.catalog import LabelInfo, Scan
from perfuse.cli import build
from perfuse.errors import ScanError
from perfuse.labels import writer_for
from perfuse_ingest.export import export
from perfuse_ingest.export.files import encode
from perfuse_ingest.export.views import PIXELS
from perfuse_ingest.ingest import ingest
from perfuse_ingest.rle import decode
from perfuse_ingest.shaping import Shaping

SHAPE = (150, 40, 56)
"""Three slabs of a label, whose shards are 64 slices thick."""
VOXEL_UM = (50.0, 25.0, 20.0)
CROP = (3, 7, 11)
"""Voxels of the source before the first of the scan."""
ORIGIN_UM = (150.0, 175.0, 220.0)


@pytest.fixture(scope="module")
def values() -> np.ndarray:
    smooth = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=SHAPE), 3)
    return np.clip(128 + 600 * smooth, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def make_label(stack_folder):
    """make_label(folder, values, voxel_size_um=(20, 20, 20)) → a crop of a scan with these values as its label `soft`."""

    def make(folder: Path, values: np.ndarray, voxel_size_um: tuple[float, float, float] = (20.0,) * 3) -> Scan:
        slices = stack_folder(folder / "slices", np.zeros(np.add(values.shape, CROP), np.uint16))
        url = str(folder / "k1.ome.zarr")
        crop = Shaping(crop=tuple(slice(first, None) for first in CROP))
        about = {"specimen": "k1", "organ": "kidney", "mask": False, "shaping": crop}
        ingest(str(slices), url, voxel_size_um=voxel_size_um, **about)
        writer = writer_for(Scan.open(url), "soft", "key")
        for task in writer.todo():
            writer.write(task, values[writer.tasks[task].slices])
        writer.finish(lambda share, digest: LabelInfo(name="soft", kind="soft", foreground=share, digest=digest))
        return Scan.open(url)

    return make


@pytest.fixture(scope="module")
def scan(tmp_path_factory, make_label, values) -> Scan:
    made = make_label(tmp_path_factory.mktemp("export"), values, VOXEL_UM)
    assert made.info.origin_um == ORIGIN_UM
    return made


@pytest.fixture
def write(scan, tmp_path) -> Callable[..., Path]:
    """write(name, threshold=None) → the file that the label was exported into."""
    return lambda name, threshold=None: Path(export(scan, "soft", f"{tmp_path}/{name}", threshold))


@given(arrays.arrays(np.bool_, arrays.array_shapes(min_dims=2, max_dims=2)))
def test_run_lengths_come_back(plane):
    np.testing.assert_array_equal(decode(encode(plane).encode(), plane.shape) > 0, plane)


def test_a_table_is_what_the_competition_reads(write, values):
    lines = write("submission.csv", 0.6).read_text().splitlines()
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


def test_slices_and_volumes(write, values):
    mask = values >= 128
    files = sorted(write("slices/").iterdir())
    np.testing.assert_array_equal(np.stack([tifffile.imread(f) for f in files]), mask * 255)
    with tifffile.TiffFile(files[7]) as tiff:
        page, about = tiff.pages.first, tiff.imagej_metadata
        per_cm = {axis: np.divide(*page.tags[f"{axis}Resolution"].value) for axis in "XY"}
    assert per_cm == pytest.approx({"X": 1e4 / 20, "Y": 1e4 / 25})
    assert (page.tags["ResolutionUnit"].value, about["unit"], about["spacing"]) == (3, "um", 50)
    for name in ("vessels.nii", "vessels.nii.gz"):
        volume = nibabel.load(write(name))
        np.testing.assert_array_equal(np.asarray(volume.dataobj).transpose(2, 1, 0), mask)
        affine = [[0.02, 0, 0, 0.22], [0, 0.025, 0, 0.175], [0, 0, 0.05, 0.15], [0, 0, 0, 1]]
        for said in (volume.affine, volume.get_sform(), volume.get_qform()):
            np.testing.assert_allclose(said, affine, rtol=1e-6, atol=1e-9)
        assert volume.header.get_xyzt_units()[0] == "mm"


def test_slices_do_not_mix_with_others(write, tmp_path):
    write("slices/")
    before = {f: f.read_bytes() for f in (tmp_path / "slices").iterdir()}
    with pytest.raises(ScanError, match=r"slices is not empty.*Name a new one"):
        write("slices/", 0.9)
    assert {f: f.read_bytes() for f in (tmp_path / "slices").iterdir()} == before


def test_slices_that_were_cut_off_are_written_whole_by_the_same_request_alone(write, tmp_path, monkeypatch):
    whole = {f.name: f.read_bytes() for f in write("whole/").iterdir()}
    plain, calls = storage.write_bytes, iter(range(100))

    def full(url, data):
        if next(calls) == 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        plain(url, data)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "write_bytes", full)
        with pytest.raises(OSError, match="No space"):
            write("slices/")
    cut_off = sorted(f.name for f in (tmp_path / "slices").iterdir())
    assert len(cut_off) == 5
    assert "unfinished.json" in cut_off
    (tmp_path / "slices" / ".0004.tif.partial").write_bytes(b"torn")
    with pytest.raises(ScanError, match="is not empty"):
        write("slices/", 0.9)
    assert {f.name: f.read_bytes() for f in write("slices/").iterdir()} == whole


@pytest.mark.parametrize("ending", [".csv", ".nii.gz", ".ply", "/"])
def test_a_store_holds_what_a_disk_does(scan, write, tmp_path, monkeypatch, ending):
    monkeypatch.chdir(tmp_path)
    there, here = f"memory://{tmp_path.name}/deep/v{ending}", write(f"v{ending}")
    on_disk = {f.name: f.read_bytes() for f in (here.iterdir() if ending == "/" else [here])}
    assert export(scan, "soft", there) == there.rstrip("/")
    files = fsspec.filesystem("memory")
    stored = {Path(f).name: files.cat_file(f) for f in files.find(f"{tmp_path.name}/deep")}
    if ending == ".nii.gz":
        on_disk, stored = ({n: gzip.decompress(data) for n, data in of.items()} for of in (on_disk, stored))
    assert stored == on_disk
    assert [p.name for p in tmp_path.iterdir()] == [here.name], "nothing else lies on the disk"
    if ending == "/":
        with pytest.raises(ScanError, match="is not empty"):
            export(scan, "soft", there)


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


def test_meshes_are_those_of_the_whole_volume(write, values):
    mask = np.pad(values >= 128, 1)
    vertices, triangles, _, _ = marching_cubes(mask.astype(np.float32), 0.5, spacing=VOXEL_UM)
    area = mesh_surface_area(vertices, triangles)
    vertices += ORIGIN_UM - np.array(VOXEL_UM)
    stl = read_stl(write("vessels.stl"))
    assert len(stl) == len(triangles)
    a, b, c = stl["corners"].astype(float).transpose(1, 0, 2)
    np.testing.assert_allclose(np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() / 2, area, rtol=1e-5)
    assert volume_inside(stl["corners"]) == pytest.approx(mask.sum() * np.prod(VOXEL_UM), rel=0.1)
    points, faces = read_ply(write("vessels.ply"))
    assert (len(points), len(faces)) == (len(vertices), len(triangles))
    for placed, whole in ((points, vertices), (stl["corners"].reshape(-1, 3), vertices[triangles].reshape(-1, 3))):
        np.testing.assert_allclose(np.sort(placed, 0), np.sort(whole[:, ::-1], 0), rtol=1e-6)
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    there, counts = np.unique(edges, axis=0, return_counts=True)
    assert counts.max() == 1
    assert {tuple(e) for e in there.tolist()} == {tuple(e[::-1]) for e in there.tolist()}


def test_a_picture_is_the_maximum_along_each_axis(write, values):
    """Voxels of 50 × 25 × 20 µm: each is 2.5, 1.25 and 1 pixels wide."""
    picture = np.asarray(Image.open(write("vessels.png", 0.6)))
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
