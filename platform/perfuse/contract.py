"""What inference must repeat of training: the contract that travels with the weights."""

import math
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from perfuse.errors import ContractError
from perfuse.geometry import in_plane

Axis = Literal["z", "y", "x"]
AxisFusion = Literal["mean", "max"]
AxisWeight = Annotated[int, Field(ge=0, le=100)]


def _each_once(axes: tuple[Axis, ...]) -> tuple[Axis, ...]:
    if len(set(axes)) < len(axes):
        raise ValueError("name each axis once")
    return axes


Axes = Annotated[tuple[Axis, ...], Field(min_length=1), AfterValidator(_each_once)]
Blend = Literal["logit", "probability"]
Edge = Annotated[float, Field(gt=0)]
Numbers = Literal["auto", "fp32", "bf16", "fp16"]
"""What a network is computed in; auto: what the machine is fast at."""
Scale = Annotated[float, Field(ge=0.25, le=4)]
Turns = Annotated[Literal["none", "flips", "quarters", "all"], BeforeValidator(lambda v: "none" if v is None else v)]
Window = Literal["mean", "hann", "gaussian", "max"]
Level = Annotated[int, Field(ge=1, le=255)]
Threshold = Level | dict[str, Level]
"""Of 255: one for all classes, or each class's own, by its name."""


class Frozen(BaseModel):
    """A value that cannot change and knows all its keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def changed(self, **values: Any) -> Self:
        """The same with other values, checked as a new one is."""
        return type(self)(**(dict(self) | values))


class Finite(Frozen):
    """One whose numbers are numbers: neither infinite nor NaN."""

    model_config = ConfigDict(allow_inf_nan=False)


class Normalisation(Finite):
    """Intensities to 0 and 1: between two percentiles of the whole scan, or by a fixed divisor; tails are kept up to `clip` beyond."""

    divisor: float | None = Field(None, gt=0)
    """v / divisor, whatever the scan's percentiles are, as for uint16 that an instrument has calibrated. None: percentiles."""

    lower_percent: float = Field(0.5, ge=0, lt=100)
    upper_percent: float = Field(99.5, gt=0, le=100)
    clip: float = Field(1.0, ge=0)
    """How far beyond 0 and 1 values may go."""
    knee: float | None = Field(None, gt=0)
    """asinh(v / knee) instead of v: logarithmic above the knee, for fluorescence, where dim vessels are a factor brighter
    than their surroundings (Lupton, Gunn and Szalay, AJ 118, 1999). None: linear."""

    @model_validator(mode="after")
    def _ordered(self) -> "Normalisation":
        if self.lower_percent >= self.upper_percent:
            raise ValueError(f"lower_percent {self.lower_percent} must lie below upper_percent {self.upper_percent}")
        return self


class Standardisation(Finite):
    """Mean 0 and standard deviation 1 of each crop or tile, then a leaky clip: beyond low and high only `slope` is left."""

    low: float = Field(-3.0, lt=0)
    high: float = Field(5.0, gt=0)
    slope: float = Field(1e-3, ge=0, le=1)


class Network(Finite):
    """A segmentation network; inputs are panels of `planes` planes, outputs are logits of the middle one or of each."""

    architecture: str = "unet"
    encoder: str = "resnet18"
    encoder_weights: str | None = "imagenet"
    """Pretrained weights to start training from; never loaded for inference."""
    module: str | None = None
    """package.module:Class of a network of one's own, called with in_channels and classes, in place of architecture and encoder."""
    source_digest: str | None = None
    """Of the file of `module`; written when a training is planned. A network of another source is refused from then on."""
    encoder_size: int | None = Field(None, ge=32, multiple_of=32)
    """Pixels that an encoder with windows of fixed size is made for, as timm's img_size; None: what its name says."""
    planes: int = Field(1, ge=1, le=16)
    """Planes of a panel, as channels."""
    plane_stride: int = Field(1, ge=1, le=8)
    """From one plane of a panel to the next, in planes of the scan."""
    outputs: Literal["middle", "all"] = "middle"
    """Which planes of a panel are segmented; middle needs an odd number of them."""
    mosaic: bool = False
    """The planes of a panel lie side by side in one square picture of one channel, row by row; a square number of them."""
    input_scale: float = Field(1.0, ge=0.25, le=4)
    """The network sees its input this factor larger (bilinear); logits are brought back."""
    standardise: Standardisation | None = None
    """Of each crop or tile before the network; None: as it is normalised."""
    decoder_channels: tuple[int, ...] | None = Field(None, min_length=3, max_length=5)
    """From coarse to fine, one for each stage of the encoder that is used; None: the architecture's own."""
    classes: tuple[str, ...] = Field((), exclude_if=lambda names: not names)
    """Where there are several, their names; a pixel may be of any number of them. Follows from a recipe's labels."""

    @model_validator(mode="after")
    def _possible(self) -> "Network":
        if self.outputs == "middle" and self.planes % 2 == 0:
            raise ValueError(
                f"planes must be odd, so that there is a middle plane: 1, 3, 5 … 15; or any of 1 to 16 with outputs=all. Got {self.planes}"
            )
        if self.mosaic and (math.isqrt(self.planes) ** 2 != self.planes or self.outputs != "all"):
            raise ValueError(f"a mosaic needs 1, 4, 9 or 16 planes and outputs=all; got {self.planes}, {self.outputs}")
        return self

    @property
    def shown(self) -> tuple[int, ...]:
        """Planes of a panel, counted in planes of the scan from its middle one (of an even number: the later)."""
        return tuple((k - self.planes // 2) * self.plane_stride for k in range(self.planes))

    @property
    def targets(self) -> tuple[int, ...]:
        """Those of `shown` that are segmented, in the order of the logits of a class."""
        return self.shown if self.outputs == "all" else (0,)

    @property
    def class_names(self) -> tuple[str, ...]:
        """One for each class; that of an only class is empty."""
        return self.classes or ("",)

    @property
    def logits(self) -> int:
        """Channels of the answer: class by class, of each its targets."""
        return len(self.class_names) * len(self.targets)


def since(default: Any) -> Any:
    """A field that contracts of before do not know: left out where it has its default, so that their digests stay."""
    return Field(default, exclude_if=lambda value: value == default)


def check_axis_weights(weights: tuple[int, ...], axes: tuple[str, ...]) -> None:
    """ValueError unless there are none, or one for each axis and one of them above 0."""
    if weights and (len(weights) != len(axes) or not any(weights)):
        raise ValueError(f"axis_weights {weights}: one for each of {len(axes)} axes is needed, not all 0")


def check_scales(scales: tuple[float, ...], tile: int) -> None:
    """ValueError unless tiles can be seen at these sizes."""
    if not scales or len(set(scales)) < len(scales):
        raise ValueError(f"scales {scales}: name each size once, 1 for the tile as it is")
    for scale in scales:
        if (tile * scale) % 32:
            raise ValueError(f"scales: {scale:g} × tile {tile} = {tile * scale:g} pixels; a multiple of 32 is needed")


class Forward(Finite):
    """All that decides the logits, besides the weights."""

    network: Network
    normalisation: Normalisation = Normalisation()
    voxel_size_um: tuple[float, float]
    """The finest and the coarsest in-plane voxel size that the model may be used on."""
    axes: Axes = ("z", "y", "x")
    """Axes along which planes are segmented; logits are averaged over them."""
    tile: int = Field(256, ge=32, multiple_of=32)
    overlap: float = Field(0.25, ge=0, le=0.75)
    """Share of a tile that it has in common with the next."""
    window: Window = "hann"
    """Weights by which overlapping tiles are blended; max: the largest of them counts."""
    blend: Blend = since("logit")
    """What views, tiles and axes are blended in."""
    turns: Turns = since("none")
    """A tile is seen mirrored along rows and columns (flips, 4 views), in four quarter turns, or in all 8 ways; the mean counts."""
    scales: tuple[Scale, ...] = since((1.0,))
    """How many times as large a tile is seen (bilinear), each size in all turns; logits are brought back and averaged."""
    axis_weights: tuple[AxisWeight, ...] = since(())
    """How much each of `axes` counts; empty: alike."""
    axis_fusion: AxisFusion = since("mean")
    """How the answers along several axes become one."""
    resample_um: Edge | None = since(None)
    """Edge, µm, of the voxels to which a scan is resized before the network sees it (trilinear), and the answer back; None: its own."""
    level: int = since(0)
    """Of the scan's pyramid, whose voxels are seen as they are stored, and the answer brought back; above 0 for a preview alone."""
    skip_background: bool = since(False)
    """Tiles are not seen by the network, for they are background, whose chunks all lie outside the organ, or are of one intensity."""
    precision: Numbers = "auto"
    """auto: the driver chooses what the machine is fast at, once per job, and records it; fp16 needs a GPU."""

    @model_validator(mode="after")
    def _consistent(self) -> "Forward":
        check_axis_weights(self.axis_weights, self.axes)
        check_scales(self.scales, self.tile)
        return self

    @property
    def stride(self) -> int:
        """Pixels between the starts of neighbouring tiles: a multiple of 16."""
        return max(16, int(self.tile * (1 - self.overlap)) // 16 * 16)

    def check_voxel_size(self, voxel_size_um: tuple[float, float, float], scan: str) -> None:
        """Raise ContractError when a scan's pixels, along any axis of the contract, lie outside the allowed range."""
        fault = self.refusal(voxel_size_um)
        if fault:
            raise ContractError(
                f"Scan {scan} {fault}. Use a model trained at this scale, or let it see the scan at an allowed voxel size "
                "(--set resample_um=…)."
            )

    def refusal(self, voxel_size_um: tuple[float, float, float]) -> str:
        """What is wrong with a scan of such voxels, along the first axis of the contract that does not allow them; empty: nothing."""
        low, high = self.voxel_size_um
        seen = voxel_size_um if self.resample_um is None else (self.resample_um,) * 3
        for axis in self.axes:
            if not all(low * (1 - 1e-6) <= s <= high * (1 + 1e-6) for s in in_plane(seen, axis)):
                voxel = " × ".join(f"{s:g}" for s in seen)
                return (
                    f"{'has' if self.resample_um is None else 'would be seen at'} voxels of {voxel} µm (z, y, x); along axis "
                    f"{axis} the model allows pixels of {low:g} to {high:g} µm only"
                )
        return ""


class Fusion(Finite):
    """How several members answer as one."""

    average: Blend | None = None
    """What is averaged; None: what the members blend in, if it is one for all, else logits."""
    weights: tuple[Annotated[int, Field(ge=0, le=1000)], ...] = ()
    """How much each member counts; empty: alike."""
    temperatures: tuple[Annotated[float, Field(gt=0)], ...] = ()
    """By what each member's logits are divided, where logits are averaged; empty: 1."""

    @model_validator(mode="after")
    def _some_count(self) -> "Fusion":
        if self.weights and not any(self.weights):
            raise ValueError("weights: at least one must be above 0")
        return self


class Decision(Frozen):
    """How probabilities become masks."""

    threshold: Threshold = 128
    """A voxel is of a class when its uint8 probability is at least this: p ≥ t means v ≥ ⌈255·t⌉."""


def read_by(threshold: Threshold, class_name: str) -> int:
    """The threshold of a class."""
    return threshold if isinstance(threshold, int) else threshold[class_name]


def said(threshold: Threshold) -> str:
    """A threshold for people, as probability: `threshold 0.500`, or of each class."""
    if isinstance(threshold, int):
        return f"threshold {threshold / 255:.3f}"
    return "thresholds " + ", ".join(f"{name} {value / 255:.3f}" for name, value in threshold.items())


def of_class(name: str, class_name: str) -> str:
    """What the part of a class is called, of a label or an array of all classes: NAME-CLASS; NAME for an only class."""
    return f"{name}-{class_name}" if class_name else name


def threshold_of(probability: float) -> int:
    """The threshold, of 255, that a probability means."""
    return math.ceil(255 * probability - 1e-9)


class Contract(Frozen):
    """What inference must repeat, and how its result is read."""

    forward: Forward
    decision: Decision = Decision()

    @model_validator(mode="after")
    def _of_its_classes(self) -> "Contract":
        threshold, classes = self.decision.threshold, self.forward.network.classes
        if isinstance(threshold, dict) and set(threshold) != set(classes):
            raise ValueError(
                f"thresholds of {', '.join(threshold)}; the classes are {', '.join(classes) or 'one only'}"
            )
        return self
