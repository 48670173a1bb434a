"""Plugins that are single files: how they are found, named, and imported when they are used.

A file is imported as the module `prior3d.registry.plugin_files.<stem>_<path>`, where `<path>` is its absolute path in
base 32. The name encodes the path of the file, so a process that unpickles one of its objects (a loader's worker,
forked or spawned) finds the file again. No folder is added to `sys.path`, where its other files would shadow packages.
For the same reason a file cannot import files next to it: a plugin of several files must be a package.
"""

import base64
import binascii
import importlib.util
import os
import re
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

from prior3d.registry.kinds import KINDS

FOLDER_PACKAGE = "prior3d_plugins"
"""The installed package whose folder is searched for files that no entry point declares."""

__path__: list[str] = []  # the import system treats this module as a package with the files as its modules


def snake_case(name: str) -> str:
    """Return the name of a class in recipes: ViewInvariance is view_invariance, PosedRGBD is posed_rgbd."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z0-9])(?=[A-Z][a-z])", "_", name).lower()


def dropped_files(declared: frozenset[str]) -> dict[str, Path]:
    """Return the files in the plugin folder that have no entry point: module name to file.

    Args:
        declared: modules that entry points name; a folder counts as declared with any module in it.
    """
    spec = importlib.util.find_spec(FOLDER_PACKAGE)
    found: dict[str, Path] = {}
    for folder in map(Path, (spec and spec.submodule_search_locations) or ()):
        found |= _undeclared(folder, FOLDER_PACKAGE, declared) | found
        for kind in KINDS:
            found |= _undeclared(folder / kind, f"{FOLDER_PACKAGE}.{kind}", declared) | found
    return found


def _undeclared(folder: Path, package: str, declared: frozenset[str]) -> dict[str, Path]:
    """Return the modules and packages of a folder that no entry point names, directly or by a module in them."""
    files = {file.stem: file for file in folder.glob("*.py")}
    folders = {file.parent.name: file for file in folder.glob("*/__init__.py")}
    return {
        f"{package}.{name}": file
        for name, file in sorted({**files, **folders}.items())
        if name not in KINDS
        and not name.startswith("_")
        and not any(f"{module}.".startswith(f"{package}.{name}.") for module in declared)
    }


def module_of(file: Path) -> str:
    """Return the name under which a file is imported, which is the same in every process."""
    path = os.fsencode(file.resolve())
    return (
        f"{__name__}.{re.sub(r'[^0-9A-Za-z_]', '_', file.stem)}_{base64.b32encode(path).decode().rstrip('=').lower()}"
    )


class _FinderOfFiles(MetaPathFinder):
    """Finder of the modules that `module_of` names; importing this module adds it to `sys.meta_path`."""

    def find_spec(self, fullname: str, path: object = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if not fullname.startswith(f"{__name__}."):
            return None
        encoded = fullname.rpartition("_")[2].upper()
        try:
            file = os.fsdecode(base64.b32decode(encoded + "=" * (-len(encoded) % 8)))
        except binascii.Error:
            return None
        return importlib.util.spec_from_file_location(fullname, file)


sys.meta_path.append(_FinderOfFiles())
