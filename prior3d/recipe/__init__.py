"""Recipes: YAML in, checked sections out, and errors with the line of the problem.

`yaml12` parses a text into plain values and records the line of each. `source` merges files and the command line and
records where each key was given. `sections` defines the keys, types, bounds and defaults. `reading` checks plain values
against sections and the options of plugins. `recipe` combines these parts. `json_schema` describes recipes for editors;
`help` describes the options of one plugin or section for readers.
"""

from prior3d.recipe.recipe import Recipe, build_recipe, load_recipe

__all__ = ["Recipe", "build_recipe", "load_recipe"]
