"""A recipe made small enough for two cores, to see a whole training or campaign work before a cluster is paid for."""

from math import isqrt

from perfuse.recipes.schema import Recipe

SEEN = 128
"""Edge of what the network sees, in pixels."""
BATCH, STEPS = 8, 240
RATE = 2e-3
"""For random weights; rates of pretrained ones would learn nothing in so few steps."""
DECODER = (64, 48, 32, 16)


def smoke(recipe: Recipe) -> Recipe:
    """The same recipe with a small network of random weights and its learning rate, small crops and tiles, few crops and steps.

    What makes the recipe what it is stays: axes, panels, normalisation, augmentation, losses, the schedule's shape, optimiser
    and criterion. A network of one's own (`network.module`) stays as it is.
    """
    network = recipe.network
    if network.module is None:
        decoder = DECODER if network.architecture in ("unet", "unetplusplus") else None
        network = network.changed(encoder="resnet18", encoder_size=None, encoder_weights=None, decoder_channels=decoder)
    across = network.input_scale * (isqrt(network.planes) if network.mosaic else 1)
    side = max(32, int(SEEN / across) // 32 * 32)
    steps = min(recipe.steps, STEPS)
    return recipe.changed(
        network=network,
        crop=min(recipe.crop, side),
        tile=_tile(recipe, side),
        batch=min(recipe.batch, BATCH),
        steps=steps,
        validate_every=min(recipe.validate_every, steps),
        checkpoint_every=min(recipe.checkpoint_every, steps),
        frozen_encoder_steps=0,
        encoder_digest=None,
        gradient_checkpointing=False,
        learning_rate=max(recipe.learning_rate, RATE),
    )


def _tile(recipe: Recipe, most: int) -> int:
    """The largest tile up to `most` pixels that can be seen at all sizes of the recipe, or else the smallest."""
    seen = [n for n in range(32, recipe.tile + 1, 32) if all(n * scale % 32 == 0 for scale in recipe.scales)]
    return max((n for n in seen if n <= most), default=seen[0])
