"""Copies the top-level `recipes/` into the wheel as `prior3d/recipes`, so that `prior3d-train joint` works anywhere.

Everything else is declared in pyproject.toml; a checkout (editable install) reads `recipes/` where it lies.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithRecipes(build_py):
    """The standard build step, plus the recipes."""

    def run(self) -> None:
        """Build the modules, then add the recipes unless the install is editable."""
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib) / "prior3d" / "recipes"
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree("recipes", target)


setup(cmdclass={"build_py": BuildWithRecipes})
