"""Every crop equals a plain reference, computed from the whole volume: planes, scale, turned planes, edges."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage
from scipy.spatial.transform import Rotation

from perfuse.errors import RecipeError
from perfuse.geometry import Box
from perfuse.normalisation import bounds, normalise
from perfuse.recipes import load_recipe
from perfuse.sampling import Cutter
from perfuse.sampling.places import Place, Window
from perfuse.training import plan_job

SHAPE = (70, 90, 110)
STILL = [f"augmentation.{k}=0" for k in ("flips", "quarter_turns", "brightness", "contrast", "gamma", "noise")]
SETTINGS = ["crop=32", "batch=8", "steps=2", "validation=v", "normalisation.clip=9", *STILL]

Crop = tuple[Place, Window, dict[str, np.ndarray]]


class Case:
    """A scan of noise, with a label of three values: everything can be told from where it lies."""

    def __init__(self, folder: Path, make_scan: Any) -> None:
        rng = np.random.default_rng(0)
        self.folder = folder
        self.image = ndimage.gaussian_filter(rng.normal(20_000, 8_000, SHAPE), 1).astype(np.uint16)
        self.label = rng.choice(np.array([0, 100, 255], np.uint8), SHAPE)
        scan = make_scan(folder, "a", self.image, {"human": self.label}, kind="soft")
        make_scan(folder, "v", self.image[::-1].copy(), {"human": self.label})
        self.window = bounds(scan, load_recipe("quickstart").normalisation)

    def normal(self, voxels: np.ndarray, recipe: Any) -> np.ndarray:
        return normalise(voxels, self.window, recipe.normalisation)

    def crops(self, *settings: str) -> Iterator[Crop]:
        recipe = load_recipe("quickstart", [*SETTINGS, "labels=human", *settings])
        job = plan_job(recipe, str(self.folder), str(self.folder))
        with Cutter(job) as cutter:
            for step in range(job.recipe.batches):
                batch = cutter.batch(step, range(8))
                for position in range(8):
                    place = cutter.order.place(step, position)
                    window = cutter.order.window(step, position, cutter.read(place).result())
                    crop = {name: batch[name][position] for name in ("image", "target", "known")}
                    yield place, window, {**crop, "recipe": recipe}


@pytest.fixture(scope="module")
def case(tmp_path_factory, make_scan) -> Case:
    return Case(tmp_path_factory.mktemp("geometry"), make_scan)


@pytest.mark.parametrize(("planes", "stride", "outputs"), [(1, 1, "middle"), (5, 2, "middle"), (4, 3, "all")])
@pytest.mark.parametrize("axis", "zyx")
def test_panels_are_planes_of_the_scan(case: Case, axis: str, planes: int, stride: int, outputs: str) -> None:
    wanted = [f"network.planes={planes}", f"network.plane_stride={stride}", f"network.outputs={outputs}"]
    for place, window, crop in case.crops(f"axes={axis}", *wanted):
        seen, truth = (np.moveaxis(v, place.axis, 0) for v in (case.image, case.label))
        start = np.array([place.box.start[place.axis], *(s for a, s in enumerate(place.box.start) if a != place.axis)])
        middle, row, column = np.add(start, (window.plane, window.row, window.column)).astype(int)
        wish = middle + (np.arange(planes) - (planes - 1) // 2) * stride
        there = np.clip(wish, 0, len(seen) - 1)
        cut = (slice(row, row + 32), slice(column, column + 32))
        assert np.array_equal(crop["image"], case.normal(seen[there][(slice(None), *cut)], crop["recipe"]))
        shown = slice(None) if outputs == "all" else slice((planes - 1) // 2, (planes - 1) // 2 + 1)
        inside = (wish == there)[shown, None, None]
        assert np.array_equal(crop["known"], np.broadcast_to(inside, crop["known"].shape))
        assert np.array_equal(crop["target"] * inside, truth[there][(shown, *cut)] / np.float32(255) * inside)


def _triangle(length: int, centres: np.ndarray, scale: float) -> np.ndarray:
    """Weights [centre, voxel]: a triangle as wide as the larger of pixel and voxel, summing to 1; beyond: the last voxel."""
    weights = np.maximum(0, 1 - np.abs(np.arange(length) - centres[:, None]) / max(1, scale))
    beyond = weights.sum(1) == 0
    weights[beyond, np.clip(centres, 0, length - 1).astype(int)[beyond]] = 1
    return weights / weights.sum(1, keepdims=True)


@pytest.mark.parametrize("scale", ["0.7,0.7", "1.26,1.26", "0.6,2"])
@pytest.mark.parametrize("planes", [1, 3])
def test_a_scaled_crop_is_what_an_ingest_at_that_pixel_would_hold(case: Case, scale: str, planes: int) -> None:
    factors = set()
    for place, window, crop in case.crops(f"sampling.scale={scale}", f"network.planes={planes}"):
        seen, truth = (np.moveaxis(v, place.axis, 0) for v in (case.image.astype(np.float64), case.label))
        low, high = map(float, scale.split(","))
        assert low - 1e-9 <= window.scale <= high + 1e-9
        factors.add(window.scale)
        start = [place.box.start[place.axis], *(s for a, s in enumerate(place.box.start) if a != place.axis)]
        centres = [start[0] + window.plane + (np.arange(planes) - planes // 2) * window.scale] + [
            a + at + (np.arange(32) + 0.5) * window.scale - 0.5
            for a, at in zip(start[1:], (window.row, window.column), strict=True)
        ]
        weights = [_triangle(n, c, window.scale) for n, c in zip(seen.shape, centres, strict=True)]
        wanted = np.einsum("pz,ry,cx,zyx->prc", *weights, seen, optimize=True)
        np.testing.assert_allclose(crop["image"], case.normal(wanted, crop["recipe"]), atol=2e-4)
        nearest = [np.floor(c + 0.5).astype(int) for c in (centres[0][planes // 2 :][:1], *centres[1:])]
        assert np.array_equal(crop["target"], truth[np.ix_(*nearest)] / np.float32(255))
        assert crop["known"].all()
    assert len(factors) == (1 if low == high else 16)


def test_pixels_in_micrometres_are_factors_of_each_scans_voxels(case: Case, make_scan: Any, tmp_path: Path) -> None:
    """63 µm of a scan of 50 µm is the factor 1.26, and of one of 25 µm the double: the same field of view."""
    for by_pixel, by_factor in zip(
        case.crops("sampling.pixel_um=63,63"), case.crops("sampling.scale=1.26,1.26"), strict=True
    ):
        assert by_pixel[0] == by_factor[0]
        assert by_pixel[1] == by_factor[1]
        for name in ("image", "target", "known"):
            np.testing.assert_array_equal(by_pixel[2][name], by_factor[2][name])
    human = {"human": np.full(SHAPE, 255, np.uint8)}
    for specimen, voxel in (("a", 50.0), ("b", 25.0), ("v", 50.0)):
        make_scan(tmp_path, specimen, case.image, human, voxel=voxel)
    settings = [*SETTINGS, "sampling.pixel_um=40,63", "steps=64"]
    job = plan_job(load_recipe("quickstart", settings), str(tmp_path), str(tmp_path))
    assert job.pixel_um == (40, 63)
    seen: dict[float, list[float]] = {50.0: [], 25.0: []}
    with Cutter(job) as cutter:
        for step in range(0, 64, 4):
            for position in range(8):
                place = cutter.order.place(step, position)
                voxel = 25.0 if "/b." in job.train[place.source].url else 50.0
                seen[voxel].append(voxel * cutter.order.window(step, position, cutter.read(place).result()).scale)
    for edges in seen.values():
        assert 40 <= min(edges) < 45
        assert 58 < max(edges) <= 63


@pytest.mark.parametrize("pixel_um", ["63,250", "10,63"])
def test_pixels_that_a_scan_cannot_show_are_refused_with_those_that_it_can(case: Case, pixel_um: str) -> None:
    with pytest.raises(RecipeError, match=r"a has voxels of 50 µm, so its crops can have pixels of 12\.5 to 200 µm"):
        next(case.crops(f"sampling.pixel_um={pixel_um}"))
    with pytest.raises(RecipeError, match="stands in place of scale"):
        next(case.crops(f"sampling.pixel_um={pixel_um}", "sampling.scale=1,1.2"))
    with pytest.raises(RecipeError, match="leave out scale, pixel_um"):
        next(case.crops(f"sampling.pixel_um={pixel_um}", "sampling.order=grid"))


def test_a_turned_crop_is_interpolated_along_its_plane(case: Case) -> None:
    normals = []
    for place, window, crop in case.crops("sampling.oblique=1", "network.planes=3", "labels=human"):
        assert place.turn is not None
        steps = place.steps((50.0,) * 3)
        normals.append(steps[0])
        panel = np.stack(np.meshgrid((-1, 0, 1), range(32), range(32), indexing="ij"), -1)
        at = place.origin((50.0,) * 3) + np.add(panel, (window.plane, window.row, window.column)) @ steps
        at = np.moveaxis(at, -1, 0)
        image = ndimage.map_coordinates(case.image.astype(np.float64), at, order=1, mode="nearest")
        low, high = case.window
        assert np.abs(crop["image"] - case.normal(image, crop["recipe"])).max() <= 0.51 / (high - low)
        inside = np.all([(a >= -0.5) & (a < n - 0.5) for a, n in zip(at, SHAPE, strict=True)], axis=0)[1]
        assert np.array_equal(crop["known"][0], inside)
        nearest = [np.clip(np.floor(a[1] + 0.5).astype(int), 0, n - 1) for a, n in zip(at, SHAPE, strict=True)]
        assert np.array_equal(crop["target"][0], case.label[tuple(nearest)] / np.float32(255) * inside)
    assert np.abs(np.mean(normals, 0)).max() < 0.9, "planes of all directions"


def test_a_turned_crop_can_be_scaled(case: Case) -> None:
    for place, window, crop in case.crops("sampling.oblique=1", "sampling.scale=1.5,1.5", "network.planes=1"):
        steps = place.steps((50.0,) * 3)
        rows = int(window.row) - 2 + np.arange(54)
        columns = int(window.column) - 2 + np.arange(54)
        panel = np.stack(np.meshgrid(window.plane + np.arange(-1, 2), rows, columns, indexing="ij"), -1)
        at = np.moveaxis(place.origin((50.0,) * 3) + panel @ steps, -1, 0)
        region = ndimage.map_coordinates(case.image.astype(np.float64), at, order=1, mode="nearest")
        centres = [np.array([1.0])] + [
            offset - (int(offset) - 2) + (np.arange(32) + 0.5) * 1.5 - 0.5 for offset in (window.row, window.column)
        ]
        weights = [_triangle(n, c, 1.5) for n, c in zip(region.shape, centres, strict=True)]
        wanted = np.einsum("pz,ry,cx,zyx->prc", *weights, region, optimize=True)
        np.testing.assert_allclose(crop["image"], case.normal(wanted, crop["recipe"]), atol=1e-3)


@given(seed=st.integers(0, 2**32 - 1), axis=st.integers(0, 2))
def test_a_quaternion_turns_as_it_does_elsewhere(seed: int, axis: int) -> None:
    turn = np.random.default_rng(seed).normal(size=4)
    turn /= np.linalg.norm(turn)
    w, x, y, z = map(float, turn)
    place = Place(0, axis, Box((3, 4, 5), (10, 15, 21)), turn=(w, x, y, z))
    order = [axis, *(a for a in range(3) if a != axis)]
    size = np.array([2.0, 1.0, 4.0])
    wanted = Rotation.from_quat([x, y, z, w]).as_matrix()[order]
    np.testing.assert_allclose(place.steps((2.0, 1.0, 4.0)) * size, wanted, atol=1e-12)
    middle = place.origin((2.0, 1.0, 4.0)) + (np.array(place.shape) - 1) / 2 @ place.steps((2.0, 1.0, 4.0))
    np.testing.assert_allclose(middle, [6, 9, 12.5], atol=1e-9)
