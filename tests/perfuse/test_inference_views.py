"""Views are undone exactly, blends are what plain formulas give, and a region changes nothing inside."""

import math
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy import ndimage
from typer.testing import CliRunner

from perfuse import organ_statistics, volumes
from perfuse.bundle import Bundle, Ensemble
from perfuse.catalog import Scan
from perfuse.cli import build as build_cli
from perfuse.contract import Contract, Forward, Fusion, Network
from perfuse.errors import BusyError, PlanError
from perfuse.geometry import Box
from perfuse.inference import plan, predict, prepare, probability
from perfuse.inference.engine import Engine
from perfuse.inference.grid import Grid, resized
from perfuse.inference.logits import LIMIT, ONE, P_ONE, Seen, fuse, window
from perfuse.inference.members import SCRATCH
from perfuse.inference.prediction import Worker
from perfuse.inference.slab import PLANES, rows_of_logits
from perfuse.inference.views import GROUPS, answer, turned, turned_back
from perfuse.models import build

TINY = Network(module=f"{__name__}:Small")
SHAPE = (70, 90, 100)


def forward(**changes: Any) -> Forward:
    given: dict[str, Any] = {"network": TINY, "voxel_size_um": (10, 200), "tile": 64, "precision": "fp32"}
    return Forward(**(given | changes))


def bundle(seed: int = 0, **changes: Any) -> Bundle:
    torch.manual_seed(seed)
    made = forward(**changes)
    return Bundle(Contract(forward=made), build(made.network).state_dict(), {"recipe": {"labels": ["human"]}})


class Small(torch.nn.Sequential):
    """Two convolutions: quick, and no turn leaves its answer as it is."""

    def __init__(self, in_channels: int, classes: int) -> None:
        super().__init__(
            torch.nn.Conv2d(in_channels, 4, 5, padding=2), torch.nn.ReLU(), torch.nn.Conv2d(4, classes, 5, padding=2)
        )


class Sure(torch.nn.Module):
    """Says of all planes that all is vessel, as surely as can be."""

    def __init__(self, in_channels: int, classes: int) -> None:
        super().__init__()
        self.classes = classes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.new_full((len(x), self.classes, *x.shape[2:]), 100.0)


class Slanted(torch.nn.Module):
    """Its logit is the pixel itself and a tenth of the column number: no turn leaves it as it is."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, :1] + torch.arange(x.shape[-1]) / 10


def slab(engine: Engine, values: np.ndarray, axis: int, planes: tuple[int, int], needed: Any = None) -> np.ndarray:
    parts = [p for _, p in rows_of_logits(engine, lambda b: values[b.slices], values.shape, axis, planes, needed)]
    return np.concatenate(parts, axis=2)[0]


@pytest.mark.parametrize("name", GROUPS)
def test_turns_are_a_group_and_undone(name: str) -> None:
    image = torch.arange(36).reshape(1, 1, 6, 6)
    views = GROUPS[name]
    seen = {tuple(turned(image, *view).flatten().tolist()) for view in views}
    assert len(seen) == len(views) == {"none": 1, "flips": 4, "quarters": 4, "all": 8}[name]
    for view in views:
        assert torch.equal(turned_back(turned(image, *view), *view), image)
        assert {tuple(turned(turned(image, *view), *other).flatten().tolist()) for other in views} == seen
    if name == "flips":
        assert tuple(image.flip(-2).flatten().tolist()) in seen
        assert tuple(image.flip(-1).flatten().tolist()) in seen


@pytest.mark.parametrize("name", ["flips", "quarters", "all"])
def test_an_answer_turns_with_its_input(name: str) -> None:
    rng = np.random.default_rng(0)
    images = rng.random((2, 1, 64, 64), np.float32)
    engine = Engine.of(Slanted(), forward(turns=name), "cpu", "eager-fp32")
    answer = engine.logits(images)
    assert not np.array_equal(answer, Engine.of(Slanted(), forward(), "cpu", "eager-fp32").logits(images))
    for view in GROUPS[name]:
        shown = turned(torch.from_numpy(images), *view).contiguous().numpy()
        np.testing.assert_array_equal(engine.logits(shown), turned(torch.from_numpy(answer), *view).numpy())


def test_a_network_may_write_into_what_it_is_shown() -> None:
    class Writing(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.sub_(0.25).mul_(3)

    images = np.random.default_rng(0).random((2, 1, 64, 64), np.float32)
    given = images.copy()
    once = Engine.of(Writing(), forward(), "cpu", "eager-fp32").logits(images)
    np.testing.assert_array_equal(images, given)
    np.testing.assert_array_equal(Engine.of(Writing(), forward(turns="all"), "cpu", "eager-fp32").logits(images), once)


def test_scales_are_seen_and_brought_back() -> None:
    """Of a network that answers a smooth image as it is, every scale says the same."""

    class Same(torch.nn.Module):
        sizes: ClassVar[set[int]] = set()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.sizes.add(x.shape[-1])
            return x

    line = np.sin(np.arange(64) / 10, dtype=np.float32)
    images = (line[:, None] * line[None, :])[None, None].copy()
    network = Same()
    answer = Engine.of(network, forward(scales=(1, 2, 0.5)), "cpu", "eager-fp32").logits(images)
    assert network.sizes == {32, 64, 128}
    assert np.abs(answer / ONE - images)[:, :, 4:-4, 4:-4].max() < 0.01


def test_impossible_views_are_refused() -> None:
    for changes, message in (
        ({"scales": (0.75,)}, "multiple of 32"),
        ({"scales": (1, 1)}, "once"),
        ({"axis_weights": (1, 2)}, "one for each of 3 axes"),
        ({"axis_weights": (0, 0, 0)}, "not all 0"),
    ):
        with pytest.raises(ValidationError, match=message):
            forward(**changes)


def test_a_contract_without_views_is_what_it_was() -> None:
    assert not {"turns", "scales", "blend", "resample_um", "skip_background"} & set(forward().model_dump())
    assert set(forward(turns="all", scales=(1, 2)).model_dump()) >= {"turns", "scales"}


@settings(deadline=None, max_examples=20)
@given(
    st.tuples(st.integers(1, 20), st.integers(1, 150), st.integers(1, 150)),
    st.sampled_from(["mean", "hann", "gaussian", "max"]),
    st.sampled_from(["logit", "probability"]),
    st.sampled_from([0, 0.25, 0.5, 0.75]),
)
def test_blending_is_that_of_a_plain_loop(shape: Any, kind: str, blend: str, overlap: float) -> None:
    values = np.random.default_rng(0).random(shape, np.float32)
    given = forward(window=kind, blend=blend, overlap=overlap)
    engine = Engine.of(Slanted(), given, "cpu", "eager-fp32")
    found = slab(engine, values, 0, (0, shape[0]))
    weights, unit = window(kind, 64).astype(float), ONE if blend == "logit" else 255 * P_ONE
    total, weight = np.zeros((shape[0], 400, 400)), np.zeros((400, 400))
    largest = np.full((shape[0], 400, 400), -math.inf)
    padded = np.pad(values, [(0, 0), (0, 256), (0, 256)], mode="constant")
    starts = [range(0, max(n - 64, 0) + given.stride, given.stride) for n in shape[1:]]
    for top in starts[0]:
        for left in starts[1]:
            logits = padded[:, top : top + 64, left : left + 64] + np.arange(64) / 10
            answer = logits.clip(-LIMIT, LIMIT) if blend == "logit" else 1 / (1 + np.exp(-logits))
            at = (slice(None), slice(top, top + 64), slice(left, left + 64))
            total[at] += answer * weights
            weight[at[1:]] += weights
            largest[at] = np.maximum(largest[at], answer)
    plain = largest if kind == "max" else total / np.maximum(weight, 1)
    inside = (slice(None), slice(shape[1]), slice(shape[2]))
    assert np.abs(found - plain[inside] * unit).max() <= 1.01


def test_of_overlapping_tiles_the_largest_mean_over_panels_counts() -> None:
    """Each plane is answered as it is, plus the place that it has in its panel: 0, 1, 2 or 3, and 1.5 in the mean."""

    class Placed(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + torch.arange(4.0)[:, None, None]

    values = np.random.default_rng(0).random((13, 70, 80), np.float32)
    network = Network(**(dict(TINY) | {"planes": 4, "outputs": "all"}))
    engine = Engine.of(Placed(), forward(network=network, window="max"), "cpu", "eager-fp32")
    assert np.abs(slab(engine, values, 0, (0, 13)) - (values + 1.5) * ONE).max() <= 1.01


def test_axes_are_fused_by_mean_weight_or_maximum() -> None:
    parts = [np.array([a], np.int16) * ONE for a in (-2, 1, 4)]
    for changes, wanted in (
        ({}, 1),
        ({"axis_weights": (1, 0, 3)}, 5 / 2),
        ({"axis_fusion": "max"}, 4),
    ):
        seen = Seen.of(forward(**changes), parts)
        assert int(fuse([seen])[0]) == math.floor(255 / (1 + math.exp(-wanted)) + 0.5)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(-9000, 9000), st.integers(0, 1000), st.floats(0.25, 4)), min_size=1, max_size=5))
def test_members_are_fused_as_the_formula_says(members: list[tuple[int, int, float]]) -> None:
    if not any(weight for _, weight, _ in members):
        members = [(value, weight + 1, t) for value, weight, t in members]
    seen = [Seen.of(forward(axes=("z",)), [np.array([value], np.int16)]) for value, _, _ in members]
    weights, temperatures = tuple(w for _, w, _ in members), tuple(t for _, _, t in members)
    logits = np.array([v / ONE for v, _, _ in members])
    shared = np.average(np.clip(logits / temperatures, -LIMIT, LIMIT), weights=weights)
    found = fuse(seen, Fusion(weights=weights, temperatures=temperatures))
    assert abs(int(found[0]) - 255 / (1 + math.exp(-shared))) <= 0.5 + 255 / 4 / ONE
    mean = np.average(1 / (1 + np.exp(-logits)), weights=weights)
    found = fuse(seen, Fusion(average="probability", weights=weights))
    assert abs(int(found[0]) - 255 * mean) <= 0.5 + 1 / P_ONE


def test_probabilities_and_logits_meet_in_one_ensemble() -> None:
    logit = Seen.of(forward(axes=("z",)), [np.array([2 * ONE], np.int16)])
    share = Seen.of(forward(axes=("z",), blend="probability"), [np.array([round(0.25 * 255 * P_ONE)], np.int16)])
    sigmoid = 1 / (1 + math.exp(-2))
    assert int(fuse([logit, share], Fusion(average="probability"))[0]) == round(255 * (sigmoid + 0.25) / 2)
    assert int(fuse([share, logit], Fusion(average="logit"))[0]) == round(
        255 / (1 + math.exp(-(2 + math.log(1 / 3)) / 2))
    )


@settings(deadline=None, max_examples=30)
@given(st.tuples(*[st.integers(1, 24)] * 3), st.tuples(*[st.integers(1, 24)] * 3), st.integers(0, 99))
def test_resizing_does_not_depend_on_the_box(inputs: Any, outputs: Any, seed: int) -> None:
    rng = np.random.default_rng(seed)
    volume = rng.random(inputs, np.float32)
    z, y, x = (n / m for n, m in zip(inputs, outputs, strict=True))
    whole = resized(lambda b: volume[b.slices], inputs, outputs, (z, y, x), Box.whole(outputs))
    assert whole.shape == outputs
    start = [int(rng.integers(0, n)) for n in outputs]
    stop = [int(rng.integers(a + 1, n + 1)) for a, n in zip(start, outputs, strict=True)]
    box = Box(tuple(start), tuple(stop))  # type: ignore[arg-type]
    part = resized(lambda b: volume[b.slices], inputs, outputs, (z, y, x), box)
    np.testing.assert_array_equal(part, whole[box.slices])


def test_a_finer_grid_is_trilinear_and_comes_back() -> None:
    """As scipy's linear zoom of whole cells; a smooth volume survives there and back."""
    axes = [np.sin(np.arange(n) / 7) for n in (20, 24, 28)]
    volume = (axes[0][:, None, None] * axes[1][None, :, None] * axes[2]).astype(np.float32)
    double = (40, 48, 56)
    fine = resized(lambda b: volume[b.slices], volume.shape, double, (0.5, 0.5, 0.5), Box.whole(double))  # type: ignore[arg-type]
    np.testing.assert_allclose(fine, ndimage.zoom(volume, 2, order=1, mode="nearest", grid_mode=True), atol=1e-5)
    back = resized(lambda b: fine[b.slices], double, volume.shape, (2, 2, 2), Box.whole(volume.shape))  # type: ignore[arg-type]
    assert np.abs(back - volume)[2:-2, 2:-2, 2:-2].max() < 0.02


@pytest.fixture
def scan(tmp_path: Path, make_scan: Any, tubes: Any) -> Scan:
    image, mask = tubes(0, SHAPE)
    organ = np.zeros(SHAPE, np.uint8)
    organ[:, :60, :60] = 255
    made: Scan = make_scan(tmp_path, "organ", image, {"human": mask, "organ": organ})
    organ_statistics.refresh(made)
    return made


@pytest.mark.parametrize("um", [30.0, 80.0, 100.0])
def test_a_scan_is_seen_at_another_voxel_size(scan: Scan, um: float) -> None:
    made = bundle(resample_um=um)
    grid = Grid.of(scan, made.contract.forward)
    edge = scan.info.voxel_size_um[0]
    assert grid.shape_zyx == tuple(round(n * edge / um) for n in SHAPE)
    predict(scan.url, made, "soft")
    stored = np.asarray(scan.label("soft")[:])
    assert stored.shape == SHAPE
    network = build(TINY)
    network.load_state_dict(made.weights)
    if grid.level == 0:
        whole = probability(network, made.contract.forward, scan, Box.whole(SHAPE))[0]
        np.testing.assert_array_equal(stored, whole)
    else:
        assert (grid.level, um) == (1, 100.0)
    assert not np.array_equal(stored, probability(network, forward(), scan, Box.whole(SHAPE))[0])


@pytest.mark.parametrize("changes", [{}, {"resample_um": 37.0}, {"window": "max", "axes": ("y",)}])
def test_inside_a_region_voxels_are_those_of_the_whole(scan: Scan, changes: dict[str, Any]) -> None:
    made, box = bundle(**changes), Box((60, 3, 40), (69, 50, 70))
    predict(scan.url, made, "whole")
    prediction = prepare(scan.url, made, "part", roi=box)
    assert len(prediction.slabs()) < len(prepare(scan.url, made, "whole").slabs())
    (info,) = predict(scan.url, made, "part", roi=box)
    assert info.box == (box.start, box.stop)
    part, whole = (np.asarray(scan.label(name)[:]) for name in ("part", "whole"))
    np.testing.assert_array_equal(part[box.slices], whole[box.slices])
    part[box.slices] = 0
    assert not part.any()
    known = Scan.open(scan.url).read_known("part", Box.whole(SHAPE))
    assert known.sum() == box.size
    counted = plan(scan, made.contract.forward, roi=box)
    assert 0 < counted.tiles < plan(scan, made.contract.forward).tiles == counted.tiles + counted.skipped


@pytest.mark.parametrize("stop", [(60, 40, 40), (71, 60, 60)])
def test_a_region_that_is_empty_or_outside_is_refused(scan: Scan, stop: tuple[int, int, int]) -> None:
    with pytest.raises(PlanError, match=r"must hold a voxel and lie inside .* 70 × 90 × 100"):
        prepare(scan.url, bundle(), "part", roi=Box((60, 3, 40), stop))


def test_background_is_not_seen_and_said_to_be_skipped(scan: Scan) -> None:
    """The organ fills the first chunk of each row and column of four: no tile that only lies beyond is seen."""
    made = bundle(skip_background=True, overlap=0, axes=("z",))
    (info,) = predict(scan.url, made, "soft")
    (whole,) = predict(scan.url, bundle(overlap=0, axes=("z",)), "whole")
    soft, everywhere = (np.asarray(scan.label(name)[:]) for name in ("soft", "whole"))
    np.testing.assert_array_equal(soft[:, :64, :64], everywhere[:, :64, :64])
    soft[:, :64, :64] = 0
    assert not soft.any()
    assert info.lineage["skipped"] == 0.75
    assert "skipped" not in whole.lineage


def test_chunks_of_one_intensity_are_not_seen_where_nobody_marked_the_organ(tmp_path: Path, tubes: Any) -> None:
    """As outside the round field of view; chunks of 32 voxels, not the usual ones."""
    from perfuse_ingest.ingest import ingest

    image = tubes(0, SHAPE)[0]
    image[:, :, 64:] = 7
    (tmp_path / "slices").mkdir()
    for z, plane in enumerate(image):
        tifffile.imwrite(tmp_path / "slices" / f"{z:03d}.tif", plane, photometric="minisblack")
    about: dict[str, Any] = {"voxel_size_um": (50, 50, 50), "specimen": "s", "organ": "kidney", "mask": False}
    url = str(tmp_path / "s.ome.zarr")
    ingest(str(tmp_path / "slices"), url, layout=volumes.Layout(chunk=32), **about)
    (info,) = predict(url, bundle(skip_background=True, overlap=0, axes=("z",), tile=32), "soft")
    predict(url, bundle(overlap=0, axes=("z",), tile=32), "whole")
    soft, whole = (np.asarray(Scan.open(url).label(name)[:]) for name in ("soft", "whole"))
    np.testing.assert_array_equal(soft[:, :, :64], whole[:, :, :64])
    assert not soft[:, :, 64:].any()
    assert whole[:, :, 64:].any()
    assert info.lineage["skipped"] == 0.5


@pytest.mark.parametrize("network", [TINY, Network(**(dict(TINY) | {"planes": 4, "outputs": "all", "mosaic": True}))])
def test_bits_of_a_part_do_not_depend_on_slabs(network: Network) -> None:
    values = np.random.default_rng(1).random((40, 72, 80), np.float32)
    torch.manual_seed(0)
    engine = Engine.of(build(network), forward(network=network, turns="flips", window="max"), "cpu", "eager-fp32")

    def needed(box: Box) -> bool:
        return not box.intersect(Box((13, 0, 0), (30, 72, 20))).empty

    whole = slab(engine, values, 0, (0, 40), needed)
    cuts = [(a, min(a + 2 * PLANES, 40)) for a in range(0, 40, 2 * PLANES)]
    np.testing.assert_array_equal(np.concatenate([slab(engine, values, 0, cut, needed) for cut in cuts]), whole)
    everything = slab(engine, values, 0, (0, 40))
    np.testing.assert_array_equal(whole[13:30, :, :16], everything[13:30, :, :16])
    assert (whole[:8] == -LIMIT * ONE).all()


def test_kept_scratch_asks_no_network_twice(scan: Scan, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = bundle(0), bundle(1)
    predict(scan.url, first, "a", keep_scratch=True)
    asked: list[int] = []
    run = Worker.run

    def counted(self: Worker, rows: Any) -> Any:
        todo = list(rows)
        asked.extend(row["axis"] for row in todo)
        return run(self, todo)

    monkeypatch.setattr(Worker, "run", counted)
    predict(scan.url, Ensemble((first, second), 128), "ab", keep_scratch=True)
    assert len(asked) == 6, "only the new member's: two slabs along each of three axes"
    asked.clear()
    fused = first.contract.forward.changed(axis_fusion="max")
    predict(scan.url, Bundle(Contract(forward=fused), first.weights, {}), "max", keep_scratch=True)
    predict(scan.url, Ensemble((first, second), 128, Fusion(weights=(3, 1))), "weighted", keep_scratch=True)
    predict(scan.url, Ensemble((first, second), 128, Fusion(average="probability")), "shares")
    assert not asked
    labels = [np.asarray(scan.label(name)[:]) for name in ("a", "ab", "max", "weighted", "shares")]
    assert len({label.tobytes() for label in labels}) == 5
    assert (labels[2] >= labels[0]).all()
    assert scan.labels()["weighted"].lineage["fusion"] == {"weights": [3, 1]}
    predict(scan.url, first, "again")
    assert not asked, "what was to be kept stays"
    kept = Path(scan.url, SCRATCH)
    (kept / "label-human").mkdir()
    CliRunner().invoke(build_cli(), ["scan", "clean", scan.url], catch_exceptions=False)
    assert [folder.name for folder in kept.iterdir() if folder.is_dir()] == ["label-human"], "what is staged stays"
    predict(scan.url, first, "anew")
    assert len(asked) == 6
    assert [folder.name for folder in kept.iterdir() if folder.is_dir()] == ["label-human"], "nobody asked to keep it"


def test_logits_belong_to_one_prediction_at_a_time(scan: Scan) -> None:
    made = bundle()
    (member,) = prepare(scan.url, made, "a").members
    with member.held(scan.url), pytest.raises(BusyError, match="Another process"):
        predict(scan.url, made, "b")
    predict(scan.url, made, "b")


def test_sums_of_many_panels_do_not_overflow() -> None:
    """16 panels and 16 tiles over a pixel, all as sure as can be, under Hann's window: more than an int32 holds."""
    network = Network(module=f"{__name__}:Sure", planes=16, outputs="all")
    torch.manual_seed(0)
    engine = Engine.of(build(network), forward(network=network, tile=96, overlap=0.74), "cpu", "eager-fp32")
    logits = slab(engine, np.ones((32, 200, 200), np.float32), 0, (0, 32))
    assert (logits == LIMIT * ONE).all()


@pytest.mark.parametrize("um", [37.0, 80.0, 100.0, 150.0])
def test_voxels_of_another_size_lie_where_they_should(tmp_path: Path, make_scan: Any, um: float) -> None:
    """A ramp stays where it is to an eighth of a voxel, from whatever level it is read: a low-pass's weights are not exactly centred."""
    shape, places = (140, 150, 160), [np.arange(n) for n in (140, 150, 160)]
    ramp = 100 * places[0][:, None, None] + 40 * places[1][:, None] + 60 * places[2]
    made: Scan = make_scan(tmp_path, "ramp", ramp.astype(np.uint16), {})
    grid = Grid.of(made, forward(resample_um=um))
    assert grid.level == (um >= 100)
    seen = grid.read(Box.whole(grid.shape_zyx))
    z, y, x = ((np.arange(n) + 0.5) * m / n - 0.5 for n, m in zip(grid.shape_zyx, shape, strict=True))
    expected = 100 * z[:, None, None] + 40 * y[:, None] + 60 * x
    np.testing.assert_allclose(seen[4:-4, 4:-4, 4:-4], expected[4:-4, 4:-4, 4:-4], atol=(100 + 40 + 60) / 8)


def test_each_panel_of_a_mosaic_is_turned_on_its_own() -> None:
    """The mean over all turns turns as its panels do; were the mosaic turned as a whole, panels would change places."""
    network = Network(**(dict(TINY) | {"planes": 4, "outputs": "all", "mosaic": True}))
    torch.manual_seed(0)
    made, panels = build(network), torch.rand(2, 4, 64, 64)
    asked = partial(answer, made, forward=forward(network=network, turns="all"))
    with torch.inference_mode():
        turned_first, turned_after = asked(panels.rot90(1, (-2, -1))), asked(panels).rot90(1, (-2, -1))
    assert (turned_first - turned_after).abs().max() <= 1
    assert (turned_first - asked(panels)).abs().max() > 50


def test_members_may_differ_in_all_that_they_see(scan: Scan) -> None:
    members = bundle(), bundle(1, tile=32, window="gaussian", turns="flips", axes=("y",)), bundle(2, resample_um=80.0)
    predict(scan.url, Ensemble(members, 128), "together")
    for number, member in enumerate(members):
        predict(scan.url, member, f"alone-{number}", keep_scratch=True)
    box = Box((3, 5, 7), (40, 60, 66))
    expected = fuse([seen for member in members for seen in prepare(scan.url, member, "alone").sight().of(box)])
    np.testing.assert_array_equal(scan.label("together")[box.slices], expected)
