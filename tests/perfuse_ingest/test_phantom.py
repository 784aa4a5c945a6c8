"""The phantom as a whole: exact truth, however it is cut, with the greys of HiP-CT, and beyond any threshold."""

import io
import json
import os
import tracemalloc
from pathlib import Path

import fsspec
import numpy as np
import pytest
import scipy.ndimage
import tifffile

from perfuse.errors import PerfuseError, SourceError
from perfuse_ingest.phantom import PhantomSummary, write_phantom
from perfuse_ingest.phantom.organ import Envelope
from perfuse_ingest.sources.stack import open_stack

SHAPE = (64, 128, 128)
DATA = Path(os.environ.get("PERFUSE_TEST_DATA", Path(__file__).parents[2].parent / "shared" / "data"))


def read_stack(folder: Path) -> np.ndarray:
    return np.stack([tifffile.imread(file) for file in sorted(folder.iterdir())])


def file_bytes(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PhantomSummary]:
    out = tmp_path_factory.mktemp("phantom") / "p"
    return out, write_phantom(str(out), shape_zyx=SHAPE, seed=7)


@pytest.fixture(scope="module")
def image(phantom: tuple[Path, PhantomSummary]) -> np.ndarray:
    return read_stack(phantom[0] / "images")


@pytest.fixture(scope="module")
def truth(phantom: tuple[Path, PhantomSummary]) -> np.ndarray:
    return read_stack(phantom[0] / "labels") > 0


@pytest.fixture(scope="module")
def organ() -> np.ndarray:
    envelope = Envelope.grow(SHAPE, 7)
    return np.stack([envelope.slice_depth(z, SHAPE[1:]) >= 0 for z in range(SHAPE[0])])


def best_threshold_dice(image: np.ndarray, truth: np.ndarray) -> float:
    """Of all thresholds, with vessels either above or below."""
    levels = 65536
    vessels, everything = (np.bincount(v.ravel(), minlength=levels).cumsum() for v in (image[truth], image))
    total, size = vessels[-1], everything[-1]
    below = 2 * vessels / (everything + total)
    above = 2 * (total - vessels) / (size - everything + total)
    return float(max(below.max(), above.max()))


def test_folder_holds_what_ingest_reads(phantom: tuple[Path, PhantomSummary], image: np.ndarray) -> None:
    out, summary = phantom
    labels = read_stack(out / "labels")
    assert (image.shape, image.dtype) == (SHAPE, np.uint16)
    assert (labels.shape, labels.dtype, set(np.unique(labels))) == (SHAPE, np.uint8, {0, 255})
    assert sorted(p.name for p in out.iterdir()) == ["images", "labels", "phantom.json"]
    assert (
        json.loads((out / "phantom.json").read_text())["vessel_voxels"] == summary.vessel_voxels == (labels > 0).sum()
    )
    assert 0.03 <= summary.vessel_share_of_organ <= 0.08


def test_truth_is_one_tree(truth: np.ndarray) -> None:
    assert scipy.ndimage.label(truth, np.ones((3, 3, 3)))[1] == 1


@pytest.mark.parametrize(("shape", "seed"), [((24, 24, 24), 0), ((48, 48, 48), 3), ((30, 90, 60), 11)])
def test_small_and_odd_shapes_hold_one_tree_too(tmp_path: Path, shape: tuple[int, int, int], seed: int) -> None:
    write_phantom(str(tmp_path / "p"), shape_zyx=shape, seed=seed)
    truth = read_stack(tmp_path / "p" / "labels") > 0
    assert truth.shape == shape
    assert scipy.ndimage.label(truth, np.ones((3, 3, 3)))[1] == 1


def test_same_bytes_however_it_is_cut(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("one", "seven", "all")]
    for folder, planes in zip(folders, (1, 7, 40), strict=True):
        write_phantom(str(folder), shape_zyx=(40, 48, 56), seed=3, slab_planes=planes)
    first, *others = map(file_bytes, folders)
    assert all(other == first for other in others)


def test_seeds_differ(tmp_path: Path) -> None:
    for seed in (1, 2):
        write_phantom(str(tmp_path / str(seed)), shape_zyx=(24, 32, 32), seed=seed)
    assert (read_stack(tmp_path / "1" / "images") != read_stack(tmp_path / "2" / "images")).mean() > 0.9
    assert (read_stack(tmp_path / "1" / "labels") != read_stack(tmp_path / "2" / "labels")).any()


def test_greys_are_those_of_the_measured_slices(image: np.ndarray) -> None:
    assert 21250 < image.mean() < 21550
    assert 440 < image.std() < 670
    assert np.percentile(image, [1, 99]) == pytest.approx([20210, 22760], abs=400)


def noise_of(planes: np.ndarray) -> tuple[float, float]:
    """Grey levels, and correlation with the next voxel in x, of what differs between planes two apart."""
    difference = planes[2:].astype(float) - planes[:-2]
    sigma = 1.4826 * np.median(np.abs(difference - np.median(difference))) / np.sqrt(2)
    fine = np.clip(difference - scipy.ndimage.gaussian_filter(difference, (0, 3, 3)), -1000, 1000)
    return float(sigma), float(np.corrcoef(fine[..., 1:].ravel(), fine[..., :-1].ravel())[0, 1])


def test_noise_is_that_of_the_measured_slices(image: np.ndarray) -> None:
    sigma, neighbour = noise_of(image)
    assert sigma == pytest.approx(224, rel=0.1)
    assert neighbour == pytest.approx(0.34, abs=0.06)


def test_the_measured_slices_are_as_levels_says() -> None:
    folder = DATA / "hipct_kidney"
    if not folder.exists():
        pytest.skip(f"real data absent: {folder}")
    slices = np.stack([tifffile.imread(file) for file in sorted(folder.glob("*.tif"))])
    assert slices.mean() == pytest.approx(21405, abs=1)
    assert np.percentile(slices, [1, 50, 99]) == pytest.approx([20213, 21391, 22758], abs=10)
    assert noise_of(slices) == (pytest.approx(224, abs=1), pytest.approx(0.34, abs=0.03))


def test_no_global_threshold_finds_the_vessels(image: np.ndarray, truth: np.ndarray, organ: np.ndarray) -> None:
    assert best_threshold_dice(image, truth) < 0.3
    assert best_threshold_dice(image[organ], truth[organ]) < 0.6


def test_contrast_is_there_and_partly_inverted(image: np.ndarray, truth: np.ndarray, organ: np.ndarray) -> None:
    """Most vessels stand darker than the tissue beside them, some brighter."""
    beside = organ & scipy.ndimage.binary_dilation(truth, iterations=4) & ~scipy.ndimage.binary_dilation(truth)
    local = scipy.ndimage.gaussian_filter(image * beside.astype(float), 3) / np.maximum(
        scipy.ndimage.gaussian_filter(beside.astype(float), 3), 1e-6
    )
    smoothed = scipy.ndimage.gaussian_filter(image.astype(float), 1)
    core = scipy.ndimage.binary_erosion(truth, iterations=3) & organ
    assert np.median((smoothed - local)[core]) < -500
    everywhere = truth & organ
    assert 0.05 < np.mean((smoothed - local)[everywhere] > 0) < 0.5


def test_memory_stays_flat_while_the_volume_grows() -> None:
    write_phantom("memory://warm", shape_zyx=(24, 64, 64), seed=1)

    def peak(depth: int) -> int:
        out = f"memory://depth{depth}"
        tracemalloc.start()
        write_phantom(out, shape_zyx=(depth, 64, 64), seed=1, slab_planes=8, progress=lambda *_: drop_slices(out))
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return top

    assert peak(320) < 1.25 * peak(80)


def drop_slices(out: str) -> None:
    """What is written leaves the process, as it would on a disk."""
    fs, path = fsspec.core.url_to_fs(out)
    for kind in ("images", "labels"):
        for file in fs.glob(f"{path}/{kind}/*.tif"):
            fs.rm(file)


def test_rerun_does_nothing_and_other_parameters_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "p"
    first = write_phantom(str(out), shape_zyx=(24, 24, 24), seed=1)
    (out / "images" / "0000.tif").unlink()
    assert write_phantom(str(out), shape_zyx=(24, 24, 24), seed=1) == first
    assert not (out / "images" / "0000.tif").exists()
    with pytest.raises(SourceError, match="seed is 1, asked 2"):
        write_phantom(str(out), shape_zyx=(24, 24, 24), seed=2)


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("do not lose")
    with pytest.raises(SourceError, match="not empty"):
        write_phantom(str(tmp_path), shape_zyx=(24, 24, 24))


def test_an_interrupted_run_is_finished(tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        if done == 10:
            raise KeyboardInterrupt

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    with pytest.raises(KeyboardInterrupt):
        write_phantom(str(broken), shape_zyx=(24, 24, 24), progress=interrupt)
    for folder in ("images", "labels"):
        with pytest.raises(SourceError, match="is unfinished"):
            open_stack(str(broken / folder))
    assert not (broken / "phantom.json").exists()
    for folder in (whole, broken):
        write_phantom(str(folder), shape_zyx=(24, 24, 24))
    assert file_bytes(whole) == file_bytes(broken)


@pytest.mark.parametrize(("shape", "seed"), [((24, 24, 8), 0), ((24, 24, 24), -1)])
def test_impossible_requests_teach(tmp_path: Path, shape: tuple[int, int, int], seed: int) -> None:
    with pytest.raises(PerfuseError, match=r"at least 24|from 0 up"):
        write_phantom(str(tmp_path / "p"), shape_zyx=shape, seed=seed)


def test_writes_to_any_url() -> None:
    summary = write_phantom("memory://bucket/p", shape_zyx=(24, 24, 24), voxel_size_um=25.0)
    fs = fsspec.filesystem("memory")
    assert tifffile.imread(io.BytesIO(fs.cat_file("/bucket/p/images/0023.tif"))).shape == (24, 24)
    assert summary.voxel_size_um == (25.0, 25.0, 25.0)
