"""What a recipe is made of: typed, complete, and refused where it cannot work."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from perfuse.contract import (
    Axes,
    AxisFusion,
    AxisWeight,
    Blend,
    Edge,
    Finite,
    Forward,
    Network,
    Normalisation,
    Numbers,
    Scale,
    Turns,
    Window,
    check_axis_weights,
    check_scales,
    since,
)
from perfuse.recipes.sampling import Sampling

Criterion = Literal["best_surface_dice", "mean_surface_dice", "best_dice"]
Chance = Field(0.0, ge=0, le=1)
"""Probability with which a crop is varied so."""
Positive = Field(gt=0)
WINDOW = 0.1
"""Share of all steps over whose mean it is judged whether the loss has converged."""


class Warp(Finite):
    """Shift, scale and rotation about the middle of a crop, in one resampling."""

    chance: float = Chance
    shift: float = Field(0.0, ge=0, le=0.5)
    """At most, in crops."""
    scale: tuple[float, float] = (1.0, 1.0)
    """Things become larger by a factor between these: 0.8 shows 50 µm pixels as 63 µm ones."""
    rotate: float = Field(0.0, ge=0, le=180)
    """Degrees, at most, either way."""

    @model_validator(mode="after")
    def _ordered(self) -> "Warp":
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale goes from the smaller factor to the larger, both above 0; got {self.scale}")
        return self


class Deformation(Finite):
    """A smooth displacement, in the same resampling as the warp: one of `kinds`, by turns."""

    chance: float = Chance
    kinds: tuple[Literal["elastic", "grid", "optical"], ...] = Field(("elastic", "grid", "optical"), min_length=1)
    strength: float = Field(0.05, gt=0, le=0.2)
    """The largest displacement, in crops; beyond a fifth, crops could fold."""


class Augmentation(Finite):
    """Random changes of a crop; each a pure function of seed, step and position in the batch."""

    flips: float = Field(0.5, ge=0, le=1)
    """Chance of each of: rows mirrored, columns mirrored, planes in the other order."""
    quarter_turns: float = Field(1.0, ge=0, le=1)
    """Chance of a turn by 0, 90, 180 or 270 degrees."""
    warp: Warp = Warp()
    deformation: Deformation = Deformation()
    brightness: float = Field(0.15, ge=0, le=1)
    """Brightness moves by up to this share of the contrast window."""
    contrast: float = Field(0.15, ge=0, le=1)
    """Contrast moves by up to this share, about the mean of the crop."""
    brightness_contrast_chance: float = Field(1.0, ge=0, le=1)
    gamma: float = Field(0.2, ge=0, le=3)
    """Gamma between 1 / (1 + g) and 1 + g."""
    gamma_chance: float = Field(1.0, ge=0, le=1)
    blur: tuple[Literal["gauss", "motion"], ...] = ()
    blur_chance: float = Chance
    sharpen_chance: float = Chance
    """Of an unsharp mask or of local contrast, by turns."""
    noise: float = Field(0.05, ge=0, le=1)
    """Standard deviation of added noise, at most: of the contrast window, or of the crop where the network standardises."""
    noise_chance: float = Field(1.0, ge=0, le=1)
    each_plane: bool = False
    """Every plane of a panel is changed in intensity on its own; else all alike."""


LOSS_SETTINGS: dict[str, tuple[str, ...]] = {
    "bce": (),
    "boundary_bce": ("boundary", "volumetric", "iso"),
    "dice": ("smooth",),
    "focal": ("alpha", "gamma"),
    "tversky": ("alpha", "beta", "smooth"),
    "boundary_dou": ("iso", "smooth"),
    "signed_distance": ("iso",),
    "surface_dice": ("smooth",),
}
"""Which fields of a `Loss` each kind takes, besides its weight."""


class Loss(Finite):
    """One term of the loss, on logits, over known pixels."""

    kind: Literal["bce", "boundary_bce", "dice", "focal", "tversky", "boundary_dou", "signed_distance", "surface_dice"]
    weight: float = Field(1.0, gt=0)
    boundary: float = Field(1.0, ge=0)
    """boundary_bce: pixels of the inner boundary weigh 1 + this."""
    volumetric: bool = False
    """boundary_bce: the boundary of the panel's planes as a volume; else of each plane."""
    iso: float = Field(0.5, gt=0, lt=1)
    """boundary_bce, boundary_dou, signed_distance: from this level on, a soft target lies within its boundary."""
    smooth: float = Field(1.0, ge=0)
    """dice, tversky, boundary_dou, surface_dice: added above and below, in pixels (surface_dice: in their area)."""
    gamma: float = Field(2.0, ge=0)
    """focal: exponent."""
    alpha: float = Field(0.5, ge=0, le=1)
    """tversky: weight of what is wrongly found. focal: weight of vessel; of the rest, 1 − this."""
    beta: float = Field(0.5, ge=0, le=1)
    """tversky: weight of what is missed."""

    @property
    def settings(self) -> dict[str, Any]:
        """The fields that this kind takes, besides its weight."""
        return {name: getattr(self, name) for name in LOSS_SETTINGS[self.kind]}

    @model_validator(mode="after")
    def _all_used(self) -> "Loss":
        taken = ("weight", *LOSS_SETTINGS[self.kind])
        for name, info in type(self).model_fields.items():
            if name not in ("kind", *taken) and getattr(self, name) != info.default:
                raise ValueError(
                    f"{self.kind} takes {', '.join(taken)}; {name} = {getattr(self, name)} changes nothing"
                )
        return self


class Phase(Finite):
    """A stretch of the learning rate's schedule."""

    kind: Literal["constant", "linear", "cosine"]
    share: float = Field(gt=0)
    """Of all steps; the shares of a schedule are brought to a sum of 1."""
    start: float = Field(1.0, ge=0)
    """Of the learning rate."""
    end: float = Field(1.0, ge=0)


Labels = Annotated[tuple[str, ...], Field(min_length=1)]
Classes = Annotated[dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")], Labels], Field(min_length=2)]


class Recipe(Finite):
    """All that decides a training, besides the voxels."""

    name: str
    labels: Annotated[Labels, Tag("list")] | Annotated[Classes, Tag("classes")] = Field(
        ("human",), discriminator=Discriminator(lambda labels: "classes" if isinstance(labels, Mapping) else "list")
    )
    """Labels in order of preference: each scan takes the first that it holds. Of several classes such a list for each, by its
    name: {vessel: [round1, human], glomerulus: [human-glomerulus]}. A scan may hold some of them only."""
    train: tuple[str, ...] = ()
    """Specimens to train on, or ids of single scans; empty: all labelled ones of other donors than validation and holdout."""
    validation: tuple[str, ...] = ()
    """Specimens, or ids of single scans, that choose checkpoint and threshold; empty: one labelled donor, the last by name."""
    holdout: tuple[str, ...] = ()
    """Specimens, or ids of scans, that nothing may see, with all else of their donors."""
    fold: str | None = Field(None, pattern=r"^[1-9]\d*/([1-9]\d*|all)$")
    """2/5: the second fifth of the densely labelled donors validates, stratified by organ; 2/all: the second donor alone."""
    within: float | None = Field(None, gt=0, lt=1)
    """Share of each densely labelled training scan that validates instead of other donors: the end of its longest axis, after
    a gap of a crop. For those who have one donor only: it tells little about others."""
    network: Network = Network()
    normalisation: Normalisation = Normalisation()
    axes: Axes = ("z", "y", "x")
    voxel_size_range: float = Field(1.5, ge=1)
    """Inference is allowed on pixels this factor finer or coarser than those trained on."""
    crop: int = Field(128, ge=32, multiple_of=32)
    sampling: Sampling = Sampling()
    augmentation: Augmentation = Augmentation()
    batch: int = Field(16, ge=1)
    accumulate: int = Field(1, ge=1)
    """Batches whose gradients are added up for one step of the optimiser; a step sees batch × accumulate crops."""
    steps: int = Field(1000, ge=1)
    validate_every: int = Field(200, ge=1)
    checkpoint_every: int = Field(50, ge=1)
    """Steps that a killed training may lose."""
    losses: tuple[Loss, ...] = Field((Loss(kind="bce", weight=0.5), Loss(kind="dice", weight=0.5)), min_length=1)
    optimiser: Literal["adamw", "radam", "sgd"] = "adamw"
    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(1e-2, ge=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    """sgd: with Nesterov's look ahead where it is not 0."""
    schedule: tuple[Phase, ...] = Field(
        (Phase(kind="linear", share=0.05, start=0.05), Phase(kind="cosine", share=0.95, end=0.01)), min_length=1
    )
    converged: float | None = Field(None, gt=0, lt=1)
    """A constant phase of the schedule ends when the mean loss of a tenth of `steps` surely does not lie by this share below the
    lowest tenth of the phase; the phases after it follow at once. None: phases take all their steps."""
    ema_decay: float = Field(0.98, ge=0, lt=1)
    clip_norm: float | None = Field(1.0, gt=0)
    clip_value: float | None = Field(None, gt=0)
    frozen_encoder_steps: int = Field(0, ge=0)
    """Steps at the beginning in which only the decoder learns."""
    precision: Numbers = "auto"
    """auto: bf16 where the machine multiplies it natively."""
    compiled: bool = False
    gradient_checkpointing: bool = False
    """Holds fewer activations, and computes them again: slower, for larger networks."""
    criterion: Criterion = "best_surface_dice"
    """What the kept checkpoint is best in, on the validation scans: at its best threshold, or the mean over 39 thresholds
    (0.025 … 0.975), which asks for robustness."""
    init_from: str | None = None
    """Weights to start from: a training's RUN, RUN@STEP, or a model's URI."""
    encoder_digest: str | None = Field(None, pattern="^[0-9a-f]{64}$")
    """Of the pretrained encoder that a training starts from, as a model's lineage says it (`origin.encoder_sha256`): with the
    first convolution for the network's planes. Others are refused; None: any are taken, and recorded."""
    seed: int = Field(0, ge=0)
    tile: int = Field(256, ge=32, multiple_of=32)
    overlap: float = Field(0.25, ge=0, le=0.75)
    window: Window = "hann"
    blend: Blend = "logit"
    turns: Turns = "none"
    scales: tuple[Scale, ...] = (1.0,)
    axis_weights: tuple[AxisWeight, ...] = since(())
    axis_fusion: AxisFusion = since("mean")
    resample_um: Edge | None = since(None)
    skip_background: bool = since(False)
    """From `tile` on: how a scan is seen at inference, as `contract.Forward` says."""

    @property
    def classes(self) -> dict[str, tuple[str, ...]]:
        """The labels of each class, by its name, in alphabetical order; an only class has no name."""
        return dict(sorted(self.labels.items())) if isinstance(self.labels, dict) else {"": self.labels}

    @property
    def segmenter(self) -> Network:
        """The network that is trained: `network`, for the recipe's classes."""
        return self.network.model_copy(update={"classes": tuple(filter(None, self.classes))})

    def forward(self, voxel_size_um: tuple[float, float]) -> Forward:
        """The forward contract of its network, for pixels between two edges in µm."""
        return Forward(
            network=self.segmenter,
            normalisation=self.normalisation,
            voxel_size_um=voxel_size_um,
            axes=self.axes,
            tile=self.tile,
            overlap=self.overlap,
            window=self.window,
            blend=self.blend,
            turns=self.turns,
            scales=self.scales,
            axis_weights=self.axis_weights,
            axis_fusion=self.axis_fusion,
            resample_um=self.resample_um,
            skip_background=self.skip_background,
        )

    def allowed(self, pixel_um: tuple[float, float]) -> tuple[float, float]:
        """Edges, µm, of the pixels that inference is allowed on, where these are the finest and the coarsest trained on."""
        return pixel_um[0] / self.voxel_size_range, pixel_um[1] * self.voxel_size_range

    @property
    def batches(self) -> int:
        """Of the whole training: `accumulate` for each step."""
        return self.steps * self.accumulate

    @model_validator(mode="after")
    def _possible(self) -> "Recipe":
        if self.network.classes:
            raise ValueError("network.classes follows from labels: {CLASS: [LABEL, …], …}; leave it out")
        if self.encoder_digest and (self.network.encoder_weights is None or self.network.module is not None):
            raise ValueError(
                "encoder_digest pins pretrained weights, and this network starts from none: name them by "
                "network.encoder_weights, or leave it out (--set encoder_digest=none)"
            )
        if sum(map(bool, (self.fold, self.within, self.validation))) > 1:
            raise ValueError("of fold, within and validation only one can say what validates")
        check_scales(self.scales, self.tile)
        check_axis_weights(self.axis_weights, self.axes)
        if self.sampling.axis_weights and len(self.sampling.axis_weights) != len(self.axes):
            raise ValueError(f"sampling.axis_weights needs one weight for each of the axes {', '.join(self.axes)}")
        longest = max((phase.share for phase in self.schedule if phase.kind == "constant"), default=0.0)
        if self.converged is not None and longest < 2 * WINDOW * sum(phase.share for phase in self.schedule):
            raise ValueError(
                "converged compares tenths of the steps in a constant phase, and the schedule has none of two tenths: e.g. "
                "schedule=[{kind: linear, share: 1, start: 0.05}, {kind: constant, share: 15}, {kind: cosine, share: 4, end: 0.01}]"
            )
        if any(loss.volumetric for loss in self.losses) and (self.network.outputs != "all" or self.network.planes == 1):
            raise ValueError("a volumetric loss needs several planes: network.outputs=all, and network.planes above 1")
        return self
