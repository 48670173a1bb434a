"""Recipes: YAML in, checked sections out, with the line of whatever is wrong.

`yaml12` reads a text to plain values and knows the line of each; `source` lays files and the command line over each
other and knows where each key was given; `sections` says which keys, types, bounds and defaults there are; `reading`
checks plain values against sections and the options of plugins; `recipe` is the whole. `json_schema` describes recipes
for editors, `help` the options of one plugin or section for readers.
"""

from prior3d.recipe.recipe import Recipe, build_recipe, load_recipe

__all__ = ["Recipe", "build_recipe", "load_recipe"]
