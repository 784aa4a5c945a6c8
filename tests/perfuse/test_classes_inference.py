"""A network of two classes answers as two networks would, to the bit; it is validated and read class by class."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from perfuse.bundle import Bundle, Ensemble
from perfuse.catalog import Scan
from perfuse.contract import Contract, Decision, Forward, Network
from perfuse.errors import RegistryError
from perfuse.geometry import Box
from perfuse.inference import plan, predict, prepare, probability, probability_of_array
from perfuse.inference.engine import Engine
from perfuse.inference.logits import Seen, fuse
from perfuse.inference.prediction import Worker
from perfuse.inference.scratch import SLAB
from perfuse.inference.slab import PLANES, rows_of_logits
from perfuse.models import build
from perfuse.models.panels import Panels
from perfuse.normalisation import bounds, normalise
from perfuse.recipes import load_recipe
from perfuse.registry import bundles, load_model
from perfuse.training import plan_job, validation

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = {"encoder": "tu-test_resnet", "encoder_weights": None, "decoder_channels": (16, 8, 8, 8, 8)}
CLASSES = ("glomerulus", "vessel")
PANELS = [
    Network(**SMALL, planes=3, classes=CLASSES),
    Network(**SMALL, planes=4, outputs="all", mosaic=True, classes=CLASSES),
    Network(**SMALL, planes=2, outputs="all", plane_stride=2, classes=CLASSES),
]


def bundle(network: Network, seed: int = 0, **decision: Any) -> Bundle:
    torch.manual_seed(seed)
    forward = Forward(network=network, voxel_size_um=(10, 100), axes=("z", "x"), tile=32, overlap=0, precision="fp32")
    return Bundle(Contract(forward=forward, decision=Decision(**decision)), build(network).state_dict(), {})


class Only(torch.nn.Module):
    """One class of a network of two."""

    def __init__(self, network: torch.nn.Module, number: int) -> None:
        super().__init__()
        self.network, self.number = network, number

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(x).chunk(2, 1)[self.number]


def alone(made: Bundle, number: int) -> Engine:
    network = build(made.contract.forward.network)
    network.load_state_dict(made.weights)
    forward = made.contract.forward
    one = forward.changed(network=forward.network.changed(classes=()))
    return Engine.of(Panels(Only(network.network, number), one.network), one, "cpu", "eager-fp32")


def slab(engine: Engine, values: np.ndarray, axis: int, planes: tuple[int, int]) -> np.ndarray:
    parts = [p for _, p in rows_of_logits(engine, lambda b: values[b.slices], values.shape, axis, planes)]
    return np.concatenate(parts, axis=2)


@pytest.fixture
def scan(tmp_path: Path, make_scan: Any, tubes: Any) -> Scan:
    return make_scan(tmp_path, "organ", tubes(0, (SLAB + 3, 40, 34))[0], {})


@pytest.mark.parametrize("network", PANELS)
def test_a_prediction_of_two_classes_is_two_plain_loops(scan: Scan, network: Network) -> None:
    made = bundle(network, threshold={"glomerulus": 50, "vessel": 200})
    prediction = prepare(scan.url, made, "soft")
    worker, rows = Worker(prediction, made, 1), prediction.slabs_to_do()
    assert list(worker.run(rows[:2])) == rows[:2]
    torn = next(
        p for p in sorted(Path(scan.url, prediction.members[0].scratch, "z-vessel", "c").rglob("*")) if p.is_file()
    )
    torn.write_bytes(torn.read_bytes()[:-3])
    assert prediction.slabs_to_do() == [rows[0], *rows[2:]]

    infos = predict(scan.url, made, "soft")
    assert [(i.name, i.model.class_name, i.model.threshold) for i in infos] == [
        ("soft-glomerulus", "glomerulus", 50),
        ("soft-vessel", "vessel", 200),
    ]
    forward = made.contract.forward
    values = normalise(np.asarray(scan.image[:]), bounds(scan, forward.normalisation), forward.normalisation)
    for number, info in enumerate(infos):
        engine = alone(made, number)
        axes = [np.moveaxis(slab(engine, values, a, (0, values.shape[a]))[0], 0, a) for a in (0, 2)]
        np.testing.assert_array_equal(scan.label(info.name)[:], fuse([Seen.of(made.contract.forward, axes)]))
    whole = probability(build_of(made), forward, scan, Box.whole(scan.shape_zyx))
    np.testing.assert_array_equal(whole, [scan.label(info.name)[:] for info in infos])
    assert not np.array_equal(*whole)


def build_of(made: Bundle) -> torch.nn.Module:
    network = build(made.contract.forward.network)
    network.load_state_dict(made.weights)
    return network


@settings(deadline=None, max_examples=10)
@given(st.tuples(*[st.integers(1, 70)] * 3), st.sampled_from([0, 1, 2]), st.integers(0, 9))
def test_each_class_lies_where_its_input_was(shape: tuple[int, int, int], axis: int, seed: int) -> None:
    class Planes(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([x, 2 - 3 * x], 1)

    values = np.random.default_rng(seed).random(shape, np.float32)
    network = Network(**SMALL, planes=2, outputs="all", classes=CLASSES)
    engine = Engine.of(Planes(), Forward(network=network, voxel_size_um=(10, 100), tile=32), "cpu", "eager-fp32")
    logits = slab(engine, values, axis, (0, shape[axis]))
    for found, expected in zip(np.moveaxis(logits, 1, 1 + axis), (values, 2 - 3 * values), strict=True):
        np.testing.assert_allclose(found, expected * 1024, rtol=0, atol=1.01)
    cuts = [(a, min(a + 2 * PLANES, shape[axis])) for a in range(0, shape[axis], 2 * PLANES)]
    np.testing.assert_array_equal(np.concatenate([slab(engine, values, axis, cut) for cut in cuts], axis=1), logits)


def test_a_plan_counts_each_class(scan: Scan) -> None:
    two = bundle(PANELS[0]).contract.forward
    one = two.changed(network=two.network.changed(classes=()))
    for name in ("scratch_bytes", "output_bytes", "shards"):
        assert getattr(plan(scan, two), name) == 2 * getattr(plan(scan, one), name)
    assert plan(scan, one).peak_bytes < plan(scan, two).peak_bytes < 2 * plan(scan, one).peak_bytes


def test_arrays_have_a_leading_axis_of_classes() -> None:
    voxels = (np.random.default_rng(0).random((80, 70)) * 5000).astype(np.uint16)
    made = bundle(PANELS[0])
    assert probability_of_array(build_of(made), made.contract.forward, voxels).shape == (2, 80, 70)


def test_a_bundle_comes_back_with_its_classes_and_an_old_one_loads(tmp_path: Path) -> None:
    two = bundle(PANELS[0], threshold={"glomerulus": 50, "vessel": 200})
    two.save(tmp_path / "two")
    again = Bundle.load(tmp_path / "two")
    assert (again.class_names, again.threshold) == (CLASSES, {"glomerulus": 50, "vessel": 200})
    assert again.digest() == two.digest()
    assert two.with_threshold({"glomerulus": 51, "vessel": 200}).digest() != two.digest()
    old = bundle(PANELS[0].changed(classes=()), threshold=77)
    old.save(tmp_path / "old")
    text = (tmp_path / "old" / "contract.json").read_text()
    assert "classes" not in text
    assert '"threshold": 77' in text
    assert Bundle.load(tmp_path / "old").class_names == ("",)


def test_models_answer_as_one_when_they_know_the_same_classes(monkeypatch: pytest.MonkeyPatch, scan: Scan) -> None:
    known = {
        "a": bundle(PANELS[0], 0, threshold={"glomerulus": 50, "vessel": 200}),
        "b": bundle(PANELS[2], 1, threshold=100),
        "c": bundle(PANELS[0].changed(classes=()), 2),
    }
    monkeypatch.setattr(bundles, "load_bundle", known.get)
    both = load_model(["a", "b"])
    assert both.threshold == {"glomerulus": 75, "vessel": 150}
    with pytest.raises(RegistryError, match="different classes"):
        load_model(["a", "c"])
    infos = predict(scan.url, both, "mean")
    assert [info.model.threshold for info in infos] == [75, 150]
    (other, _) = predict(scan.url, Ensemble((known["b"], known["a"]), both.threshold), "mean")
    assert other == infos[0]


class Grey(torch.nn.Module):
    """What is bright, and what is dim: right to the voxel; the second class too, unless it is told to err."""

    def __init__(self, dim: float) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([1000 * (x - 0.6), 1000 * (self.dim - x)], 1)


def test_each_class_is_validated_at_its_own_threshold_and_the_criterion_is_their_mean(
    tmp_path: Path, make_scan: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed, specimen in enumerate("av"):
        image = np.random.default_rng(seed).integers(0, 65535, (12, 40, 40)).astype(np.uint16)
        bright, dim = ((mask * 255).astype(np.uint8) for mask in (image > 0.6 * 65535, image < 0.3 * 65535))
        make_scan(tmp_path, specimen, image, {"human-bright": bright, "human-dim": dim})
    words = ["labels={bright: [human-bright], dim: [human-dim]}", "validation=v", "crop=32", "tile=32", "axes=z"]
    recipe = load_recipe("quickstart", [*words, "network.planes=1", "normalisation.divisor=65535"])
    job = plan_job(recipe, str(tmp_path), str(tmp_path / "runs"))
    asked = []
    real = validation.probability
    monkeypatch.setattr(validation, "probability", lambda *words: asked.append(1) or real(*words))
    right, pictures = validation.validate(job, Grey(0.3))
    assert len(asked) == 1, "one answer serves both classes"
    assert min(right["val_dice"], right["val_dice.dim"], right["val_score"]) > 0.999
    assert set(pictures) == {"v-bright", "v-dim"}
    wrong, _ = validation.validate(job, Grey(0.15))
    assert wrong["val_dice.bright"] == right["val_dice.bright"]
    assert 0.5 < wrong["val_dice.dim"] < 0.8
    for name in ("dice", "surface_dice", "threshold"):
        each = [wrong[f"val_{name}.{which}"] for which in ("bright", "dim")]
        assert wrong[f"val_{name}"] == pytest.approx(np.mean(each))
    assert wrong["val_score"] == wrong["val_surface_dice"]
