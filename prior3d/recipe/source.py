"""Where a recipe's values come from: its file or one that ships with prior3d, and the command line over it."""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from prior3d.errors import UserError
from prior3d.messages import described, shown
from prior3d.recipe.yaml12 import load, parse_value

_PACKAGE = Path(__file__).resolve().parents[1]
_SHIPPED = next((folder for folder in (_PACKAGE / "recipes", _PACKAGE.parent / "recipes") if folder.is_dir()), _PACKAGE)
"""Within the package in a wheel, at the top of a checkout."""


@dataclass(frozen=True)
class Source:
    """Where the keys of a recipe were given.

    Attributes:
        name: of the file, as messages call it.
        folder: in which the file lies; files of `plugins:` are relative to it.
        lines: dotted path of a key to its line in the file.
        overridden: dotted paths of the keys that the command line gave.
    """

    name: str = "recipe"
    folder: Path = field(default_factory=Path.cwd)
    lines: Mapping[str, int] = field(default_factory=dict)
    overridden: frozenset[str] = frozenset()

    def locate(self, error: UserError) -> UserError:
        """Return the error with the place of its key in front: `joint.yaml:12: data.size: ...`.

        A key that was not given at all is placed where the section it is missing from begins.
        """
        if error.key is None or error.key.startswith("--"):
            return error
        key = error.key
        while key:
            if self._is_overridden(key):
                return UserError(f"command line: {error}")
            if key in self.lines:
                return UserError(f"{self.name}:{self.lines[key]}: {error}")
            key = re.sub(r"(?:^|\.)[^.\[]*$|\[\d+\]$", "", key)
        return UserError(f"{self.name}: {error}")

    def _is_overridden(self, key: str) -> bool:
        within = (f"{key}.", f"{key}[")
        return key in self.overridden or (key not in self.lines and any(k.startswith(within) for k in self.overridden))


def read_recipe(name: str | Path, overrides: Sequence[str] = ()) -> tuple[dict[str, object], Source]:
    """Return a recipe's content and where each key of it was given; nothing is checked yet.

    Args:
        name: a YAML file, or the bare name of a recipe that ships with prior3d (`joint`).
        overrides: `key.path=value` each, values read by the rules of the file.

    Raises:
        UserError: no such file, broken YAML, an override that has no place.
    """
    file = find_recipe(name)
    try:
        document = load(file.read_text("utf-8"), shown(file))
    except OSError as error:
        raise UserError(f"{shown(file)} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{shown(file)} is not UTF-8 text") from error
    if not isinstance(document.value, dict):
        what = "it is empty" if document.value is None else f"got {described(document.value)}"
        raise UserError(f"{shown(file)}: expected a recipe, a mapping of sections; {what}")
    given = override(document.value, overrides)
    below = tuple(f"{key}{mark}" for key in given for mark in ".[")
    lines = {key: line for key, line in document.lines.items() if key not in given and not key.startswith(below)}
    return document.value, Source(shown(file), file.parent.absolute(), lines, given)


def override(content: dict[str, object], overrides: Sequence[str]) -> frozenset[str]:
    """Put values of the command line into a recipe's content; return the dotted paths of their keys.

    Args:
        content: changed in place.
        overrides: `key.path=value` each, values read by the rules of recipe files.

    Raises:
        UserError: an override that has no place, or the same key twice.
    """
    given: set[str] = set()
    for text in overrides:
        given.add(_override(content, text, given))
    return frozenset(given)


def find_recipe(name: str | Path) -> Path:
    """Return the file of a recipe: a path, or the bare name of a shipped one.

    Raises:
        UserError: there is neither, with the nearest name.
    """
    path = Path(name)
    if path.is_file():
        return path
    shipped = shipped_recipes()
    if str(name) in shipped:
        return shipped[str(name)]
    near = difflib.get_close_matches(str(name).removesuffix(".yaml"), shipped, n=1)
    hint = f", did you mean '{near[0]}'?" if near else ""
    raise UserError(f"no recipe '{name}': neither a file nor one of {', '.join(shipped) or 'none'}{hint}")


def shipped_recipes() -> dict[str, Path]:
    """Return the recipes that ship with prior3d, `joint` or `paper/pri3d` to their file."""
    return {file.relative_to(_SHIPPED).with_suffix("").as_posix(): file for file in sorted(_SHIPPED.glob("**/*.yaml"))}


def _override(content: dict[str, object], override: str, given: set[str]) -> str:
    """Put one `key.path=value` into the content; return its key."""
    key, separator, text = override.partition("=")
    path = key.split(".")
    if not separator or not all(path):
        raise UserError(f"command line: expected key.path=value, got '{override}'")
    if key in given:
        raise UserError(f"command line: {key}: given twice")
    section = content
    for index, part in enumerate(path[:-1]):
        if section.get(part) is None:  # a section that is absent or null begins here
            section[part] = {}
        inner = section[part]
        if not isinstance(inner, dict):
            above = ".".join(path[: index + 1])
            raise UserError(f"command line: {key}: {above} is {described(inner)}, not a section")
        section = inner
    section[path[-1]] = parse_value(text)
    return key
