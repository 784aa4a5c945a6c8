"""The organ: found against jar, agar, bubbles and corners, in doubt all that was seen; and what is counted inside it."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from typer.testing import CliRunner

from perfuse import measured, volumes
from perfuse.catalog import ORGAN, Scan
from perfuse.cli import build
from perfuse.contract import Normalisation
from perfuse.errors import ScanError
from perfuse.geometry import Box, blocks, index3
from perfuse.labels import LabelWriter
from perfuse.normalisation import bounds
from perfuse.upkeep import refresh
from perfuse_ingest.ingest import ingest
from perfuse_ingest.labels import add_labels
from perfuse_ingest.organ import find_organ, mask_organ
from perfuse_ingest.organ.coarse import field_of_view
from perfuse_ingest.organ.mask import enlarged
from perfuse_ingest.phantom import levels
from perfuse_ingest.phantom.geometry import TreeGeometry
from perfuse_ingest.phantom.lattice import WhiteNoise
from perfuse_ingest.phantom.organ import Envelope
from perfuse_ingest.phantom.render import Renderer
from perfuse_ingest.phantom.tree import grow_tree

Volume = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]
Rendered = tuple[Volume, Mask]
SHAPE = (128, 224, 224)
ISOTROPIC = (50.0, 50.0, 50.0)


def rendered(seed: int, *, fills: bool = False) -> Rendered:
    """A phantom, float32, and where its organ is; it fills the field of view, or lies in crushed agar."""
    envelope = Envelope.grow(SHAPE, seed)
    geometry = TreeGeometry(grow_tree(envelope, SHAPE, seed), SHAPE)
    renderer = Renderer(SHAPE, seed, None if fills else envelope)
    image, organ = np.empty(SHAPE, np.float32), np.ones(SHAPE, np.bool_)
    for first in range(0, SHAPE[0], 32):
        vessels = geometry.slab(first, first + 32)
        for index in range(32):
            image[first + index] = renderer.slice(first + index, vessels, index)[0]
            organ[first + index] = fills | (envelope.slice_depth(first + index, SHAPE[1:]) >= 0)
    return image, organ


@pytest.fixture(scope="module")
def organ() -> Rendered:
    return rendered(1)


@cache
def agar() -> npt.NDArray[np.float32]:
    """Noise as in the phantom, and a slow drift, around 0."""
    noise, rng = WhiteNoise(77, levels.NOISE_NEIGHBOUR, SHAPE[1:]), np.random.default_rng(0)
    drift = ndimage.zoom(rng.normal(0, 100, (4, 4, 4)), np.divide(SHAPE, 4), order=3, mode="nearest")
    return np.stack([noise.slice(z) for z in range(SHAPE[0])]) * np.float32(levels.NOISE) + drift.astype(np.float32)


def in_a_jar(
    phantom: Rendered, *, darker: float = 450, wall: float = 0, corner: float | None = None, beyond: float = 0
) -> Volume:
    """The organ in smooth agar, this much darker than tissue, with air bubbles, in a round jar; uint16."""
    image, organ = phantom
    rng = np.random.default_rng(0)
    around = agar() + np.float32(levels.TISSUE - darker)
    grid = np.ogrid[tuple(slice(n) for n in SHAPE)]
    for _ in range(12):
        at, radius = [rng.integers(n) for n in SHAPE], rng.uniform(3, SHAPE[0] / 12)
        around[sum((g - a) ** 2 for g, a in zip(grid, at, strict=True)) < radius**2] -= 4000
    middle = (np.asarray(SHAPE[1:]) - 1) / 2
    away = np.hypot((grid[1][0] - middle[0]) / middle[0], (grid[2][0] - middle[1]) / middle[1])
    around[:, (away > 0.96) & (away < 1.02)] += wall
    around[:, away >= 1.02] += beyond
    if corner is not None:
        around[:, away > 1.02] = corner
    return np.where(organ, image, around).clip(0, 65535).astype(np.uint16)


def found(image: Volume) -> tuple[Mask, str]:
    """The organ, found on the coarser level that a scan of this size is looked at, in voxels of the finer one."""
    level = volumes.pyramid_levels(SHAPE, ISOTROPIC)[1]
    answer = find_organ(volumes.halve(image, level.factor_zyx, "mean"), level.scale_um)
    return enlarged(answer.mask, level.factor_zyx, Box.whole(SHAPE)), answer.how


def assert_found(image: Volume, organ: Mask, recall: float = 0.985, precision: float = 0.8) -> None:
    mask, how = found(image)
    assert "by texture" in how
    assert (mask & organ).sum() >= recall * organ.sum()
    assert (mask & organ).sum() >= precision * mask.sum()


@pytest.mark.parametrize("darker", [1100, 450, 150, -400])
def test_smooth_agar_is_told_from_tissue_as_bright_or_not(organ: Rendered, darker: float) -> None:
    assert_found(in_a_jar(organ, darker=darker), organ[1])


@pytest.mark.parametrize("jar", [{"wall": 1500}, {"wall": -1500}, {"wall": 1200, "beyond": -4000}])
def test_the_jar_and_what_is_beyond_are_left_out(organ: Rendered, jar: dict[str, float]) -> None:
    assert_found(in_a_jar(organ, **jar), organ[1])


@pytest.mark.parametrize("corner", [0, 21000])
def test_empty_corners_are_left_out_whatever_their_value(organ: Rendered, corner: float) -> None:
    image = in_a_jar(organ, wall=1200, corner=corner)
    assert_found(image, organ[1])
    assert not found(image)[0][:, :20, :20].any()


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_any_dtype_and_scale_give_nearly_the_same(organ: Rendered, dtype: str) -> None:
    image = in_a_jar(organ)
    other = ((image.astype(float) - 17000) / 28).clip(0, 255) if dtype == "uint8" else image * 1e-6 - 3
    mask, same = found(image)[0], found(other.astype(dtype))[0]
    assert (mask ^ same).sum() < 0.06 * mask.sum()


def test_the_same_volume_gives_the_same_organ(organ: Rendered) -> None:
    image = in_a_jar(organ)
    np.testing.assert_array_equal(found(image)[0], found(image)[0])


def test_an_organ_that_cannot_be_told_from_what_surrounds_it_is_kept_with_it(organ: Rendered) -> None:
    """Crushed agar is as rough as tissue; and an organ may fill the field of view."""
    assert found(organ[0].astype(np.uint16))[0].all()
    assert found(rendered(3, fills=True)[0].astype(np.uint16))[0].all()


def test_tissue_that_is_only_less_rough_is_kept() -> None:
    """Around rough tissue lies one with structure of its own, which noise has not."""
    rng, shape = np.random.default_rng(0), (64, 112, 112)
    texture = ndimage.gaussian_filter(rng.normal(size=shape), 2.5)
    texture /= texture.std()
    grid = np.ogrid[tuple(slice(-1, 1, n * 1j) for n in shape)]
    middle = sum(g**2 for g in grid) < 0.5
    assert find_organ(texture * np.where(middle, 300, 60) + rng.normal(20_000, 10, shape), ISOTROPIC).mask.all()


def test_a_thin_stack_is_kept_whole(organ: Rendered) -> None:
    assert find_organ(in_a_jar(organ)[60:76], ISOTROPIC).mask.all()


def test_real_stacks_lose_no_tissue(test_data: Path) -> None:
    kidney = np.stack([tifffile.imread(p) for p in sorted((test_data / "hipct_kidney").glob("*.tif"))])
    assert find_organ(kidney, ISOTROPIC).mask.all()
    stacks = sorted((test_data / "vesselnn" / "images").glob("*.tif"))
    assert stacks
    for path in stacks:
        assert find_organ(tifffile.imread(path), (5, 1, 1)).mask.all(), path.name


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 60, 50), (2, 3, 4), (12, 20, 16), (40, 40, 40)])
@pytest.mark.parametrize("noise", [0, 5])
def test_small_and_constant_volumes_are_kept_whole(shape: tuple[int, int, int], noise: int) -> None:
    image = np.random.default_rng(0).integers(0, noise + 1, shape).astype(np.uint16)
    assert find_organ(image, ISOTROPIC).mask.all()


@settings(max_examples=25)
@given(st.integers(20, 70), st.integers(20, 70), st.integers(0, 2**16 - 1), st.integers(0, 2**32 - 1))
def test_corners_are_what_lies_outside_of_a_round_field(rows: int, columns: int, value: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 2**16, (4, rows, columns)).astype(np.uint16)
    y, x = (np.linspace(-1, 1, n) for n in (rows, columns))
    outside = np.hypot(y[:, None], x[None]) > 1
    image[:, outside] = value
    field = field_of_view(image)
    assert field[~outside].all()
    assert not field[[0, 0, -1, -1], [0, -1, 0, -1]].any()
    image[:, rng.random((rows, columns)) < 0.3] = 0  # what is saturated or empty inside is no corner
    assert field_of_view(image)[~outside].all()


@given(st.data())
def test_enlarging_does_not_depend_on_the_cut(data: st.DataObject) -> None:
    factor = index3(data.draw(st.tuples(*[st.sampled_from([1, 2, 4, 8])] * 3)))
    small = index3(data.draw(st.tuples(*[st.integers(1, 6)] * 3)))
    shape = index3([data.draw(st.integers((n - 1) * f + 1, n * f)) for n, f in zip(small, factor, strict=True)])
    mask = np.random.default_rng(data.draw(st.integers(0, 999))).random(small) < 0.5
    whole = enlarged(mask, factor, Box.whole(shape))
    for box in blocks(shape, index3(data.draw(st.tuples(*[st.integers(2, 20)] * 3)))):
        np.testing.assert_array_equal(enlarged(mask, factor, box), whole[box.slices])


@given(st.sampled_from([0, 1, 2]), st.sampled_from([1, 2, 4, 8]), st.integers(1, 5))
def test_enlarging_puts_a_face_where_it_was(axis: int, factor: int, at: int) -> None:
    mask = np.zeros((6, 6, 6), np.bool_)
    np.moveaxis(mask, axis, 0)[at:] = True
    factors = index3([factor if a == axis else 2 for a in range(3)])
    large = enlarged(mask, factors, Box.whole(index3([6 * f for f in factors])))
    np.testing.assert_array_equal(np.moveaxis(large, axis, 0)[:, 0, 0], np.arange(6 * factor) >= at * factor)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Mask]:
    """An organ in a jar as one TIFF, and where it is."""
    phantom = rendered(1)
    path = tmp_path_factory.mktemp("jar") / "jar.tif"
    tifffile.imwrite(path, in_a_jar(phantom, corner=0), photometric="minisblack")
    return path, phantom[1]


@pytest.fixture
def make(stack: tuple[Path, Mask], tmp_path: Path) -> Callable[[str], str]:
    """make(name) → the URL of a scan of that organ, without a mask."""

    def made(name: str) -> str:
        url = str(tmp_path / f"{name}.ome.zarr")
        ingest(str(stack[0]), url, voxel_size_um=ISOTROPIC, specimen="jar", organ="phantom", mask=False)
        volumes.open_group(url, "r+")
        return url

    return made


@pytest.fixture
def scan_url(make: Callable[[str], str]) -> str:
    return make("jar")


def mask_of(scan: Scan) -> Mask:
    return np.asarray(scan.label(ORGAN)[:]) >= 128


def test_the_mask_is_a_label_and_all_statistics_are_inside_it(scan_url: str, stack: tuple[Path, Mask]) -> None:
    whole = Scan.open(scan_url).histogram()
    info = mask_organ(scan_url)
    scan = Scan.open(scan_url)
    inside, image = mask_of(scan), np.asarray(scan.image[:])
    assert set(np.unique(scan.label(ORGAN)[:])) == {0, 255}
    assert (inside & stack[1]).sum() >= 0.985 * stack[1].sum()
    assert info.foreground == inside.mean()
    assert info.lineage["how"].startswith("by texture")
    np.testing.assert_array_equal(scan.histogram(), np.bincount(image[inside], minlength=65536))
    np.testing.assert_array_equal(measured.everywhere(scan.group), whole)
    for percent in (0.5, 50, 99.5):
        assert scan.percentile(percent) == np.percentile(image[inside], percent, method="inverted_cdf")
    low, high = bounds(scan, Normalisation(lower_percent=1, upper_percent=99))
    assert (low, high) == tuple(np.percentile(image[inside], [1, 99], method="inverted_cdf"))
    share = scan.organ_share()
    assert share is not None
    for at in np.ndindex(share.shape):
        cut = tuple(slice(a * c, (a + 1) * c) for a, c in zip(at, scan.image.chunks, strict=True))
        assert share[at] == np.count_nonzero(inside[cut])


def test_the_same_scan_gives_the_same_bytes_and_again_nothing_is_done(
    make: Callable[[str], str], stored_bytes: Callable[[Path], dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = make("a"), make("b")
    mask_organ(first)
    write, written = LabelWriter.write, []

    def killed(self: LabelWriter, task: int, block: Any) -> None:
        if written:
            raise KeyboardInterrupt
        written.append(task)
        write(self, task, block)

    monkeypatch.setattr(LabelWriter, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        mask_organ(second)
    assert ORGAN not in Scan.open(second).labels()
    monkeypatch.undo()
    mask_organ(second)
    files = stored_bytes(Path(first))
    named = {name: files[name] for name in ("zarr.json", "perfuse/quicklook.png")}
    assert files == stored_bytes(Path(second)) | named
    before = {p: p.stat().st_mtime_ns for p in Path(first).rglob("*")}
    mask_organ(first)
    assert before == {p: p.stat().st_mtime_ns for p in Path(first).rglob("*")}


def test_a_persons_organ_takes_the_place_of_the_programs_and_is_never_overwritten(
    scan_url: str, tmp_path: Path
) -> None:
    mask_organ(scan_url)
    theirs = np.zeros(SHAPE, np.uint8)
    theirs[20:100, 60:150, 70:160] = 255
    tifffile.imwrite(tmp_path / "theirs.tif", theirs, photometric="minisblack")
    add_labels(scan_url, str(tmp_path / "theirs.tif"), name=ORGAN)
    scan = Scan.open(scan_url)
    np.testing.assert_array_equal(mask_of(scan), theirs > 0)
    image = np.asarray(scan.image[:])
    np.testing.assert_array_equal(scan.histogram(), np.bincount(image[theirs > 0], minlength=65536))
    with pytest.raises(ScanError, match=r"was marked by a person, and is not overwritten"):
        mask_organ(scan_url)
    np.testing.assert_array_equal(mask_of(Scan.open(scan_url)), theirs > 0)


def test_statistics_of_another_mask_are_refused_and_made_anew(scan_url: str) -> None:
    mask_organ(scan_url)
    scan = Scan.open(scan_url)
    right, group = scan.histogram(), volumes.open_group(f"{scan_url}/labels/{ORGAN}", "r+")
    group.attrs["perfuse"] = {**group.attrs["perfuse"], "digest": "0" * 64}  # type: ignore[dict-item]
    stale = Scan.open(scan_url)
    for ask in (stale.histogram, stale.organ_share, lambda: stale.percentile(50)):
        with pytest.raises(ScanError, match=rf"perfuse scan refresh {scan_url}"):
            ask()
    refresh(scan_url)
    np.testing.assert_array_equal(Scan.open(scan_url).histogram(), right)


def test_statistics_are_bounded_blocks_of_any_shape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks at the far faces are thin, floats have bins of their own, and blocks add up."""
    rng = np.random.default_rng(0)
    image = rng.normal(0, 1e-3, (70, 150, 90)).astype(np.float32)
    tifffile.imwrite(tmp_path / "f.tif", image, photometric="minisblack")
    url = str(tmp_path / "f.ome.zarr")
    ingest(str(tmp_path / "f.tif"), url, voxel_size_um=ISOTROPIC, specimen="f", organ="phantom")
    marked = (rng.random(image.shape) < 0.3).astype(np.uint8)
    marked[:, 64:128] = 0
    tifffile.imwrite(tmp_path / "m.tif", marked, photometric="minisblack")
    monkeypatch.setattr("perfuse.organ_statistics.BLOCK_CHUNKS", 2)
    add_labels(url, str(tmp_path / "m.tif"), name=ORGAN)
    scan = Scan.open(url)
    share = scan.organ_share()
    assert share is not None
    assert share.shape == (2, 3, 2)
    assert not share[:, 1].any()
    assert share.sum() == scan.histogram().sum() == np.count_nonzero(marked)
    assert scan.percentile(50) == pytest.approx(np.median(image[marked > 0]), rel=0.01, abs=1e-5)


def test_the_verbs(scan_url: str) -> None:
    def run(*words: str) -> str:
        answer = CliRunner().invoke(build(), list(words), catch_exceptions=False)
        assert answer.exit_code == 0, answer.output
        return answer.stdout

    assert "organ: by texture" in run("mask", scan_url)
    assert "nothing to do" in CliRunner().invoke(build(), ["mask", scan_url]).output
    shown = run("scan", "show", scan_url)
    assert "% of the scan is organ" in shown
    assert "organ_intensity" in shown
