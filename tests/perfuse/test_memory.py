"""Memory follows the slab and the block, never the volume."""

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import torch

from perfuse import scoring
from perfuse.bundle import Bundle
from perfuse.contract import Contract, Forward, Network
from perfuse.inference.engine import Engine
from perfuse.inference.preparing import prepare
from perfuse.models import build

SHAPES = ((64, 64, 64), (768, 64, 64), (3072, 64, 64))
"""The first warms up: what compiling takes is not counted. The second keeps all threads busy: a smaller one needs less."""


class Middle(torch.nn.Module):
    """A network that holds no memory: its logit is the middle plane."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, :1]


def test_prediction_and_scores_of_a_volume_four_times_as_deep(tmp_path: Path, make_scan: Any, tubes: Any) -> None:
    network = Network(encoder="tu-test_resnet", encoder_weights=None, decoder_channels=(16, 8, 8, 8, 8))
    forward = Forward(network=network, voxel_size_um=(10, 100), tile=64, axes=("z",), precision="fp32")
    bundle = Bundle(Contract(forward=forward), build(network).state_dict(), {})
    engine = Engine.of(Middle(), forward, "cpu", "eager-fp32")
    peaks = []
    for shape in SHAPES:
        image, mask = tubes(1, shape)
        scan = make_scan(tmp_path, f"k{shape[0]}", image, {"human": mask})
        del image, mask
        tracemalloc.start()
        prediction = prepare(scan.url, bundle, "soft")
        assert list(prediction.run_slabs(prediction.slabs(), engine)) == prediction.slabs()
        for row in prediction.shards_to_do():
            prediction.run_fuse(row)
        prediction.finish(bundle)
        predicted = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        scoring.evaluate(scan, "soft", "human", 128)
        scoring.tune([scan], "soft", "human")
        peaks.append((predicted, tracemalloc.get_traced_memory()[1]))
        tracemalloc.stop()
    _, small, large = np.array(peaks)
    assert (large < 1.5 * small).all(), f"bytes at {SHAPES}: {peaks}"
