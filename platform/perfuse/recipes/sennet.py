"""Three leading systems of SenNet + HOA 2023 (blood vessels in HiP-CT kidneys), member by member.

A docstring says what is stated by the write-up or read from the published code; all else is ours. Rounds of pseudo-labels,
ensembles and views at inference belong to campaigns and predictions, not to recipes.
"""

from perfuse.contract import Network, Normalisation, Standardisation
from perfuse.recipes.sampling import Sampling
from perfuse.recipes.schema import Augmentation, Deformation, Loss, Phase, Recipe, Warp

ONE_CYCLE = (Phase(kind="cosine", share=0.3, start=1 / 25, end=1), Phase(kind="cosine", share=0.7, start=1, end=4e-6))
"""Smith and Topin 2019, "Super-convergence", with PyTorch's defaults: up from a 25th of the rate, down to 1 / 250,000."""


def sennet_3rd() -> Recipe:
    """3rd place, U-Net with SE-ResNeXt101: the member whose own score is stated (0.753 private, at threshold 0.2).

    Theirs: 0.1 % tails cut; crops of 512, side by side, along three axes, standardised each with a leaky clip; the warp,
    which shows 50 µm pixels as 63 µm ones, and chances of all changes; Dice; AdamW 1e-4, one cycle, 20 epochs, gradients
    clipped by value; probabilities are averaged over tiles and axes. With inputs of 384 and 512 pixels it gained 0.014: that
    is `scales=0.75,1`. Ours: batch 16, hence 72,000 steps for the 57,000 crops of kidney 1 and dense kidney 3; how far
    brightness, contrast and gamma move.
    """
    return Recipe(
        name="sennet_3rd",
        network=Network(encoder="se_resnext101_32x4d", standardise=Standardisation(low=-3, high=5, slope=1e-3)),
        normalisation=Normalisation(lower_percent=0.1, upper_percent=99.9, clip=0),
        crop=512,
        sampling=Sampling(order="grid"),
        augmentation=Augmentation(
            flips=0.5,
            quarter_turns=0.5,
            warp=Warp(chance=0.95, shift=0.3, scale=(0.55, 1.05), rotate=45),
            deformation=Deformation(chance=0.8),
            brightness=0.2,
            contrast=0.2,
            gamma=0.2,
            gamma_chance=0.8,
            blur=("gauss",),
            blur_chance=0.1,
            sharpen_chance=0.5,
            noise=0.5,
        ),
        batch=16,
        steps=72_000,
        validate_every=3_600,
        checkpoint_every=200,
        losses=(Loss(kind="dice", smooth=1),),
        learning_rate=1e-4,
        schedule=ONE_CYCLE,
        ema_decay=0,
        clip_norm=None,
        clip_value=5,
        tile=512,
        blend="probability",
    )


def sennet_3rd_v2s() -> Recipe:
    """3rd place, U-Net with EfficientNetV2-S; else as sennet_3rd."""
    return _member(sennet_3rd(), "sennet_3rd_v2s", encoder="tu-tf_efficientnetv2_s")


def sennet_3rd_v2l() -> Recipe:
    """3rd place, U-Net++ with EfficientNetV2-L; else as sennet_3rd."""
    return _member(sennet_3rd(), "sennet_3rd_v2l", architecture="unetplusplus", encoder="tu-tf_efficientnetv2_l")


def sennet_3rd_maxvit() -> Recipe:
    """3rd place, U-Net with MaxViT-large of 512 pixels; else as sennet_3rd."""
    return _member(sennet_3rd(), "sennet_3rd_maxvit", encoder="tu-maxvit_large_tf_512")


def sennet_5th() -> Recipe:
    """5th place, U-Net with EfficientNetV2-M, which sees its input twice as large.

    Theirs: intensities by a fixed divisor; crops of 512 that overlap by half, along three axes, standardised each after
    augmentation; the loss of three terms with its weights; AdamW from 3e-4 to 3e-5 by a cosine, 120,000 steps of 16,
    a moving average of the weights; the kept checkpoint is best in the mean over 39 thresholds. Ours: the average's
    decay; bf16 where they took fp16; focal's exponent.
    """
    return Recipe(
        name="sennet_5th",
        network=Network(
            encoder="tu-tf_efficientnetv2_m",
            input_scale=2,
            standardise=Standardisation(slope=1),
        ),
        normalisation=Normalisation(divisor=65_536),
        crop=512,
        sampling=Sampling(order="grid", overlap=0.5),
        augmentation=Augmentation(
            flips=0.5,
            quarter_turns=0,
            warp=Warp(chance=0.7, shift=0.1, scale=(0.75, 1.25), rotate=25),
            deformation=Deformation(chance=0.2, kinds=("grid", "elastic")),
            brightness=0.25,
            contrast=0.25,
            brightness_contrast_chance=0.5,
            gamma=0,
            noise=0,
        ),
        batch=16,
        steps=120_000,
        validate_every=4_000,
        checkpoint_every=200,
        losses=(
            Loss(kind="boundary_bce", weight=0.9, boundary=1),
            Loss(kind="dice", weight=0.01),
            Loss(kind="focal", weight=0.18),  # 0.09 without α: α = ½ halves it
        ),
        learning_rate=3e-4,
        schedule=(Phase(kind="cosine", share=1, start=1, end=0.1),),
        ema_decay=0.999,
        clip_norm=None,
        criterion="mean_surface_dice",
        tile=512,
    )


def sennet_5th_dpn68() -> Recipe:
    """5th place, U-Net with DPN68 on doubled input, by a Tversky loss that counts a missed voxel twice a false one."""
    recipe = _member(sennet_5th(), "sennet_5th_dpn68", encoder="dpn68")
    return recipe.changed(losses=(Loss(kind="tversky", alpha=0.5, beta=1),))


def sennet_5th_maxvit() -> Recipe:
    """5th place, U-Net with MaxViT-base of 512 pixels, at the input's own size, by plain BCE."""
    recipe = _member(sennet_5th(), "sennet_5th_maxvit", encoder="tu-maxvit_base_tf_512", input_scale=1.0)
    return recipe.changed(losses=(Loss(kind="bce"),))


def sennet_5th_simple() -> Recipe:
    """The transformer of 5th place alone, on xy planes only: 90–95 % of the system's score, as they say, at a fraction of its cost."""
    return sennet_5th_maxvit().changed(name="sennet_5th_simple", axes=("z",))


def sennet_13th() -> Recipe:
    """13th place, 2.5D: four consecutive planes of 256 as one mosaic of 512 through a U-Net with MaxViT-tiny.

    Theirs: percentiles 2 and 98; an overlap of 0.4, along three axes, some 490,000 panels; brightness, blur and motion
    blur of each plane on its own; Dice; AdamW, batch 16 × 2, 9 epochs at 1e-4 and 6 by a cosine to 1e-6; overlap 0.1 at
    inference, where each panel is turned four ways, a plane is the mean over the panels that show it, and of overlapping
    tiles the largest counts. Ours: 230,000 steps for these 15 epochs; how far brightness moves.
    """
    return Recipe(
        name="sennet_13th",
        network=Network(encoder="tu-maxvit_tiny_tf_512", planes=4, outputs="all", mosaic=True),
        normalisation=Normalisation(lower_percent=2, upper_percent=98, clip=0),
        crop=256,
        sampling=Sampling(order="grid", overlap=0.4),
        augmentation=Augmentation(
            flips=0.5,
            quarter_turns=1,
            brightness=0.2,
            contrast=0,
            gamma=0,
            blur=("gauss", "motion"),
            blur_chance=0.9,
            noise=0,
            each_plane=True,
        ),
        batch=16,
        accumulate=2,
        steps=230_000,
        validate_every=15_000,
        checkpoint_every=200,
        losses=(Loss(kind="dice"),),
        learning_rate=1e-4,
        schedule=(Phase(kind="constant", share=9), Phase(kind="cosine", share=6, start=1, end=0.01)),
        ema_decay=0,
        clip_norm=None,
        tile=256,
        overlap=0.1,
        window="max",
        turns="quarters",
    )


def _member(recipe: Recipe, name: str, **network: object) -> Recipe:
    return recipe.changed(name=name, network=recipe.network.changed(**network))


SENNET = (
    sennet_3rd,
    sennet_3rd_v2s,
    sennet_3rd_v2l,
    sennet_3rd_maxvit,
    sennet_5th,
    sennet_5th_dpn68,
    sennet_5th_maxvit,
    sennet_5th_simple,
    sennet_13th,
)
