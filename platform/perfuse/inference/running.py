"""Networks made ready to answer by a backend."""

import socket

import torch
from torch import Tensor, nn

from perfuse.errors import PerfuseError
from perfuse.inference.backends import Backend, why_not_compiled
from perfuse.models.folding import folded
from perfuse.models.panels import Panels

NUMBERS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class InNumbers(nn.Module):
    """Float32 outside, the numbers that a network is computed in inside."""

    def __init__(self, network: nn.Module, numbers: torch.dtype) -> None:
        super().__init__()
        self.network, self.numbers = network, numbers

    def forward(self, pictures: Tensor) -> Tensor:
        """Logits float32 of pictures float32."""
        answer: Tensor = self.network(pictures.to(self.numbers))
        return answer.float()


def network_on(network: nn.Module, backend: Backend, device: str) -> nn.Module:
    """A copy of a network, ready to answer: float32[n, planes, h, w] → float32[n, classes · targets, h, w].

    Its batch normalisations are folded, and it is compiled at its first answer where the backend says so, for that shape.
    What stands around the network, as standardisation and scaling, is never compiled and stays in float32. Raises
    PerfuseError on a machine that cannot compile, where the driver's could.
    """
    way, precision = backend.split("-")
    numbers = NUMBERS[precision]
    inner = network.network if isinstance(network, Panels) else network
    made: nn.Module = folded(inner).to(device, numbers, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if way == "compiled":
        lacking = why_not_compiled(device)
        if lacking is not None:
            raise PerfuseError(
                f"{socket.gethostname()} cannot compile a network, as the job's {backend} asks: {lacking}."
            )
        made.compile(dynamic=False)
    ready = InNumbers(made, numbers)
    return Panels(ready, network.settings) if isinstance(network, Panels) else ready
