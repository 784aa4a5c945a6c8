"""A network that answers batches of pictures, several at once.

On CPUs one core computes a batch, while others compute other batches: its bits do not depend on how many cores there are, and
no core waits for another within a layer.
"""

from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from perfuse.contract import Forward
from perfuse.errors import ContractError
from perfuse.inference import views
from perfuse.inference.backends import Backend
from perfuse.models import keep_freed_memory
from perfuse.parallel import in_order

if TYPE_CHECKING:
    import torch

Images = npt.NDArray[np.float32]
Fixed = npt.NDArray[np.int16]

MOST_STREAMS = 8
"""Batches that a process computes at once, at most, for each holds a network's activations. More cores take more processes."""

PICTURES = {"fp32": 2, "bf16": 4, "fp16": 4}
"""Of a batch, that a core computes at a time, by the numbers: more are hardly faster there, and hold more activations."""


@dataclass(frozen=True)
class Engine:
    """A network that is ready to answer: on its device, by its backend."""

    network: "torch.nn.Module"
    forward: Forward
    device: str
    backend: Backend
    streams: int = 1
    """Batches that are computed at once."""

    @classmethod
    def of(
        cls, network: "torch.nn.Module", forward: Forward, device: str, backend: Backend, threads: int | None = None
    ) -> "Engine":
        """Of a copy of a network, which stays as it is. threads: of the CPUs, which it may use; None: as many as torch does."""
        import torch

        from perfuse.inference.running import network_on

        if device == "cpu":
            keep_freed_memory()
        streams = min(threads or torch.get_num_threads(), MOST_STREAMS) if device == "cpu" else 1
        return cls(network_on(network, backend, device), forward, device, backend, streams)

    @property
    def pictures(self) -> int:
        """Of a batch, that a CPU's core computes at a time."""
        return PICTURES[self.backend.partition("-")[2]]

    def logits(self, images: Images) -> Fixed:
        """Fixed point [n, classes · targets, h, w] of float32 images [n, planes, h, w], averaged over the contract's views.

        Raises ContractError where the network answers with something that is no number.
        """
        (answer,) = self.all_logits([lambda: images])
        return answer

    def all_logits(self, batches: Iterable[Callable[[], Images]]) -> Generator[Fixed]:
        """`logits` of batches in their order, `streams` at once; each is made by whoever computes it."""
        import torch

        before = torch.get_num_threads()
        try:
            yield from in_order(lambda made: self._logits(made()), batches, threads=self.streams, waiting=self.streams)
        finally:
            torch.set_num_threads(before)

    def _logits(self, images: Images) -> Fixed:
        import torch

        if self.device == "cpu":
            torch.set_num_threads(1)  # of the thread that says it, and of those that begin later
        with torch.inference_mode():
            batch = torch.from_numpy(images).to(self.device).contiguous(memory_format=torch.channels_last)
            parts = torch.split(batch, self.pictures) if self.device == "cpu" else (batch,)
            return np.concatenate([views.answer(self._numbers, part, self.forward).cpu().numpy() for part in parts])

    def _numbers(self, batch: "torch.Tensor") -> "torch.Tensor":
        answer: torch.Tensor = self.network(batch)
        if answer.amin().isnan():
            raise ContractError(
                f"The network's logits are no numbers (NaN), computed by {self.backend}. Its weights do not suit that "
                "precision, or are damaged: write precision: fp32 into its contract, or train it anew."
            )
        return answer
