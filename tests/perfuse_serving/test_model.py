"""A served model answers as inference does."""

import numpy as np
import pytest
import torch

from perfuse.bundle import Bundle
from perfuse.contract import Contract, Decision
from perfuse.inference import probability_of_array
from perfuse.models import build
from perfuse_serving.images import RequestError
from perfuse_serving.model import Model, parse_voxel_size, parse_window

NOISE = np.random.default_rng(0).integers(0, 40_000, (40, 48, 56), np.uint16)


@pytest.fixture(scope="module")
def model(bundle: Bundle) -> Model:
    return Model(bundle)


@pytest.mark.parametrize(
    "voxels", [NOISE, NOISE[7], (NOISE[7] >> 8).astype(np.uint8)], ids=["volume", "slice", "8 bit"]
)
def test_probability_and_mask_are_those_of_inference(model: Model, bundle: Bundle, voxels: np.ndarray) -> None:
    network = build(bundle.contract.forward.network)
    network.load_state_dict(bundle.weights)
    (expected,) = probability_of_array(network, bundle.contract.forward, voxels)
    probability, mask = model.segment(voxels, "probability"), model.segment(voxels, "mask")
    assert (probability.dtype, mask.dtype) == (np.float32, np.uint8)
    np.testing.assert_array_equal(probability, expected.astype(np.float32) / np.float32(255))
    np.testing.assert_array_equal(mask, np.where(expected >= 125, 255, 0))
    assert 0 < np.count_nonzero(mask) < mask.size


def test_a_given_window_replaces_the_slice_s_own(model: Model) -> None:
    dim = NOISE[7] // 2
    expected = model.segment(dim, "probability", window=(0, 20_000))
    np.testing.assert_array_equal(model.segment(dim * 2, "probability", window=(0, 40_000)), expected)
    assert (model.segment(dim * 2, "probability", window=(0, 20_000)) != expected).any()


def test_a_voxel_size_outside_the_contract_is_refused(model: Model) -> None:
    model.segment(NOISE[7], "mask", voxel_size_um=(50, 50, 50))
    with pytest.raises(RequestError, match="25 to 75 µm only") as refusal:
        model.segment(NOISE[7], "mask", voxel_size_um=(100, 100, 100))
    assert refusal.value.status == 422


def test_about_tells_version_contract_and_digests(model: Model, bundle: Bundle) -> None:
    about = model.about()
    assert about["digest"] == bundle.digest()
    assert about["contract"] == bundle.contract.model_dump(mode="json")
    assert len(about["lineage_digest"]) == 64


def test_query_values() -> None:
    assert parse_voxel_size(None) is None
    assert parse_voxel_size("50") == (50, 50, 50)
    assert parse_voxel_size("100,50,50.5") == (100, 50, 50.5)
    assert parse_window(None, None) is None
    assert parse_window(0, 5) == (0, 5)


@pytest.mark.parametrize("text", ["", "big", "1,2", "1,2,3,4", "0", "-1", "nan", "inf"])
def test_a_wrong_voxel_size_is_refused(text: str) -> None:
    with pytest.raises(RequestError, match="voxel_size_um"):
        parse_voxel_size(text)


@pytest.mark.parametrize(("low", "high"), [(1, None), (None, 1), (2, 1), (1, 1), (float("nan"), 1), (0, float("inf"))])
def test_a_wrong_window_is_refused(low: float | None, high: float | None) -> None:
    with pytest.raises(RequestError, match="low below high"):
        parse_window(low, high)


def test_of_several_classes_one_is_asked_for(bundle: Bundle) -> None:
    forward = bundle.contract.forward
    network = forward.network.changed(classes=("glomerulus", "vessel"))
    torch.manual_seed(0)
    made = build(network)
    contract = Contract(
        forward=forward.changed(network=network), decision=Decision(threshold={"glomerulus": 120, "vessel": 130})
    )
    two = Model(Bundle(contract, made.state_dict(), {}))
    both = probability_of_array(made, contract.forward, NOISE[7])
    for soft, name, threshold in zip(both, ("glomerulus", "vessel"), (120, 130), strict=True):
        np.testing.assert_array_equal(
            two.segment(NOISE[7], "mask", class_name=name), np.where(soft >= threshold, 255, 0)
        )
    with pytest.raises(RequestError, match="say class=glomerulus or class=vessel"):
        two.segment(NOISE[7], "mask")
    with pytest.raises(RequestError, match="it has one; leave class out"):
        Model(bundle).segment(NOISE[7], "mask", class_name="vessel")
