"""Every combination scores as its own prediction would, and no network is asked for it."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import nnls

from perfuse import scoring, stacking, sweeping
from perfuse.bundle import Bundle, Ensemble
from perfuse.catalog import Scan
from perfuse.contract import Contract, Forward, Fusion, Network
from perfuse.errors import ContractError, PlanError, ScanError
from perfuse.geometry import Box
from perfuse.inference import Runner, plan, predict, prepare
from perfuse.inference.grid import Grid
from perfuse.inference.members import SCRATCH
from perfuse.inference.options import box_of, fused_otherwise, previewed, seen_otherwise
from perfuse.inference.prediction import Worker
from perfuse.models import build
from perfuse.sweeping import Sweep

SHAPE = (70, 40, 50)


class Small(torch.nn.Sequential):
    """One convolution: quick."""

    def __init__(self, in_channels: int, classes: int) -> None:
        super().__init__(torch.nn.Conv2d(in_channels, classes, 5, padding=2))


def bundle(seed: int, gain: float = 1.0, **changes: Any) -> Bundle:
    """A network of random weights: its logits rise with what is bright around a pixel, more or less."""
    network = Network(module=f"{__name__}:Small")
    torch.manual_seed(seed)
    weights = {
        name: gain * value.abs() - 0.5 * gain * (value.ndim == 1) for name, value in build(network).state_dict().items()
    }
    forward = Forward(network=network, voxel_size_um=(10, 100), tile=32, axes=("z",), precision="fp32", **changes)
    return Bundle(Contract(forward=forward), weights, {}, f"models:/m/{seed}")


@pytest.fixture
def scan(tmp_path: Path, make_scan: Any, tubes: Any) -> Scan:
    image, mask = tubes(0, SHAPE)
    made: Scan = make_scan(tmp_path, "organ", image, {"human": mask})
    return made


def settings(row: sweeping.Row) -> list[str]:
    return [f"{n}:{setting}" for n, seer in enumerate(row.seers, 1) for setting in seer.settings]


def test_a_row_is_what_a_prediction_scores(scan: Scan, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {f"models:/m/{k}": bundle(k, gain) for k, gain in enumerate((1.0, 3.0))}
    um = scan.info.voxel_size_um[0] * 1.5
    wanted = Sweep(Ensemble(tuple(given.values()), 128), resolutions=((), (f"resample_um={um}",)), fit=True)
    rows = sweeping.sweep([scan], wanted, "human", Runner())
    assert len(rows) == 15 + 3
    with monkeypatch.context() as no_network:
        no_network.setattr(Worker, "_engine", lambda *_: pytest.fail("a network was asked again"))
        again = sweeping.sweep(
            [scan], Sweep(wanted.model, average="probability", temperatures=(1, 2)), "human", Runner()
        )
    assert [len(row.seers) for row in again] == [1, 1, 2]
    mixed = {len(row.seers) for row in rows if len({seer.resolution for seer in row.seers}) == 2}
    assert mixed == {2, 3, 4}
    for row in (rows[0], *rows[5:7], rows[12], *rows[-3:], again[-1]):
        members = tuple(given[seer.bundle.uri] for seer in row.seers)
        together = Ensemble(members, 128) if len(members) > 1 else members[0]
        fused = fused_otherwise(together, row.fusion.average, row.weights, row.fusion.temperatures)
        predict(scan.url, seen_otherwise(fused, settings(row)), "soft", keep_scratch=True)
        curve = scoring.tune([scan], "soft", "human")
        np.testing.assert_array_equal(curve.surface_dice, row.curve.surface_dice)
        np.testing.assert_array_equal(curve.dice, row.curve.dice)
    assert len({row.curve.dice.tobytes() for row in rows[:15]}) == 15


def test_combinations() -> None:
    assert sweeping.combined([(0, 0), (1, 0)]) == [(0,), (1,), (0, 1)]
    assert len(sweeping.combined([(m, r) for m in range(3) for r in range(2)])) == 63
    seven = sweeping.combined([(m, 0) for m in range(7)])
    assert [len(choice) for choice in seven] == [1] * 7 + [6] * 7 + [7]
    crossed = sweeping.combined([(m, r) for m in range(4) for r in range(3)])
    assert len(crossed) == len(set(crossed)) == 15 * 7 + 12
    assert [k for k in range(12) if k // 3 in (0, 2) and k % 3 != 1] == list(crossed[crossed.index((0, 2, 6, 8))])


def test_a_resolution_that_is_the_same_is_not_looked_at_twice() -> None:
    model = Ensemble((bundle(0), bundle(1).with_forward(bundle(1).contract.forward.changed(scales=(2,)))), 128)
    seers = Sweep(model, resolutions=((), ("scales=2",))).seers
    assert [(seer.model, seer.settings) for seer in seers] == [(0, ()), (0, ("scales=2",)), (1, ())]


def test_weights_are_those_that_made_the_truth() -> None:
    """Truth drawn from σ(3 · (0.8 a + 0.2 b)) of independent logits a, b, and a third that says the opposite: 0.8, 0.2 and 0."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 60_000))
    logits = np.stack([a, b, -a + rng.normal(size=len(a))], axis=1)
    truth = rng.random(len(a)) < 1 / (1 + np.exp(-3 * (0.8 * a + 0.2 * b)))
    assert stacking.fitted(logits, truth) == pytest.approx((0.8, 0.2, 0), abs=0.02)
    linear, _ = nnls(logits, truth - 0.5)
    assert linear[2] == 0


def test_weights_of_probabilities_are_those_that_made_the_truth() -> None:
    """Truth drawn from 0.7 σ(a) + 0.3 σ(b): 0.7, 0.3, and 0 of a third that knows nothing of it."""
    logits = 3 * np.random.default_rng(1).normal(size=(30_000, 3))
    share = (1 / (1 + np.exp(-logits))) @ (0.7, 0.3, 0)
    truth = np.random.default_rng(2).random(len(logits)) < share
    assert stacking.fitted_mixture(logits, truth) == pytest.approx((0.7, 0.3, 0), abs=0.03)


def test_the_sample_is_of_what_counts(scan: Scan) -> None:
    model = Ensemble((bundle(0), bundle(1)), 128)
    prediction = prepare(scan.url, model, "soft")
    Runner().fill(prediction, model)
    logits, marked = stacking.sampled(scan, prediction, "human", 0)
    assert logits.shape == (np.prod(SHAPE), 2), "all voxels of a small scan"
    np.testing.assert_array_equal(marked.reshape(SHAPE), np.asarray(scan.label("human")[:]) >= 128)
    predict(scan.url, model.members[1], "one")
    soft = np.floor(255 / (1 + np.exp(-logits[:, 1])) + 0.5).reshape(SHAPE)
    np.testing.assert_array_equal(soft, scan.label("one")[:])


def test_what_cannot_be_swept_is_refused(scan: Scan) -> None:
    for wanted, message in (
        (Sweep(bundle(0), fit=True), "no weights to fit"),
        (Sweep(bundle(0), average="logit"), "nothing to be averaged with"),
        (Sweep(Ensemble((bundle(0), bundle(1)), 128), temperatures=(1,)), "1 temperatures for 2 models"),
        (Sweep(Ensemble((bundle(0), bundle(1)), 128), ("3:turns=all",)), "no model 3"),
    ):
        with pytest.raises(ContractError, match=message):
            sweeping.sweep([scan], wanted, "human", Runner())
    with pytest.raises(ScanError, match="no label 'other'"):
        sweeping.sweep([scan], Sweep(bundle(0)), "other", Runner())
    assert SCRATCH.split("/")[-1] not in {p.name for p in Path(scan.url, "perfuse").iterdir()}


def test_logits_that_find_no_room_are_refused_before_any_network_is_asked(
    scan: Scan, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two resolutions, int16 along one axis: 2 bytes of each voxel, and of each of those of one and a half times the edge."""
    um = scan.info.voxel_size_um[0] * 2
    wanted = Sweep(bundle(0), resolutions=((), (f"resample_um={um}",)))
    needed = 2 * (70 * 40 * 50 + 35 * 20 * 25)
    free = needed - 1
    monkeypatch.setattr(sweeping.shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    with monkeypatch.context() as no_network:
        no_network.setattr(Worker, "_engine", lambda *_: pytest.fail("a network was asked"))
        with pytest.raises(PlanError, match=r"315\.0 kB .* are free"):
            sweeping.sweep([scan], wanted, "human", Runner())
    free = needed
    assert len(sweeping.sweep([scan], wanted, "human", Runner())) == 3
    assert "315.0 kB of logits" in capsys.readouterr().err
    free = 0
    assert len(sweeping.sweep([scan], wanted, "human", Runner())) == 3, "what is there needs no room"


def test_settings_change_what_may_be_changed() -> None:
    model = Ensemble((bundle(0), bundle(1)), 128)
    seen = seen_otherwise(model, ["turns=all", "scales=1,2", "axes=z,x", "resample_um=20"])
    for member, given in zip(seen.members, model.members, strict=True):
        forward = member.contract.forward
        assert (forward.turns, forward.scales, forward.axes, forward.resample_um) == ("all", (1, 2), ("z", "x"), 20)
        assert (member.weights, member.uri) == (given.weights, given.uri)
        assert member.forward_digest() != given.forward_digest()
    assert seen_otherwise(model, []) is model
    one, other = seen_otherwise(model, ["turns=all", "2:axes=x", "1:turns=none"]).members
    assert (one.contract.forward.turns, one.contract.forward.axes) == ("none", ("z",))
    assert (other.contract.forward.turns, other.contract.forward.axes) == ("all", ("x",))
    for setting, message in (
        ("network.planes=3", "a prediction may change axes, tile"),
        ("turns", "write key=value"),
        ("turns=both", "'none', 'flips', 'quarters' or 'all'"),
        ("scales=0.7", "multiple of 32"),
        ("tile=33", "multiple of 32"),
        ("3:turns=all", "no model 3; they are numbered 1 to 2"),
        ("0:turns=all", "no model 0"),
        ("turns=[", r"--set turns=\[: the value is a word"),
        ("window={", r"--set window=\{: the value is a word"),
        ("tile=2020-13-45", "the value is a word"),
        ("tile=!!bool x", "the value is a word"),
        ("axes=", "axes .*at least 1 item"),
        ("axes=z,z", "axes name each axis once"),
        ("resample_um=.inf", "resample_um .*finite"),
    ):
        with pytest.raises(ContractError, match=message):
            seen_otherwise(model, [setting])


def test_members_count_as_said() -> None:
    model = Ensemble((bundle(0), bundle(1)), 128)
    made = fused_otherwise(model, "probability", [3, 1], [1, 2])
    assert made.fusion == Fusion(average="probability", weights=(750, 250), temperatures=(1, 2))
    assert made.forward_digest() != model.forward_digest()
    assert fused_otherwise(model) is model
    for values, message in (
        ((None, [1.0], None), "1 weights for 2 models"),
        ((None, [1.0, -1.0], None), "none may lie below 0"),
        ((None, [1.0, np.nan], None), "none may lie below 0"),
        ((None, [1.0, np.inf], None), "be without end"),
        ((None, None, [1.0, 0.0]), "greater than 0"),
        ((None, None, [1.0, np.inf]), "finite"),
    ):
        with pytest.raises(ContractError, match=message):
            fused_otherwise(model, *values)  # type: ignore[arg-type]
    with pytest.raises(ContractError, match="nothing to be averaged with"):
        fused_otherwise(bundle(0), "logit")


def test_regions_are_read_in_voxels_and_micrometres(scan: Scan) -> None:
    assert box_of("1:3,:5,2:", scan) == Box((1, 0, 2), (3, 5, 50))
    placed = scan.info.model_copy(update={"voxel_size_um": (50.0, 20.0, 10.0), "origin_um": (-15.0, 1000.0, 3000.0)})
    crop = Scan(scan.url, scan.group, placed)
    assert box_of("1:3,:5,2:", crop) == Box((1, 0, 2), (3, 5, 50))
    assert box_of("35:135,1000:1090,3015:um", crop) == Box((1, 0, 2), (3, 5, 50))
    depth, rows, columns = SHAPE
    whole = f"-15:{50 * depth - 15},1000:{1000 + 20 * rows},3000:{3000 + 10 * columns}um"
    assert box_of(whole, crop) == box_of(":,:,:um", crop) == Box.whole(SHAPE)
    for text in ("-65:35,:,:um", "36:37,:,:um", ":,0:1100,:um", ":,:,3100:3600um", ":,:,3100:3050um"):
        with pytest.raises(PlanError, match=f"--roi {text}: the scan reaches over {whole}"):
            box_of(text, crop)
    for text in ("1:3,2:4", "a:b,1:2,1:2", "1-3,2:4,5:6", "1.2.3:4,0:1,0:1"):
        with pytest.raises(PlanError, match="z0:z1,y0:y1,x0:x1"):
            box_of(text, scan)


def test_a_preview_sees_the_voxels_of_a_coarser_level(tmp_path: Path, make_scan: Any) -> None:
    """Of thick slices, whose number stays; a ramp comes back to where it was, though the level reaches beyond the scan."""
    shape = (20, 133, 75)
    ramp = (100 * np.indices(shape).sum(axis=0)).astype(np.uint16)
    scan: Scan = make_scan(tmp_path, "thick", ramp, {}, voxel=(100.0, 10.0, 10.0))
    model = previewed(seen_otherwise(bundle(0), ["resample_um=63"]), scan, 2)
    grid = Grid.of(scan, model.members[0].contract.forward)
    stored = np.asarray(scan.level(2)[:])
    assert stored.shape == grid.shape_zyx == (20, 34, 19)
    np.testing.assert_array_equal(grid.read(Box.whole(stored.shape)), stored)
    back = grid.back(lambda box: stored[box.slices].astype(np.int16), Box.whole(shape))
    np.testing.assert_allclose(back[:, 4:-4, 4:-4], ramp[:, 4:-4, 4:-4], atol=5)
    whole = plan(scan, model.members[0].contract.forward)
    assert whole.scratch_bytes == 2 * stored.size
    (info,) = predict(scan.url, model, "look")
    assert scan.label("look").shape == shape
    assert (info.lineage["level"], "resample_um" in info.lineage) == ([2], False)
    part = Box((3, 60, 20), (9, 101, 75))
    predict(scan.url, model, "part", roi=part)
    np.testing.assert_array_equal(scan.label("part")[part.slices], scan.label("look")[part.slices])
    with pytest.raises(PlanError, match="coarser levels 1 to"):
        previewed(bundle(0), scan, 9)


def test_members_of_unlike_scale_are_told_of(
    scan: Scan, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the message tells to do asks no network, though nobody asked to keep the logits; a sweep says the same."""
    both = Ensemble((bundle(0, 8.0), bundle(1)), 128)
    predict(scan.url, both, "soft")
    assert f"that asks no network, for the logits are kept beside the scan. `perfuse scan clean {scan.url}`" in told(
        capsys
    )
    with monkeypatch.context() as no_network:
        no_network.setattr(Worker, "_engine", lambda *_: pytest.fail("a network was asked again"))
        for fusion in (Fusion(temperatures=(8, 1)), Fusion(average="probability")):
            predict(scan.url, Ensemble(both.members, 128, fusion), "soft")
            assert "differ in scale" not in told(capsys)
        sweeping.sweep([scan], Sweep(both), "human", Runner())
        assert "differ in scale" in told(capsys)
        sweeping.sweep([scan], Sweep(both, average="probability"), "human", Runner())
        assert "differ in scale" not in told(capsys)
    predict(scan.url, Ensemble((bundle(2), bundle(3)), 128), "soft")
    assert "differ in scale" not in told(capsys)


def told(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err


def test_that_a_finished_label_has_no_logits_left_is_said(scan: Scan, capsys: pytest.CaptureFixture[str]) -> None:
    predict(scan.url, bundle(0), "soft")
    predict(scan.url, bundle(0), "soft")
    assert "done already" not in told(capsys)
    predict(scan.url, bundle(0), "soft", keep_scratch=True)
    assert "The label soft is done already, and the models' logits are not beside the scan" in told(capsys)
    predict(scan.url, bundle(0), "other", keep_scratch=True)
    predict(scan.url, bundle(0), "other", keep_scratch=True)
    assert "done already" not in told(capsys)
