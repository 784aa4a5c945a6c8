"""Recipes: typed, complete descriptions of a training."""

from perfuse.recipes.built_in import RECIPES
from perfuse.recipes.loading import differences, load_recipe, to_yaml
from perfuse.recipes.sampling import Sampling
from perfuse.recipes.schema import Augmentation, Deformation, Loss, Phase, Recipe, Warp
from perfuse.recipes.smoke import smoke

__all__ = [
    "RECIPES",
    "Augmentation",
    "Deformation",
    "Loss",
    "Phase",
    "Recipe",
    "Sampling",
    "Warp",
    "differences",
    "load_recipe",
    "smoke",
    "to_yaml",
]
