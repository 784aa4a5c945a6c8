"""Networks that segment every plane they are shown: each plane is the mean of all panels that show it, to the bit."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from perfuse.contract import Forward, Network
from perfuse.inference import probability_of_array
from perfuse.inference.engine import Engine
from perfuse.inference.logits import LIMIT, ONE, divide, window
from perfuse.inference.slab import PLANES, rows_of_logits
from perfuse.models import build

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = {"encoder": "resnet18", "encoder_weights": None, "decoder_channels": (16, 8, 8, 8, 8)}
MOSAIC = Network(**SMALL, planes=4, outputs="all", mosaic=True)
STRIDED = Network(**SMALL, planes=3, plane_stride=2)
ALL_STRIDED = Network(**SMALL, planes=4, plane_stride=2, outputs="all")


class Weighted(torch.nn.Module):
    """The logit of a panel's k-th plane is (k + 1) · that plane; with one output, of the middle plane."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.network.outputs == "middle":
            half = self.network.planes // 2
            return x[:, half : half + 1] + 2 * x[:, :1] + 3 * x[:, -1:]
        return x * torch.arange(1.0, x.shape[1] + 1).reshape(1, -1, 1, 1)


def engine(network: Network, module: torch.nn.Module, **about) -> Engine:
    made = Forward(network=network, voxel_size_um=(10, 100), tile=32, **about)
    return Engine.of(module, made, "cpu", "eager-fp32")


def slab(made: Engine, values: np.ndarray, axis: int, planes: tuple[int, int]) -> np.ndarray:
    parts = [p for _, p in rows_of_logits(made, lambda b: values[b.slices], values.shape, axis, planes)]
    return np.concatenate(parts, axis=2)[0]


@settings(deadline=None, max_examples=20)
@given(
    st.tuples(*[st.integers(1, 45)] * 3),
    st.sampled_from([0, 1, 2]),
    st.sampled_from([MOSAIC, ALL_STRIDED]),
    st.integers(0, 9),
)
def test_a_plane_is_the_mean_of_all_panels_that_show_it(shape, axis, network, seed) -> None:
    values = np.random.default_rng(seed).random(shape, np.float32)
    logits = np.moveaxis(slab(engine(network, Weighted(network)), values, axis, (0, shape[axis])), 0, axis)
    expected = sum(np.rint((k + 1) * values * ONE) for k in range(4)) / 4
    np.testing.assert_allclose(logits, expected, rtol=0, atol=0.5)


@settings(deadline=None, max_examples=20)
@given(st.tuples(*[st.integers(1, 45)] * 3), st.sampled_from([0, 1, 2]), st.integers(0, 9))
def test_a_panel_shows_every_other_plane_and_repeats_the_ends(shape, axis, seed) -> None:
    values = np.random.default_rng(seed).random(shape, np.float32)
    logits = np.moveaxis(slab(engine(STRIDED, Weighted(STRIDED)), values, axis, (0, shape[axis])), 0, axis)
    at = np.arange(shape[axis])
    before, after = (np.take(values, np.clip(at + n, 0, shape[axis] - 1), axis) for n in (-2, 2))
    np.testing.assert_allclose(logits, (values + 2 * before + 3 * after) * ONE, rtol=0, atol=0.51)


@pytest.mark.parametrize("network", [MOSAIC, STRIDED, ALL_STRIDED])
@pytest.mark.parametrize("axis", [0, 2])
def test_bits_do_not_depend_on_slabs(network: Network, axis: int) -> None:
    values = np.random.default_rng(1).random((27, 34, 27), np.float32)
    torch.manual_seed(0)
    made, depth = engine(network, build(network), overlap=0), values.shape[axis]
    whole = slab(made, values, axis, (0, depth))
    for planes in (PLANES, 2 * PLANES):
        cuts = [(a, min(a + planes, depth)) for a in range(0, depth, planes)]
        np.testing.assert_array_equal(np.concatenate([slab(made, values, axis, cut) for cut in cuts]), whole)


def test_a_mosaic_of_sixteen_does_not_overflow() -> None:
    network = Network(**SMALL, planes=16, outputs="all", mosaic=True)

    class Sure(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.full_like(x, 100.0)

    made = engine(network, Sure(), overlap=0.75)
    logits = slab(made, np.zeros((8, 96, 96), np.float32), 0, (0, 8))
    assert (logits == LIMIT * ONE).all()
    most = 16 * LIMIT * ONE * int(window("hann", 256).reshape(4, 64, 4, 64).sum((0, 2)).max())
    assert divide(np.array([most], np.int32), np.array([most // (LIMIT * ONE)], np.int32)) == LIMIT * ONE


def test_an_array_thinner_than_a_panel_is_segmented() -> None:
    voxels = (np.random.default_rng(0).random((2, 40, 40)) * 5000).astype(np.uint16)
    made = Forward(network=MOSAIC, voxel_size_um=(10, 100), tile=32)
    assert probability_of_array(build(MOSAIC), made, voxels).shape == (1, *voxels.shape)
