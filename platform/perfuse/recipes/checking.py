"""Whether a recipe's network can be built and takes what it will be shown, without memory for its weights."""

from perfuse.errors import RecipeError
from perfuse.recipes.schema import Recipe


def weights(recipe: Recipe) -> int:
    """How many weights the network has; it is built on PyTorch's meta device and shown one crop and one tile.

    Raises RecipeError when it cannot be built, or takes no crops or tiles of the recipe's size.
    """
    import torch

    from perfuse.models import build

    with torch.device("meta"), torch.no_grad():
        network = build(recipe.network).eval()
        for what, side in (("crop", recipe.crop), ("tile", recipe.tile)):
            try:
                answer = network(torch.empty(1, recipe.network.planes, side, side))
            except (RuntimeError, ValueError, AssertionError) as error:
                raise RecipeError(
                    f"The encoder {recipe.network.encoder!r} takes no {what} of {side} × {side} pixels ({error}). "
                    f"Choose another by --set {what}=…; a name that ends in a size, as _512, wants its multiples."
                ) from error
    planes = recipe.network.planes if recipe.network.outputs == "all" else 1
    if answer.shape[1:] != (planes, recipe.tile, recipe.tile):
        raise RecipeError(
            f"The network answers {tuple(answer.shape[1:])} to a tile; wanted are logits of {planes} planes of "
            f"{recipe.tile} × {recipe.tile} pixels."
        )
    return sum(p.numel() for p in network.parameters())
