"""A scan of few planes of 10,000² is made and predicted in a process of its own: python wide_planes.py FOLDER DEPTH.

Prints as JSON the bytes that the planner answers, the bytes by which the process grew, and what stands in the label.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch

from perfuse import storage, volumes
from perfuse.bundle import Bundle
from perfuse.catalog import Scan, ScanInfo
from perfuse.contract import Contract, Forward, Network
from perfuse.inference import plan, predict
from perfuse.models import build

WIDTH = 10_000
CORNER = (3072, 7168)
"""Of the only shard that holds anything: 512² pixels, brighter from column to column."""


class Bright(torch.nn.Module):
    """Its logit is −4 where there is nothing, and more where it is brighter."""

    def __init__(self, in_channels: int, classes: int) -> None:
        super().__init__()
        self.bias = torch.nn.Parameter(torch.tensor(-4.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 8 * x + self.bias


def bundle() -> Bundle:
    network = Network(module="wide_planes:Bright")
    forward = Forward(network=network, voxel_size_um=(10, 100), tile=512, axes=("z",), precision="fp32")
    return Bundle(Contract(forward=forward), build(network).state_dict(), {})


def sparse_scan(folder: Path, depth: int, width: int) -> Scan:
    shape, size = (depth, width, width), (50.0, 50.0, 50.0)
    root = volumes.open_group(str(folder / f"{width}.ome.zarr"), "a")
    _, arrays = volumes.create_pyramid(root, "", volumes.pyramid_levels(shape, size), "uint16")
    if width == WIDTH:
        y, x = CORNER
        bright = np.arange(512, dtype=np.uint16) * 100
        arrays[0][:, y : y + 512, x : x + 512] = np.broadcast_to(bright, (depth, 512, 512))
    root.require_group("perfuse").create_array("histogram", data=np.ones(1 << 16, np.int64))
    about = {"id": "wide", "specimen": "wide", "donor": "wide", "organ": "phantom", "digest": "1", "intensity": {}}
    root.attrs["perfuse"] = ScanInfo(voxel_size_um=size, shape_zyx=shape, dtype="uint16", **about).model_dump(
        mode="json"
    )
    return Scan.open(storage.join(str(folder), f"{width}.ome.zarr"))


def resident(name: str) -> int:
    """VmRSS, or VmHWM, the most that it was, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))


def main(folder: Path, depth: int) -> None:
    torch.set_num_threads(2)
    small, scan, made = sparse_scan(folder, depth, 600), sparse_scan(folder, depth, WIDTH), bundle()
    predict(small.url, made, "soft")  # what compiling takes is not counted
    before = resident("VmRSS")
    predict(scan.url, made, "soft")
    grown, label, (y, x) = resident("VmHWM") - before, Scan.open(scan.url).label("soft"), CORNER
    told = {
        "planned": plan(scan, made.contract.forward).peak_bytes,
        "grown": grown,
        "line": label[depth - 1, y + 511, x - 1 : x + 513].tolist(),
        "corners": [int(label[0, 0, 0]), int(label[depth - 1, WIDTH - 1, WIDTH - 1])],
    }
    print(json.dumps(told))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main(Path(sys.argv[1]), int(sys.argv[2]))
