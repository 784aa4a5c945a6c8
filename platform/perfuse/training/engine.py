"""The loop: batches in, checkpoints and metrics out. The same for one process and for each rank of many."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from itertools import islice
from typing import Any

import numpy as np
import torch

from perfuse.augmentation import augment
from perfuse.errors import RecipeError
from perfuse.losses import combined, sizes
from perfuse.models import Precision, best_device, check_logits, check_size, keep_freed_memory, resolve_precision
from perfuse.recipes import Recipe
from perfuse.training import checkpoints
from perfuse.training.job import TrainingJob
from perfuse.training.optimisation import learning_rate
from perfuse.training.pace import Pace
from perfuse.training.recomputing import put_back, statistics, statistics_held
from perfuse.training.state import State, encoder_of
from perfuse.training.validation import validate

Report = Callable[[int, dict[str, float], dict[str, bytes]], None]
"""Called with the steps taken so far, metrics, and PNG pictures by name."""
Batch = dict[str, Any]
Crops = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Image, target and known, as the network and the losses see them."""
Metrics = dict[str, torch.Tensor | float]

REPORT_EVERY = 10
"""Steps; the first of a run is reported too."""
AUTOCAST = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def train(
    job: TrainingJob,
    batches: Callable[[int], Iterable[Batch]],
    *,
    rank: int = 0,
    world: int = 1,
    report: Report,
    stop: Callable[[], bool] = lambda: False,
    wrap: Callable[[torch.nn.Module], torch.nn.Module] = lambda network: network,
) -> None:
    """Train to the end of the schedule, going on from the latest checkpoint; or until `stop` says so, with a checkpoint.

    batches: given the number of the first, this rank's share of each batch from there on, as `sampling.cut` makes it;
    `accumulate` of them are a step. report: called on every rank, at the same steps. stop: asked after every step.
    wrap: how the network joins the other ranks (DDP). Only rank 0 writes checkpoints, validates and reports validation
    scores; where no donor selects, the last weights are kept. Raises RecipeError for what the network, its encoder or this
    machine cannot do. A validation that was broken off, or that there was no time for, is made up for when the job goes on.
    """
    recipe, device = job.recipe, best_device()
    if device == "cpu":
        keep_freed_memory()
    precision = resolve_precision(recipe.precision, device)
    check_size(recipe.segmenter, (recipe.crop, recipe.tile))
    check_logits(recipe.segmenter, recipe.crop)
    state = State(job, checkpoints.load(job.folder), device, precision)
    network = wrap(state.network)
    learn = _Step(state, torch.compile(network) if recipe.compiled else network, recipe, device, precision, world)  # type: ignore[arg-type]

    def save() -> None:
        checkpoints.save(job.folder, state.as_dict() | {"donors": job.donors()})

    def judge(losses: Metrics) -> None:
        scores, pictures = validate(job, state.averaged) if rank == 0 and job.validation else ({}, {})
        if rank == 0:
            state.keep_best(scores.get("val_score", math.inf))
            save()
        report(state.step, {k: float(v) for k, v in {**losses, **scores}.items()}, pictures)

    if state.due and not state.judged:
        judge({})
    if state.course.finished:
        return
    first = state.step + 1
    pace = Pace(recipe.batch * recipe.accumulate)
    for step in _steps(pace.batches(batches(state.step * recipe.accumulate)), recipe.accumulate):
        try:
            losses = learn(step)
        except torch._dynamo.exc.TorchDynamoException as error:
            raise RecipeError(
                f"compiled = true: this network cannot be compiled here ({type(error).__name__}: "
                f"{' '.join(str(error).split()[:30])}). Compiling needs a C++ compiler. Use --set compiled=false"
            ) from error
        pace.step()
        stopping = stop()
        if rank == 0 and (state.due or stopping or state.step % recipe.checkpoint_every == 0):
            save()  # before validating too: that takes longer than a spot machine waits
        if state.due and not stopping:
            judge({**losses, **pace.speed()})
        elif state.step == first or state.step % REPORT_EVERY == 0:
            report(state.step, {k: float(v) for k, v in (losses | pace.speed()).items()}, {})
        if stopping or state.course.finished:
            return


def _steps(batches: Iterable[Batch], accumulate: int) -> Iterator[list[Batch]]:
    source = iter(batches)
    while step := list(islice(source, accumulate)):
        yield step


def _placed(crops: Any, device: str) -> torch.Tensor:
    """An array, which may be read-only, or a tensor, on the device."""
    return (crops if isinstance(crops, torch.Tensor) else torch.from_numpy(np.array(crops))).to(device)


class _Step:
    """One step of the optimiser over the batches that belong to it."""

    def __init__(
        self, state: State, network: torch.nn.Module, recipe: Recipe, device: str, precision: Precision, world: int
    ) -> None:
        self.state, self.network, self.recipe = state, network, recipe
        self.device, self.precision = device, precision
        self.world = world

    def __call__(self, batches: list[Batch]) -> Metrics:
        """Learn from the batches; returns the losses of the step, of all ranks, which are only waited for when they are looked at."""
        recipe, state = self.recipe, self.state
        rate = learning_rate(recipe, state.course.position)
        for group in state.optimiser.param_groups:
            group["lr"] = rate
        frozen = state.step < recipe.frozen_encoder_steps
        self.network.train()
        if frozen:
            encoder_of(state.network, "frozen_encoder_steps").eval()
        state.optimiser.zero_grad(set_to_none=True)
        before = statistics(state.network) if state.scaler.is_enabled() else []
        varied = [self._varied(batch) for batch in batches]
        found = []
        for number, (crops, shares) in enumerate(zip(varied, self._shares(varied), strict=True)):
            last = number == len(batches) - 1
            with nullcontext() if last else getattr(self.network, "no_sync", nullcontext)():
                found.append(self._backward(crops, shares))
        self._update(before, frozen=frozen)
        values = torch.stack([torch.stack(list(each.values())) for each in found]).sum(0)
        losses = dict(zip(found[0], self._of_all_ranks(values) / self.world, strict=True))
        state.course.step(losses["loss"])
        return {**losses, "learning_rate": rate}

    def _of_all_ranks(self, values: torch.Tensor) -> torch.Tensor:
        """Their sum, in place."""
        if self.world > 1:
            torch.distributed.all_reduce(values)
        return values

    def _shares(self, batches: list[Crops]) -> list[torch.Tensor | None]:
        """What the terms of each batch count for, in the mean of ranks: their shares of the sizes of the whole step."""
        if self.world == len(batches) == 1:
            return [None]
        each = torch.stack([sizes(self.recipe.losses, *crops[1:], len(self.recipe.classes)) for crops in batches])
        return list(each * (self.world / self._of_all_ranks(each.sum(0)).clamp(min=1)))

    def _varied(self, batch: Batch) -> Crops:
        """The crops of a batch, on the device, augmented."""
        image, target, known = (_placed(batch[name], self.device) for name in ("image", "target", "known"))
        recipe = self.recipe
        return augment(
            image,
            target,
            known,
            recipe.augmentation,
            recipe.seed,
            int(batch["step"]),
            batch["position"],
            classes=len(recipe.classes),
            standardised=recipe.network.standardise is not None,
        )

    def _backward(self, crops: Crops, shares: torch.Tensor | None) -> dict[str, torch.Tensor]:
        """Add the gradients of one batch, and return its losses, both by its shares of the step."""
        recipe = self.recipe
        image, target, known = crops
        with torch.autocast(self.device, AUTOCAST[self.precision], enabled=self.precision != "fp32"):
            logits = self.network(image.contiguous(memory_format=torch.channels_last))
        loss, parts = combined(recipe.losses, logits.float(), target, known, len(recipe.classes), shares)
        weighted = self.state.scaler.scale(loss)
        with statistics_held(self.state.network) if recipe.gradient_checkpointing else nullcontext():
            weighted.backward()  # type: ignore[no-untyped-call]
        return {"loss": loss.detach()} | {f"{kind}_loss": part.detach() for kind, part in parts.items()}

    def _update(self, before: list[torch.Tensor], *, frozen: bool) -> None:
        """Take the step: gradients clipped by value, then by norm. A frozen encoder's are dropped, on all ranks alike.

        One of fp16 whose gradients are not finite changes no weights, statistics or averages; the next are scaled by half.
        """
        recipe, state = self.recipe, self.state
        state.scaler.unscale_(state.optimiser)
        if frozen:
            for parameter in encoder_of(state.network, "frozen_encoder_steps").parameters():
                parameter.grad = None
        if recipe.clip_value is not None:
            torch.nn.utils.clip_grad_value_(state.network.parameters(), recipe.clip_value)
        if recipe.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(state.network.parameters(), recipe.clip_norm)
        scale = state.scaler.get_scale()
        state.scaler.step(state.optimiser)
        state.scaler.update()
        state.step += 1
        if state.scaler.get_scale() >= scale:
            state.average(recipe.ema_decay)
        else:
            put_back(state.network, before)
