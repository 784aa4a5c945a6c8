"""Published weights as a bundle: a state dict, the recipe that says what network it is of, and where it may be used."""

from typing import TYPE_CHECKING

from perfuse import storage
from perfuse.bundle import Bundle
from perfuse.contract import Contract, Decision
from perfuse.errors import RecipeError
from perfuse.models import build, fit_weights, read_weights, with_source

if TYPE_CHECKING:
    from perfuse.recipes import Recipe


def import_weights(url: str, recipe: "Recipe", voxel_size_um: tuple[float, float], threshold: int = 128) -> Bundle:
    """The bundle of a state dict (.pt, .pth, .safetensors), which is read without running code.

    voxel_size_um: the finest and the coarsest pixel that the network may be used on. threshold: of uint8 probabilities.
    Raises RecipeError that names what is missing, unexpected or of another shape, FileNotFoundError for no file.
    """
    if not 0 < voxel_size_um[0] <= voxel_size_um[1]:
        raise RecipeError(f"voxel_size_um goes from the finest pixel to the coarsest, in µm; got {voxel_size_um}.")
    network = build(recipe.segmenter)
    fit_weights(network, read_weights(url), url)
    forward = recipe.forward(voxel_size_um).changed(network=with_source(recipe.segmenter))
    weights = {name: value.contiguous() for name, value in network.state_dict().items()}
    lineage = {
        "recipe": recipe.model_dump(mode="json"),
        "imported": storage.name_of(url),
        "sha256": storage.digest_bytes(storage.read_bytes(url)),
    }
    return Bundle(Contract(forward=forward, decision=Decision(threshold=threshold)), weights, lineage)
