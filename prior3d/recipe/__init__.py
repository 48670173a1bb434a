"""Recipes: YAML in, checked sections out, with the line of whatever is wrong."""

from prior3d.recipe.recipe import Recipe, build_recipe, load_recipe, locate

__all__ = ["Recipe", "build_recipe", "load_recipe", "locate"]
