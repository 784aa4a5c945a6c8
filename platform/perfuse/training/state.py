"""What a training carries from step to step, and a checkpoint from process to process."""

from typing import Any

import torch

from perfuse.bundle import weights_digest
from perfuse.errors import RecipeError
from perfuse.models import build, fit_weights, pretrained
from perfuse.models.panels import Panels
from perfuse.training.convergence import Course
from perfuse.training.initial import initial_weights
from perfuse.training.job import TrainingJob
from perfuse.training.optimisation import optimiser
from perfuse.training.recomputing import hold_fewer_activations

Weights = dict[str, torch.Tensor]


class State:
    """Network, averaged network, optimiser, step, place in the schedule, and the best averaged weights so far."""

    def __init__(self, job: TrainingJob, saved: dict[str, Any] | None, device: str, precision: str) -> None:
        recipe = job.recipe
        torch.manual_seed(recipe.seed)
        fresh = saved is None and recipe.init_from is None
        self.network = build(recipe.segmenter, pretrained=fresh)
        self.origin = _origin(self.network, recipe.encoder_digest) if fresh else {}
        if saved is None and recipe.init_from is not None:
            weights = initial_weights(job)
            fit_weights(self.network, weights, recipe.init_from)
            self.origin = {"init_from": recipe.init_from, "weights_sha256": weights_digest(weights)}
        self.network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.averaged = build(recipe.segmenter).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.averaged.load_state_dict(self.network.state_dict())
        if recipe.gradient_checkpointing:
            hold_fewer_activations(self.network)
        self.optimiser = optimiser(recipe, self.network.parameters())
        self.scaler = torch.amp.GradScaler(device, enabled=precision == "fp16")
        self.step, self.best_step, self.best_score, self.best = 0, 0, -1.0, on_cpu(self.averaged)
        self.course = Course(recipe, saved and saved["course"])
        self._recipe, self._judged_step = recipe, 0
        if saved is not None:
            self._restore(saved)

    def _restore(self, saved: dict[str, Any]) -> None:
        self.network.load_state_dict(saved["network"])
        self.averaged.load_state_dict(saved["averaged"])
        self.optimiser.load_state_dict(saved["optimiser"])
        self.scaler.load_state_dict(saved["scaler"])
        self.step, self.best_step, self.best_score = saved["step"], saved["best_step"], saved["best_score"]
        self.best, self.origin = saved["best"], saved["origin"]
        self._judged_step = saved["step"] if saved.get("judged", True) else 0

    @property
    def due(self) -> bool:
        """True after a step that is to be validated; the last one always is."""
        return self.course.finished or (self.step > 0 and self.step % self._recipe.validate_every == 0)

    @property
    def judged(self) -> bool:
        """True when the latest step has been: `keep_best` knows its score."""
        return self._judged_step == self.step

    def as_dict(self) -> dict[str, Any]:
        """All that `State` needs to go on: tensors on the CPU and plain values."""
        return {
            "step": self.step,
            "judged": self.judged,
            "course": self.course.as_dict(),
            "network": on_cpu(self.network),
            "averaged": on_cpu(self.averaged),
            "optimiser": self.optimiser.state_dict(),
            "scaler": self.scaler.state_dict(),
            "best_step": self.best_step,
            "best_score": self.best_score,
            "best": self.best,
            "origin": self.origin,
        }

    def keep_best(self, score: float) -> None:
        """Keep the averaged weights if none scored higher; of equals the later."""
        self._judged_step = self.step
        if not score < self.best_score:
            self.best_score, self.best_step, self.best = score, self.step, on_cpu(self.averaged)

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


def on_cpu(network: torch.nn.Module) -> Weights:
    """A copy of a network's state."""
    return {k: v.detach().to("cpu", copy=True).contiguous() for k, v in network.state_dict().items()}


def encoder_of(network: Panels, wish: str) -> torch.nn.Module:
    """The network's encoder; RecipeError when it has none and the recipe's wish needs one."""
    if network.encoder is None:
        raise RecipeError(
            f"{wish} needs a network with an encoder; {network.settings.module} has no attribute `encoder`."
        )
    return network.encoder


def _origin(network: Panels, pinned: str | None) -> dict[str, Any]:
    """Which published encoder a training starts from, for its lineage; RecipeError when the recipe pins another."""
    settings = network.settings
    if settings.module is not None or settings.encoder_weights is None:
        return {}
    digest = weights_digest(on_cpu(encoder_of(network, "encoder_weights")))
    if pinned not in (None, digest):
        raise RecipeError(
            f"The {settings.encoder_weights} weights of encoder {settings.encoder!r} from {pretrained.source(settings)} have the "
            f"digest {digest} for {settings.planes} planes; the recipe pins encoder_digest = {pinned}. Bring those that it "
            f"means, or take these: --set encoder_digest={digest}"
        )
    return {"encoder": settings.encoder, "encoder_weights": settings.encoder_weights, "encoder_sha256": digest}
