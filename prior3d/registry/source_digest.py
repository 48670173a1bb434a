"""A digest of a plugin's source, by which results of changed code are told from earlier ones."""

import hashlib
import sys
from pathlib import Path

from prior3d.registry import plugin_files
from prior3d.registry.kinds import KINDS
from prior3d.registry.plugin_files import FOLDER_PACKAGE

_OF_SINGLE_FILES = {"", plugin_files.__name__, FOLDER_PACKAGE, *(f"{FOLDER_PACKAGE}.{kind}" for kind in KINDS)}
"""Packages whose files are plugins that have nothing to do with each other."""


def source_digest(cls: type) -> str:
    """Return a text that changes with the source of a plugin: of its file, or of all files of its package.

    Names and bytes of the files count, not their place or time, so a copy of a plugin file has the digest of the file.
    What the plugin imports from elsewhere does not count.

    Args:
        cls: class of the plugin; its module is imported.

    >>> from prior3d.registry import Registry
    >>> len(source_digest(Registry().get("probes", "segmentation")))
    16
    """
    module = sys.modules[cls.__module__]
    file = getattr(module, "__file__", None)
    if file is None:  # typed in at a prompt: there is no other version of it
        return ""
    root, package = Path(file).parent, module.__spec__.parent if module.__spec__ else ""
    is_alone = package in _OF_SINGLE_FILES or not (root / "__init__.py").is_file()
    found = hashlib.sha256()
    for path in [Path(file)] if is_alone else sorted(root.rglob("*.py")):
        content = path.read_bytes()
        name = "" if is_alone else path.relative_to(root).as_posix()
        found.update(f"{name} {len(content)};".encode() + content)
    return found.hexdigest()[:16]
