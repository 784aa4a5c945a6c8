"""The loop: batches in, checkpoints and metrics out. The same for one process and for each rank of many."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch

from perfuse.losses import combined
from perfuse.models import best_device, build, resolve_precision
from perfuse.recipes import Recipe
from perfuse.training import checkpoints
from perfuse.training.job import TrainingJob
from perfuse.training.optimisation import learning_rate, optimiser
from perfuse.training.validation import validate

Report = Callable[[int, dict[str, float], dict[str, bytes]], None]
"""Called with the steps taken so far, metrics, and PNG pictures by name."""

REPORT_EVERY = 10
"""Steps; the first of a run is reported too."""


def train(
    job: TrainingJob,
    batches: Callable[[int], Iterable[dict[str, Any]]],
    *,
    rank: int = 0,
    report: Report,
    wrap: Callable[[torch.nn.Module], torch.nn.Module] = lambda network: network,
) -> None:
    """Train until the recipe's last step, going on from the latest checkpoint.

    batches: given the first step, this rank's share of each step from there on, as `sampling.cut` makes it.
    report: called on every rank, at the same steps. wrap: how the network joins the other ranks (DDP).
    Only rank 0 writes checkpoints, validates and reports validation scores.
    """
    device = best_device()
    state = _State(job.recipe, checkpoints.load(job.folder), device)
    network = wrap(state.network)
    first = state.step + 1
    for batch in batches(state.step):
        losses = _step(network, state, batch, job.recipe, device)
        due = state.step % job.recipe.validate_every == 0 or state.step == job.recipe.steps
        pictures: dict[str, bytes] = {}
        if due and rank == 0:
            scores, pictures = validate(job, state.averaged)
            state.keep_best(scores["val_surface_dice"])
            losses |= scores
        if rank == 0 and (due or state.step % job.recipe.checkpoint_every == 0):
            checkpoints.save(job.folder, state.as_dict())
        if due or state.step == first or state.step % REPORT_EVERY == 0:
            report(state.step, {k: float(v) for k, v in losses.items()}, pictures)


class _State:
    """What a checkpoint holds: network, averaged network, optimiser, step, and the best averaged weights so far."""

    def __init__(self, recipe: Recipe, saved: dict[str, Any] | None, device: str) -> None:
        torch.manual_seed(recipe.seed)
        self.network = build(recipe.network, pretrained=saved is None)
        self.network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.averaged = build(recipe.network).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.averaged.load_state_dict(self.network.state_dict())
        self.optimiser = optimiser(recipe, self.network.parameters())
        self.step, self.best_step, self.best_score, self.best = 0, 0, -1.0, self._cpu(self.averaged)
        if saved is not None:
            self.network.load_state_dict(saved["network"])
            self.averaged.load_state_dict(saved["averaged"])
            self.optimiser.load_state_dict(saved["optimiser"])
            self.step, self.best_step = saved["step"], saved["best_step"]
            self.best_score, self.best = saved["best_score"], saved["best"]

    def as_dict(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "network": self._cpu(self.network),
            "averaged": self._cpu(self.averaged),
            "optimiser": self.optimiser.state_dict(),
            "best_step": self.best_step,
            "best_score": self.best_score,
            "best": self.best,
        }

    @staticmethod
    def _cpu(network: torch.nn.Module) -> dict[str, torch.Tensor]:
        return {k: v.detach().to("cpu", copy=True).contiguous() for k, v in network.state_dict().items()}

    def keep_best(self, score: float) -> None:
        if not score < self.best_score:
            self.best_score, self.best_step, self.best = score, self.step, self._cpu(self.averaged)

    @torch.no_grad()
    def average(self, decay: float) -> None:
        """Exponential moving average of weights; buffers are taken as they are. Short memory in the first steps."""
        decay = min(decay, (1 + self.step) / (10 + self.step))
        own, other = self.averaged.state_dict(), self.network.state_dict()
        for name, value in own.items():
            if value.dtype.is_floating_point:
                value.lerp_(other[name], 1 - decay)
            else:
                value.copy_(other[name])


def _placed(crops: Any, device: str) -> torch.Tensor:
    """An array, which may be read-only, or a tensor, on the device."""
    return (crops if isinstance(crops, torch.Tensor) else torch.from_numpy(np.array(crops))).to(device)


def _step(
    network: torch.nn.Module, state: _State, batch: dict[str, Any], recipe: Recipe, device: str
) -> dict[str, float]:
    image, target, known = (_placed(batch[name], device) for name in ("image", "target", "known"))
    rate = learning_rate(recipe, state.step)
    for group in state.optimiser.param_groups:
        group["lr"] = rate
    network.train()
    bf16 = resolve_precision("auto", device) == "bf16"
    with torch.autocast(device, torch.bfloat16, enabled=bf16):
        logits = network(image.contiguous(memory_format=torch.channels_last))
    logits = logits.float()
    loss, parts = combined(recipe.losses, logits, target, known)
    state.optimiser.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    if recipe.clip_value is not None:
        torch.nn.utils.clip_grad_value_(network.parameters(), recipe.clip_value)
    if recipe.clip_norm is not None:
        torch.nn.utils.clip_grad_norm_(network.parameters(), recipe.clip_norm)
    state.optimiser.step()
    state.step += 1
    state.average(recipe.ema_decay)
    return {"loss": loss.item(), "learning_rate": rate} | {f"{kind}_loss": part.item() for kind, part in parts.items()}
