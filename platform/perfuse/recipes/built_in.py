"""The recipes that perfuse brings. A recipe is a function; a variation is a few fields over another."""

from collections.abc import Callable

from perfuse.contract import Network, Normalisation
from perfuse.recipes.schema import Augmentation, Phase, Recipe, Sampling, Warp


def quickstart() -> Recipe:
    """Phantoms on two cores: a minute and a half a round. Random initial weights, so that it runs without a network."""
    return Recipe(
        name="quickstart",
        network=Network(encoder="resnet18", encoder_weights=None, planes=3, decoder_channels=(64, 48, 32, 16)),
        crop=128,
        batch=16,
        steps=110,
        validate_every=110,
        learning_rate=2e-3,
        schedule=(Phase(kind="linear", share=0.18, start=0.05), Phase(kind="cosine", share=0.82, end=0.01)),
        ema_decay=0.94,
        tile=128,
    )


def vesselnn() -> Recipe:
    """Thin anisotropic two-photon stacks, as VesselNN's: planes along z only. Random initial weights: runs offline.

    Stacks of different studies differ in contrast far more than in shape: dim vessels are lifted over a knee.
    """
    return quickstart().model_copy(
        update={
            "name": "vesselnn",
            "axes": ("z",),
            "normalisation": Normalisation(knee=0.3),
            "voxel_size_range": 2.0,
            "crop": 192,
            "batch": 8,
            "steps": 120,
            "validate_every": 40,
            "learning_rate": 1e-3,
            "ema_decay": 0.99,
            "sampling": Sampling(),
            "augmentation": Augmentation(
                warp=Warp(chance=1, scale=(1 / 1.6, 1.6)), brightness=0.3, contrast=0.3, gamma=1.5
            ),
            "tile": 256,
        }
    )


RECIPES: dict[str, Callable[[], Recipe]] = {"quickstart": quickstart, "vesselnn": vesselnn}
