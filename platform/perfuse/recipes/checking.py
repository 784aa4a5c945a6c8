"""Whether a recipe can work: its network, built without memory for weights, and its crops in the scans they are cut from."""

from collections.abc import Iterable
from functools import lru_cache

from perfuse.contract import Network
from perfuse.errors import RecipeError
from perfuse.geometry import Index3, Spacing, in_plane, move_axis
from perfuse.recipes.sampling import LEAST_SCALE, MOST_SCALE
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


def check_pixels(recipe: Recipe, scan: str, voxel_size_um: Spacing) -> None:
    """Raise RecipeError when a scan is too coarse or too fine for crops with pixels of `sampling.pixel_um`."""
    least, most = recipe.sampling.factors(voxel_size_um)
    if recipe.sampling.pixel_um and not LEAST_SCALE <= least <= most <= MOST_SCALE:
        low, high = recipe.sampling.pixel_um
        voxel = min(voxel_size_um)
        raise RecipeError(
            f"sampling.pixel_um = {low:g} to {high:g} µm: {scan} has voxels of {voxel:g} µm, so its crops can have pixels of "
            f"{LEAST_SCALE * voxel:g} to {MOST_SCALE * voxel:g} µm. Choose a range within, or leave the scan out (--set train=…)."
        )


def pixels(recipe: Recipe, voxels_um: Iterable[Spacing]) -> tuple[float, float]:
    """The finest and the coarsest pixel, µm, that is trained on in scans of such voxels."""
    seen = recipe.sampling.pixel_um or [s for v in voxels_um for axis in recipe.axes for s in in_plane(v, axis)]
    return min(seen), max(seen)


def check_judge(recipe: Recipe, pixel_um: tuple[float, float], scan: str, voxel_size_um: Spacing) -> None:
    """Raise RecipeError when the model, trained on pixels between two edges in µm, will not be allowed on a scan that validates."""
    fault = recipe.forward(recipe.allowed(pixel_um)).refusal(voxel_size_um)
    if fault:
        raise RecipeError(
            f"Scan {scan} is to validate, and {fault}. Allow more by --set voxel_size_range=… (now {recipe.voxel_size_range:g}), "
            "let the model see scans at an allowed voxel size by --set resample_um=…, or leave the scan out (--set validation=…)."
        )
