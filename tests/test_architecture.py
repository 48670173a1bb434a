"""Imports go one way: prior3d never imports plugins, plugins see only prior3d and never each other."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def imported_modules(file):
    """Every module a file imports, anywhere in it, also as text given to import_module."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("file", sorted((ROOT / "prior3d").rglob("*.py")), ids=lambda f: str(f.relative_to(ROOT)))
def test_prior3d_imports_no_plugin_no_tool_no_test(file):
    tops = {module.split(".")[0] for module in imported_modules(file)}
    assert not tops & {"prior3d_plugins", "plugins", "tools", "tests", "recipes"}


@pytest.mark.parametrize("file", sorted((ROOT / "plugins").rglob("*.py")), ids=lambda f: str(f.relative_to(ROOT)))
def test_plugins_see_prior3d_and_never_each_other(file):
    plugin = file.relative_to(ROOT / "plugins").with_suffix("").parts[1:3]
    for module in imported_modules(file):
        top, *rest = module.split(".")
        assert top not in {"plugins", "tools", "tests", "recipes"}
        if top == "prior3d_plugins":
            assert tuple(rest[: len(plugin)]) == plugin, f"{file.name} imports {module}"


def test_plugins_use_only_the_public_building_blocks():
    hidden = {
        "prior3d.pretraining",
        "prior3d.recipe",
        "prior3d.cli",
        "prior3d.registry",
        "prior3d.pretraining.objective",
    }
    for file in (ROOT / "plugins").rglob("*.py"):
        for module in imported_modules(file):
            assert not any(module == name or module.startswith(f"{name}.") for name in hidden), f"{file}: {module}"


def test_every_folder_says_what_it_holds():
    for folder in [ROOT / "prior3d", *(ROOT / "prior3d").rglob("*/"), ROOT / "plugins" / "prior3d_plugins"]:
        if any(folder.glob("*.py")):
            assert ast.get_docstring(ast.parse((folder / "__init__.py").read_text())), folder
