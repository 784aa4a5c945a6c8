"""Voxels do not depend on how the work is cut, and lie where they should."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from perfuse import organ_statistics, storage
from perfuse.bundle import Bundle, Ensemble
from perfuse.catalog import Scan
from perfuse.contract import Contract, Forward, Network
from perfuse.errors import ContractError, PlanError, ScanError
from perfuse.geometry import Box
from perfuse.inference import plan, predict, prepare, probability, probability_of_array
from perfuse.inference.engine import Engine
from perfuse.inference.logits import LIMIT, ONE, Seen, divide, fuse, window
from perfuse.inference.prediction import Worker
from perfuse.inference.scratch import SLAB
from perfuse.inference.slab import PLANES, rows_of_logits
from perfuse.models import build
from perfuse.normalisation import bounds, normalise

TINY = Network(encoder="tu-test_resnet", encoder_weights=None, planes=3, decoder_channels=(16, 8, 8, 8, 8))


def forward(**changes) -> Forward:
    return Forward(network=TINY, voxel_size_um=(10, 100), tile=64, **({"precision": "fp32"} | changes))


def bundle(seed: int = 0, **changes) -> Bundle:
    torch.manual_seed(seed)
    network = build(TINY)
    return Bundle(Contract(forward=forward(**changes)), network.state_dict(), {})


class Middle(torch.nn.Module):
    """A network whose logit is 4 · (middle plane) − 2."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        half = x.shape[1] // 2
        return 4 * x[:, half : half + 1] - 2


def slab(engine: Engine, values: np.ndarray, axis: int, planes: tuple[int, int]) -> np.ndarray:
    parts = [p for _, p in rows_of_logits(engine, lambda b: values[b.slices], values.shape, axis, planes)]
    return np.concatenate(parts, axis=2)[0]


@settings(deadline=None, max_examples=25)
@given(
    st.tuples(*[st.integers(1, 90)] * 3),
    st.sampled_from([0, 1, 2]),
    st.sampled_from(["mean", "hann"]),
    st.integers(0, 9),
)
def test_each_voxel_comes_from_its_own_place(shape, axis, blend, seed):
    """Tiles, panels, bands and padding leave a pixelwise network's answer exactly where its input was."""
    values = np.random.default_rng(seed).random(shape, np.float32)
    engine = Engine.of(Middle(), forward(window=blend), "cpu", "eager-fp32")
    logits = np.moveaxis(slab(engine, values, axis, (0, shape[axis])), 0, axis)
    np.testing.assert_array_equal(logits, np.rint((4 * values - 2) * ONE).astype(np.int16))


@pytest.mark.parametrize("backend", ["eager-fp32", "eager-bf16"])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_bits_do_not_depend_on_slabs_or_threads(backend, axis):
    """Nor on the threads that torch has been given for other work, which it has again afterwards."""
    values = np.random.default_rng(1).random((40, 72, 80), np.float32)
    torch.manual_seed(0)
    network, depth = build(TINY), values.shape[axis]
    cuts = [(a, min(a + 3 * PLANES, depth)) for a in range(0, depth, 3 * PLANES)]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        whole = slab(Engine.of(network, forward(), "cpu", backend, 1), values, axis, (0, depth))
        torch.set_num_threads(2)
        for threads in (1, 3):
            engine = Engine.of(network, forward(), "cpu", backend, threads)
            assert engine.streams == threads
            np.testing.assert_array_equal(np.concatenate([slab(engine, values, axis, cut) for cut in cuts]), whole)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@given(st.lists(st.tuples(st.integers(-LIMIT * ONE, LIMIT * ONE), st.integers(1, 1024)), min_size=1, max_size=8))
def test_integer_mean_ignores_order(parts):
    total = sum(v * w for v, w in parts)
    weight = sum(w for _, w in parts)
    assert abs(int(divide(np.array(total), weight)) - total / weight) <= 0.5
    assert divide(np.array(total), weight) == math.floor(total / weight + 0.5)


def test_fusion_rounds_once():
    logits = [np.array([-16384, -1024, 0, 1024, 16384], np.int16), np.array([-16384, -1024, 1, 3072, 16384], np.int16)]
    mean = np.array([-16, -1, 1 / 1024, 2, 16])
    np.testing.assert_array_equal(
        fuse([Seen.of(forward(axes=("z", "y")), logits)]), np.floor(255 / (1 + np.exp(-mean)) + 0.5).astype(np.uint8)
    )
    assert window("hann", 64).min() >= 1
    assert int(window("hann", 256).max()) * LIMIT * ONE * 64 < 2**31


@pytest.fixture
def scan(tmp_path, make_scan, tubes) -> Scan:
    image, mask = tubes(0, (SLAB + 9, 70, 66))
    return make_scan(tmp_path, "organ", image, {"human": mask})


def test_prediction_is_what_a_plain_loop_gives(scan):
    made = bundle()
    (info,) = predict(scan.url, made, "soft")
    stored = np.asarray(scan.label("soft")[:])
    whole = Box.whole(scan.shape_zyx)
    network = build(TINY)
    network.load_state_dict(made.weights)
    np.testing.assert_array_equal(stored, probability(network, made.contract.forward, scan, whole)[0])
    assert info.kind == "soft"
    assert info.model is not None
    assert info.model.forward_digest == made.forward_digest()
    assert not storage.exists(storage.join(scan.url, "perfuse/scratch", info.key[:16]))
    values = normalise(
        np.asarray(scan.image[:]),
        bounds(scan, made.contract.forward.normalisation),
        made.contract.forward.normalisation,
    )
    engine = Engine.of(network, made.contract.forward, "cpu", info.model.backend)
    axes = [np.moveaxis(slab(engine, values, a, (0, scan.shape_zyx[a])), 0, a) for a in range(3)]
    np.testing.assert_array_equal(stored, fuse([Seen.of(made.contract.forward, axes)]))


def test_same_key_runs_nothing_and_a_new_threshold_no_network(scan, monkeypatch):
    made = bundle()
    (first,) = predict(scan.url, made, "soft")
    monkeypatch.setattr(Worker, "run", lambda *_: pytest.fail("the network was asked again"))
    assert predict(scan.url, made, "soft") == (first,)
    (moved,) = predict(scan.url, made.with_threshold(77), "soft")
    assert moved.digest == first.digest
    assert scan.label_info("soft").model.threshold == 77


def test_torn_and_missing_slabs_are_found_and_redone(scan):
    made = bundle()
    prediction = prepare(scan.url, made, "soft")
    worker = Worker(prediction, made, 1)
    rows = prediction.slabs_to_do()
    assert len(rows) == 2 + 2 + 2
    assert list(worker.run(rows[:4])) == rows[:4]
    assert prediction.slabs_to_do() == rows[4:]
    shards = sorted(Path(scan.url, prediction.members[0].scratch, "z", "c").rglob("*"))
    torn = [s for s in shards if s.is_file()]
    torn[0].write_bytes(torn[0].read_bytes()[:-7])
    torn[-1].unlink()
    assert prediction.slabs_to_do() == rows[:2] + rows[4:]
    predict(scan.url, made, "soft")
    again = np.asarray(scan.label("soft")[:])
    predict(scan.url, made, "undisturbed")
    np.testing.assert_array_equal(again, scan.label("undisturbed")[:])


def test_another_model_replaces_soft_labels_only(scan):
    predict(scan.url, bundle(0), "soft")
    before = scan.label_info("soft").digest
    predict(scan.url, bundle(1), "soft")
    assert scan.label_info("soft").digest != before
    with pytest.raises(ScanError, match="given by a person"):
        predict(scan.url, bundle(0), "human")


def test_another_organ_mask_is_another_prediction(scan, tmp_path, make_scan, tubes):
    """Normalisation follows from it, in the key as in the voxels."""
    image, mask = tubes(0, scan.shape_zyx)
    organ = np.zeros_like(mask)
    organ[:, :20] = 255
    marked = make_scan(tmp_path / "marked", "a", image, {"human": mask, "organ": organ})
    assert marked.info.digest == make_scan(tmp_path / "same", "a", image, {"human": mask}).info.digest
    with pytest.raises(ScanError, match="perfuse scan refresh"):
        prepare(marked.url, bundle(), "soft")
    organ_statistics.refresh(marked)
    keys = {prepare(s.url, bundle(), "soft").key for s in (marked, make_scan(tmp_path / "plain", "a", image, {}))}
    assert len(keys) == 2
    settings = forward().normalisation
    low, high = np.percentile(image[organ > 0], [settings.lower_percent, settings.upper_percent], method="inverted_cdf")
    assert bounds(Scan.open(marked.url), settings) == (low, high)


def test_voxel_size_outside_the_contract(tmp_path, make_scan, tubes):
    coarse = make_scan(tmp_path, "coarse", *[tubes(0, (16, 64, 64))[0]], {}, voxel=150.0)
    with pytest.raises(ContractError, match="10 to 100 µm"):
        prepare(coarse.url, bundle(), "soft")


def test_plan_counts_the_work(scan):
    planned = plan(scan, forward())
    assert planned.slabs == 6
    assert planned.scratch_bytes == 3 * 2 * math.prod(scan.shape_zyx)
    with pytest.raises(PlanError, match="GiB"):
        prepare(scan.url, bundle(), "soft", memory_bytes=1000)
    deeper = plan(scan, forward(axes=("z",))).peak_bytes
    assert planned.peak_bytes >= deeper


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(1, 3), min_size=1, max_size=5), st.integers(0, 2**32 - 1))
def test_members_count_alike_however_many_axes_they_see(axes, seed):
    rng = np.random.default_rng(seed)
    members = [[rng.integers(-LIMIT * ONE, LIMIT * ONE + 1, 50).astype(np.int16) for _ in range(n)] for n in axes]
    mean = np.mean([np.mean(member, axis=0) for member in members], axis=0) / ONE
    plain = 255 / (1 + np.exp(-mean))
    seen = [Seen.of(forward(axes=tuple("zyx"[: len(member)])), member) for member in members]
    fused = fuse(seen)
    assert fused.dtype == np.uint8
    assert np.abs(fused - plain).max() <= 0.5 + 255 / 4 / ONE
    np.testing.assert_array_equal(fused, fuse(reversed(seen)))


def test_an_ensemble_is_the_mean_of_its_members_logits(scan):
    first, second = bundle(0), bundle(1, axes=("y",))
    (info,) = predict(scan.url, Ensemble((first, second), 77), "mean")
    assert predict(scan.url, Ensemble((second, first), 77), "mean") == (info,), "the order does not matter"
    window = bounds(scan, forward().normalisation)
    values = normalise(np.asarray(scan.image[:]), window, forward().normalisation)
    members = []
    for made in (first, second):
        network = build(TINY)
        network.load_state_dict(made.weights)
        engine = Engine.of(network, made.contract.forward, "cpu", info.model.backend)
        axes = ["zyx".index(a) for a in made.contract.forward.axes]
        parts = [np.moveaxis(slab(engine, values, a, (0, scan.shape_zyx[a])), 0, a) for a in axes]
        members.append(Seen.of(made.contract.forward, parts))
    np.testing.assert_array_equal(scan.label("mean")[:], fuse(members))
    assert info.model.threshold == 77
    assert [p.name for p in Path(scan.url, "perfuse/scratch").iterdir()] == ["zarr.json"]
    with pytest.raises(ContractError, match="named twice"):
        prepare(scan.url, Ensemble((first, first), 77), "mean")


@pytest.mark.parametrize("shape", [(80, 70), (40, 64, 48), (3, 90, 50)])
def test_arrays_of_any_rank(shape):
    voxels = (np.random.default_rng(0).random(shape) * 5000).astype(np.uint16)
    network = build(TINY)
    (answer,) = probability_of_array(network, forward(), voxels)
    assert answer.shape == shape
    assert answer.dtype == np.uint8
    assert answer.std() > 0
