"""Recipes: typed, complete descriptions of a training."""

from perfuse.recipes.built_in import RECIPES
from perfuse.recipes.loading import differences, load_recipe, to_yaml
from perfuse.recipes.schema import Augmentation, Loss, Phase, Recipe, Sampling

__all__ = ["RECIPES", "Augmentation", "Loss", "Phase", "Recipe", "Sampling", "differences", "load_recipe", "to_yaml"]
