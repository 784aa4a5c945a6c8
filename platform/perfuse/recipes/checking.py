"""Whether a recipe can work: its network, built without memory for weights, and its crops in the scans they are cut from."""

from functools import lru_cache

from perfuse.contract import Network
from perfuse.errors import RecipeError
from perfuse.geometry import Index3, move_axis
from perfuse.recipes.schema import Recipe


def check_network(recipe: Recipe) -> int:
    """How many weights the network has; it is built on PyTorch's meta device, without memory for them.

    Raises RecipeError when it cannot be built, takes no crops or tiles of the recipe's size, or answers no logits.
    """
    return _weights(recipe.segmenter, (recipe.crop, recipe.tile))


@lru_cache
def _weights(network: Network, sizes: tuple[int, ...]) -> int:
    from perfuse.models import build_shapes, check_logits, check_size

    check_size(network, sizes)
    check_logits(network, sizes[0])
    return sum(p.numel() for p in build_shapes(network).parameters())


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
