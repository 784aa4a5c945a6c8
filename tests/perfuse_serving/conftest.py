"""A bundle with an untrained network: serving must repeat inference, whatever the network answers."""

import pytest

from perfuse.bundle import Bundle
from perfuse.contract import Contract, Decision, Forward, Network


@pytest.fixture(scope="session")
def bundle() -> Bundle:
    """Three axes, panels of three planes, 25 to 75 µm; its threshold divides the probabilities of noise."""
    import torch

    from perfuse.models import build

    torch.manual_seed(0)
    network = Network(encoder="tu-test_resnet", encoder_weights=None, planes=3, decoder_channels=(16, 8, 8, 8, 8))
    forward = Forward(network=network, voxel_size_um=(25, 75), tile=64, precision="fp32")
    weights = build(network).state_dict()
    return Bundle(Contract(forward=forward, decision=Decision(threshold=125)), weights, {"key": "of a test"})
