"""Imports go one way: up one list of packages, without circles; plugins see the public packages, never each other."""

import ast
import importlib
import re
from collections import defaultdict
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

ORDER = (
    "version", "errors", "messages", "files", "randomness", "launching", "contracts", "figures", "registry",
    "recipe", "geometry", "losses", "sparse", "splat", "volume", "backbone", "jobs", "data", "probes", "reporting",
    "pretraining", "evaluation", "study", "testing", "api", "cli",
    "inspecting", "data_command",
)  # fmt: skip
"""The packages and modules of prior3d; each imports only what stands before it."""

PUBLIC = (
    "prior3d", "prior3d.errors", "prior3d.files", "prior3d.randomness", "prior3d.launching", "prior3d.figures",
    "prior3d.geometry", "prior3d.losses", "prior3d.sparse", "prior3d.splat", "prior3d.volume", "prior3d.backbone",
    "prior3d.jobs", "prior3d.data", "prior3d.data.posed", "prior3d.data.images", "prior3d.data.sample",
    "prior3d.probes", "prior3d.testing",
)  # fmt: skip
"""The public packages: `__all__` of each is all that plugins import. docs/architecture.md says what each holds."""


@cache
def modules(folder):
    """Dotted name to file of every module of a top-level package."""
    base = ROOT / folder
    names = {file: ".".join(file.relative_to(base).with_suffix("").parts) for file in base.rglob("*.py")}
    return {name.removesuffix(".__init__"): file for file, name in names.items()}


def core():
    return {("prior3d" if name == "__init__" else f"prior3d.{name}"): file for name, file in modules("prior3d").items()}


def plugins():
    return {name: file for name, file in modules("plugins").items() if name.startswith("prior3d_plugins")}


@cache
def imported_modules(file):
    """Every module a file imports, anywhere in it, under TYPE_CHECKING too."""
    found = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def resolved(name, known):
    """The module that an imported dotted name is, or is a name of; None for a foreign one."""
    while name and name not in known:
        name = name.rpartition(".")[0]
    return name or None


@cache
def graph():
    """Module to the modules of prior3d that it imports."""
    known = core()
    found = {name: {resolved(other, known) for other in imported_modules(file)} for name, file in known.items()}
    return {name: others - {None, name, "prior3d"} for name, others in found.items()}


def package(module):
    return module.split(".")[1] if "." in module else module


def circles(arrows):
    """Strongly connected groups of more than one module."""
    indices, low, stack, found = {}, {}, [], []

    def visit(node):
        indices[node] = low[node] = len(indices)
        stack.append(node)
        for other in arrows[node]:
            if other not in indices:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], indices[other])
        if low[node] == indices[node]:
            group = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(group) > 1:
                found.append(sorted(group))

    for node in arrows:
        if node not in indices:
            visit(node)
    return found


def test_circles_are_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [["b", "c"]]
    assert circles({"a": {"b"}, "b": set()}) == []


def test_there_is_no_circle_of_imports():
    assert circles(graph()) == []


def test_every_package_has_its_place_in_the_order():
    assert {package(module) for module in core()} - {"prior3d"} <= set(ORDER)


def test_imports_point_up_the_list():
    place = {name: index for index, name in enumerate(ORDER)}
    wrong = {
        (module, package(other))
        for module, others in graph().items()
        for other in others
        if module != "prior3d" and place[package(other)] > place[package(module)]
    }
    assert sorted(wrong) == []


@pytest.mark.parametrize("module", sorted(core()))
def test_prior3d_imports_no_plugin_no_tool_no_test(module):
    tops = {name.split(".")[0] for name in imported_modules(core()[module])}
    assert not tops & {"prior3d_plugins", "plugins", "tools", "tests", "recipes"}


@pytest.mark.parametrize("module", sorted(plugins()))
def test_plugins_see_prior3d_and_never_each_other(module):
    own = ".".join(module.split(".")[:3])  # prior3d_plugins.<kind>.<name>
    for name in imported_modules(plugins()[module]):
        top = name.split(".")[0]
        assert top not in {"plugins", "tools", "tests", "recipes"}
        if top == "prior3d_plugins":
            assert f"{name}.".startswith(f"{own}."), name


@cache
def public_names(package):
    """`__all__` of a public package, as its text has it."""
    tree = ast.parse(core()[package].read_text())
    (value,) = (node.value for node in tree.body if isinstance(node, ast.Assign) and node.targets[0].id == "__all__")
    return frozenset(ast.literal_eval(value))


def not_public(text):
    """Imports of prior3d in a text that are not in `__all__` of a public package."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("prior3d."))
        elif isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "prior3d":
            known = public_names(node.module) if node.module in PUBLIC else ()
            yield from (f"{node.module}.{alias.name}" for alias in node.names if alias.name not in known)


def test_what_is_not_public_is_found():
    text = "import prior3d, prior3d.cli\nfrom prior3d import Prior, registry\ndef f(): from prior3d.files import _FULL"
    assert list(not_public(text)) == ["prior3d.cli", "prior3d.registry", "prior3d.files._FULL"]
    assert list(not_public("from prior3d.contracts.prior import Prior")) == ["prior3d.contracts.prior.Prior"]


@pytest.mark.parametrize("module", sorted(plugins()))
def test_plugins_import_only_public_names(module):
    assert list(not_public(plugins()[module].read_text())) == []


@pytest.mark.parametrize("package", PUBLIC)
def test_public_names_are_there(package):
    module = importlib.import_module(package)
    assert len(set(module.__all__)) == len(module.__all__)
    assert [
        name for name in module.__all__ if not hasattr(module, name) or name.startswith("_") != (name == "__version__")
    ] == []


def test_the_documentation_says_what_each_public_package_holds():
    text = (ROOT / "docs" / "architecture.md").read_text()
    table = text.partition("## What plugins import")[2].partition("\n## ")[0]
    assert re.findall(r"^\| `(prior3d[a-z_.]*)` \|", table, re.MULTILINE) == list(PUBLIC)


def class_names():
    """Name to the files of its classes, and of aliases of types with the same name."""
    classes, aliases = defaultdict(list), defaultdict(list)
    for file in (file for top in ("prior3d", "plugins", "tools") for file in (ROOT / top).rglob("*.py")):
        tree = ast.parse(file.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                classes[node.name].append(file)
        for node in tree.body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                aliases[node.targets[0].id].append(file)
    return {name: found + aliases[name] for name, found in classes.items()}


def test_every_class_has_a_name_of_its_own():
    found = class_names()
    assert len(found["Prior"]) == 1
    assert {name: files for name, files in found.items() if len(files) > 1} == {}


def test_every_folder_says_what_it_holds():
    tops = [ROOT / "prior3d", ROOT / "plugins" / "prior3d_plugins"]
    for folder in [*tops, *(inner for top in tops for inner in top.rglob("*/"))]:
        if any(folder.glob("*.py")):
            assert ast.get_docstring(ast.parse((folder / "__init__.py").read_text())), folder
