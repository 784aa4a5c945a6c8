""".venv/bin/python bench/gpu_inference.py: tiles a second of the engine on a GPU, beside the bare network at its best batch.

U-Nets on MaxViT-tiny and EfficientNetV2-S, tiles of 512², half of them overlapping, Gaussian, bf16, along three axes of a volume
in memory: tiles are cut, answered, blended and rounded to finished rows of logits; nothing is read or written. The bare network
answers random tensors that lie in the GPU's memory, at each of a few batch sizes. They are taken by turns; medians of rounds.
Needs torch, timm and segmentation-models-pytorch, and no Ray. --tiny tries the script where there is no GPU.
"""

import argparse
from statistics import median
from time import perf_counter

import numpy as np
import torch

from perfuse.contract import Forward, Network
from perfuse.geometry import tile_starts
from perfuse.inference.backends import usual
from perfuse.inference.engine import Engine
from perfuse.inference.scratch import SLAB
from perfuse.inference.slab import PLANES, rows_of_logits
from perfuse.models import best_device, build

ENCODERS = ("tu-maxvit_tiny_tf_512", "tu-tf_efficientnetv2_s")
ROUNDS = 3
BATCHES = (4, 8, 16, 32, 64)


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def bare(engine: Engine, batch: int, tiles: int) -> float:
    """Tiles a second of the network alone."""
    tile = engine.forward.tile
    images = torch.rand(batch, engine.forward.network.planes, tile, tile, device=engine.device)
    images = images.contiguous(memory_format=torch.channels_last)
    calls = max(1, tiles // batch)
    with torch.inference_mode():
        engine.network(images)
        wait(engine.device)
        begin = perf_counter()
        for _ in range(calls):
            engine.network(images)
        wait(engine.device)
    return calls * batch / (perf_counter() - begin)


def whole(engine: Engine, volume: np.ndarray, tiles: int) -> float:
    """Tiles a second of one slab along each axis, from voxels to finished rows."""
    begin = perf_counter()
    for axis in range(3):
        for _ in rows_of_logits(engine, lambda box: volume[box.slices], volume.shape, axis, (0, SLAB)):
            pass
    wait(engine.device)
    return tiles / (perf_counter() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=1024, help="Voxels along each edge.")
    parser.add_argument("--tiny", action="store_true")
    given = parser.parse_args()
    device = best_device()
    tile, size, encoders, batches = (
        (64, 128, ("tu-test_resnet",), (8,)) if given.tiny else (512, given.size, ENCODERS, BATCHES)
    )
    volume = np.random.default_rng(0).random((size, size, size), np.float32)
    for encoder in encoders:
        network = Network(encoder=encoder, encoder_weights=None, planes=1)
        forward = Forward(network=network, voxel_size_um=(10, 100), tile=tile, overlap=0.5, window="gaussian")
        backend = usual(forward.precision, device)
        engine = Engine.of(build(network).eval(), forward, device, backend)
        tiles = 3 * SLAB * len(tile_starts(size, tile, forward.stride)) ** 2
        print(f"{encoder}, {tile}², {backend} on {device}, {tiles} tiles of {size}³, {PLANES} a batch", flush=True)
        rates: dict[str, list[float]] = {}
        for _ in range(ROUNDS):
            for batch in batches:
                rates.setdefault(f"bare network, {batch} a batch", []).append(bare(engine, batch, tiles))
            rates.setdefault("engine", []).append(whole(engine, volume, tiles))
        best = max(median(found) for name, found in rates.items() if name != "engine")
        for name, found in rates.items():
            print(f"  {name:<28}{median(found):9.1f} tiles/s, {median(found) / best:6.3f} of the bare network's best")


if __name__ == "__main__":
    main()
