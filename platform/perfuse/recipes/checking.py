"""Whether a recipe can work: its network, built without memory for weights, and its crops in the scans they are cut from."""

from perfuse.errors import RecipeError
from perfuse.geometry import Index3, move_axis
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


def check_planes(recipe: Recipe, scan: str, shape_zyx: Index3) -> None:
    """Raise RecipeError when planes of a scan along one of the axes are so narrow that crops would be mostly mirror images."""
    for axis in recipe.axes:
        _, rows, columns = move_axis(shape_zyx, "zyx".index(axis))
        if 2 * min(rows, columns) < recipe.crop:
            rest = ",".join(a for a in recipe.axes if a != axis)
            raise RecipeError(
                f"Planes of {scan} along axis {axis} have {rows} × {columns} pixels: less than half of a crop of "
                f"{recipe.crop}. Leave the axis out{f' (--set axes={rest})' if rest else ''}, or choose smaller crops by "
                "--set crop=…"
            )
