"""What stands in front of a network: the same for training, inference and serving, by plain formulas."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from perfuse.contract import Network, Standardisation
from perfuse.models import build
from perfuse.models.panels import Panels, as_picture, as_planes, standardised

pytestmark = pytest.mark.usefixtures("one_thread")

ALL = {"encoder": "resnet18", "encoder_weights": None, "decoder_channels": (16, 16, 8, 8, 8)}


class Halves(torch.nn.Module):
    """Logits are half of what is seen, which it keeps."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen = x
        return x / 2


@settings(deadline=None, max_examples=25)
@given(st.sampled_from([1, 4, 9, 16]), st.integers(1, 7), st.integers(1, 7), st.integers(0, 99))
def test_a_mosaic_lays_planes_side_by_side_row_by_row(planes: int, height: int, width: int, seed: int) -> None:
    panels = torch.from_numpy(np.random.default_rng(seed).random((2, planes, height, width)))
    side = round(planes**0.5)
    expected = np.stack(
        [np.block([[p[r * side + c] for c in range(side)] for r in range(side)]) for p in panels.numpy()]
    )
    picture = as_picture(panels)
    np.testing.assert_array_equal(picture[:, 0], expected)
    assert torch.equal(as_planes(picture, planes), panels)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 99), st.floats(0.1, 100), st.floats(-50, 50))
def test_standardisation_is_a_plain_formula_of_each_panel(seed: int, scale: float, shift: float) -> None:
    panels = np.random.default_rng(seed).standard_normal((3, 2, 8, 8)) ** 3 * scale + shift
    for panel, answer in zip(
        panels, standardised(torch.from_numpy(panels), Standardisation(low=-1, high=2, slope=0.25)), strict=True
    ):
        z = (panel - panel.mean()) / panel.std()
        leaky = np.where(z > 2, 2 + 0.25 * (z - 2), np.where(z < -1, -1 + 0.25 * (z + 1), z))
        np.testing.assert_allclose(answer, leaky, rtol=1e-9, atol=1e-9)


def test_a_flat_panel_is_zero() -> None:
    assert not standardised(torch.full((1, 1, 8, 8), 0.7), Standardisation()).any()


def test_a_larger_input_is_brought_back() -> None:
    network = Halves()
    made = Panels(network, Network(**ALL, planes=4, outputs="all", mosaic=True, input_scale=2))
    ramp = torch.arange(16.0).reshape(1, 1, 4, 4).expand(1, 4, 4, 4) + 100 * torch.arange(4.0).reshape(1, 4, 1, 1)
    logits = made(ramp)
    assert network.seen.shape == (1, 1, 16, 16)
    torch.testing.assert_close(logits[..., 1:3, 1:3], ramp[..., 1:3, 1:3] / 2, rtol=0, atol=1e-4)
    flat = made(torch.full((1, 4, 4, 4), 3.0))
    torch.testing.assert_close(flat, torch.full((1, 4, 4, 4), 1.5), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("front", "size"),
    [
        ({"planes": 4, "outputs": "all", "mosaic": True, "standardise": Standardisation()}, 32),
        ({"planes": 3, "input_scale": 2.0}, 32),
        ({"planes": 3, "input_scale": 0.5}, 64),
        ({"planes": 2, "outputs": "all"}, 32),
    ],
)
def test_each_front_learns_and_keeps_the_names_of_the_weights(front, size: int) -> None:
    network = Network(**ALL, **front)
    made = build(network).train()
    logits = made(torch.rand(2, network.planes, size, size))
    assert logits.shape == (2, len(network.targets), size, size)
    logits.mean().backward()
    assert made.encoder.conv1.weight.grad.abs().sum() > 0
    assert made.encoder.conv1.in_channels == (1 if network.mosaic else network.planes)
    plain = build(Network(**ALL))
    assert list(made.state_dict()) == list(plain.state_dict()) == list(plain.network.state_dict())


def test_panels_show_every_other_plane_and_a_mosaic_segments_all() -> None:
    assert Network(planes=3, plane_stride=2).shown == (-2, 0, 2)
    assert Network(planes=3, plane_stride=2).targets == (0,)
    assert Network(planes=4, outputs="all").targets == (-2, -1, 0, 1)
