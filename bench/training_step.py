"""One training step on this machine: what perfuse does by default against every precision and memory layout.

    python bench/training_step.py --size 512 --batch 8 --encoder resnet18 --rounds 5

Forward, loss, backward and optimiser, of a U-Net on tensors in memory; medians, the ways taken by turns.
"""

import argparse
import statistics
import time

import torch

from perfuse.contract import Network
from perfuse.losses import combined
from perfuse.models import best_device, build, resolve_precision
from perfuse.recipes import Loss

LOSSES = (Loss(kind="bce", weight=0.5), Loss(kind="dice", weight=0.5))
LAYOUTS = {"NCHW": torch.contiguous_format, "channels-last": torch.channels_last}


class Way:
    """A network in one precision and layout, with its data and optimiser."""

    def __init__(self, network: Network, precision: str, layout: str, batch: int, size: int, device: str) -> None:
        self.name, self.precision, self.device = f"{precision} {layout}", precision, device
        torch.manual_seed(0)
        self.network = build(network).train().to(device, memory_format=LAYOUTS[layout])
        self.optimiser = torch.optim.AdamW(self.network.parameters(), 1e-3)
        image = torch.rand(batch, network.planes, size, size, device=device)
        self.image = image.contiguous(memory_format=LAYOUTS[layout])
        self.target = (torch.rand(batch, 1, size, size, device=device) > 0.9).float()
        self.seconds: list[float] = []

    def step(self) -> None:
        """Take one step and note how long it took."""
        began = time.perf_counter()
        with torch.autocast(self.device, torch.bfloat16, enabled=self.precision == "bf16"):
            logits = self.network(self.image)
        loss, _ = combined(LOSSES, logits.float(), self.target, torch.ones_like(self.target))
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()
        loss.item()
        self.seconds.append(time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="resnet18")
    parser.add_argument("--planes", type=int, default=3)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    device = best_device()
    network = Network(encoder=given.encoder, encoder_weights=None, planes=given.planes)
    ways = [
        Way(network, precision, layout, given.batch, given.size, device)
        for precision in ("fp32", "bf16")
        for layout in LAYOUTS
    ]
    for number in range(given.rounds + 1):
        for way in ways:
            way.step()
            if number == 0:
                way.seconds.clear()
    medians = {way.name: statistics.median(way.seconds) for way in ways}
    for name, seconds in medians.items():
        print(f"{name:20} {seconds:8.3f} s a step, {given.batch / seconds:7.2f} crops/s")
    default = f"{resolve_precision('auto', device)} channels-last"
    ratio = medians[default] / min(medians.values())
    print(f"perfuse takes {default}: {ratio:.2f} × the best, on {device}, {torch.get_num_threads()} threads")


if __name__ == "__main__":
    main()
