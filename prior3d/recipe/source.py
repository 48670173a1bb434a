"""Sources of a recipe's values: merged files, recipes that ship with prior3d, and the command line."""

import os
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from prior3d.errors import ArgumentError, UserError, changing, several
from prior3d.messages import described, did_you_mean, shown
from prior3d.recipe.yaml12 import Document, load, parse_value

COMMAND_LINE = "command line"
"""Name of overrides in messages, unless they are given in Python."""

STANDARD_INPUT = "-"
"""Replaces the file of a recipe: read the text from standard input."""

STANDARD_INPUT_NAME = "standard input"
"""Name of standard input in messages."""

_PACKAGE = Path(__file__).resolve().parents[1]
_SHIPPED = next((folder for folder in (_PACKAGE / "recipes", _PACKAGE.parent / "recipes") if folder.is_dir()), _PACKAGE)
"""Folder of the shipped recipes: inside the package in a wheel, at the top of a checkout."""

_ENTRIES = ("priors", "probes")
"""Sections that hold entries by label: a later null removes an entry."""


@dataclass(frozen=True)
class Source:
    """Where the keys of a recipe were given: in a file, in later files merged over it, or on the command line.

    Attributes:
        name: name of the file in messages.
        folder: folder of the file; relative paths in the file start there.
        lines: dotted path of each key to its line in the file.
        overridden: dotted paths of the keys given on the command line.
        removed: dotted paths of the keys that a later file or the command line set to null over an earlier value.
        later: the files merged over this one, in order.
        overrides: name of the overrides in messages.
    """

    name: str = "recipe"
    folder: Path = field(default_factory=Path.cwd)
    lines: Mapping[str, int] = field(default_factory=dict)
    overridden: frozenset[str] = frozenset()
    removed: frozenset[str] = frozenset()
    later: tuple["Source", ...] = ()
    overrides: str = COMMAND_LINE

    @contextmanager
    def locating(self) -> Iterator[None]:
        """Add the place of the key to errors raised inside the block: `joint.yaml:12: data.size: ...`.

        The place of a key that was not given is the start of the section that lacks it.

        Raises:
            UserError: the error raised inside, without a key, because its message contains it.
        """
        with changing(self.locate):
            yield

    def locate(self, error: UserError) -> UserError:
        """Return the error with the place of its key in front; see `locating`."""
        if error.key is None or isinstance(error, ArgumentError):
            return error
        given = self._given(error.key)
        if given is None:
            return UserError(f"{self.name}: {error}")
        key, file = given
        return UserError(f"{self.overrides if file is None else f'{file.name}:{file.lines[key]}'}: {error}")

    def folder_of(self, key: str) -> Path:
        """Return the folder in which relative paths at a key start.

        It is the folder of the file that gives them, or the current folder for values of the command line.
        """
        given = self._given(key)
        if given is None:
            return self.folder
        return Path.cwd() if given[1] is None else given[1].folder

    def removes(self, key: str) -> bool:
        """Whether a later file or the command line replaced the value of a key with null."""
        return key in self.removed

    def _given(self, key: str) -> tuple[str, "Source | None"] | None:
        """Return the key, or its innermost section that was given, and its file; None for the command line."""
        within = [key]
        while key := key[: max(key.rfind("."), key.rfind("["), 0)]:
            within.append(key)
        for key in within:
            if key in self.overridden:
                return key, None
        for key in within:
            for file in reversed((self, *self.later)):
                if key in file.lines:
                    return key, file
            if any(other.startswith((f"{key}.", f"{key}[")) for other in self.overridden):
                return key, None
        return None


def read_recipe(
    names: str | Path | Sequence[str | Path], overrides: Sequence[str] = (), overrides_name: str = COMMAND_LINE
) -> tuple[dict[str, object], Source]:
    """Return a recipe's content and where each key was given; nothing is checked yet.

    Args:
        names: a YAML file, the bare name of a recipe that ships with prior3d (`joint`), or `-` for standard input;
            several are merged, section by section, and later ones override earlier ones.
        overrides: `key.path=value` each, which override all files; values follow the rules of recipe files.
        overrides_name: name of the overrides in messages.

    Raises:
        UserError: a file does not exist, its YAML is broken, or an override has no place.
    """
    names = [names] if isinstance(names, str | Path) else list(names)
    if [str(name) for name in names].count(STANDARD_INPUT) > 1:
        raise UserError("standard input (-) can be read only once")
    (content, source), *more = [_read(name) for name in names]
    removed: set[str] = set()
    for above, file in more:
        replaced = _lay_over(content, above)
        removed |= {key for key, value in replaced.items() if value is None}
        below = (source, *source.later)
        source, *later = (replace(one, lines=_not_within(one.lines, replaced)) for one in below)
        source = replace(source, later=(*later, file))
    given, taken = _override(content, overrides, overrides_name)
    removed |= taken
    return content, replace(source, overridden=given, removed=frozenset(removed), overrides=overrides_name)


def override(
    content: dict[str, object], overrides: Sequence[str], name: str = "defaults", overrides_name: str = COMMAND_LINE
) -> Source:
    """Put values of the command line into content that is not from a file; return where its keys were given.

    Args:
        content: changed in place.
        overrides: `key.path=value` each; values follow the rules of recipe files.
        name: name of the origin of the content in messages.
        overrides_name: name of the overrides in messages.

    Raises:
        UserError: an override has no place, or a key occurs twice.
    """
    given, removed = _override(content, overrides, overrides_name)
    return Source(name, overridden=given, removed=frozenset(removed), overrides=overrides_name)


def find_recipe(name: str | Path) -> Path:
    """Return the file of a recipe, given a path or the bare name of a shipped recipe.

    Raises:
        UserError: neither exists; the message has the nearest name.
    """
    if os.path.isfile(name):
        return Path(name)
    shipped = shipped_recipes()
    if str(name) in shipped:
        return shipped[str(name)]
    hint = did_you_mean(str(name).removesuffix(".yaml"), shipped)
    raise UserError(f"no recipe '{name}': it is neither a file nor one of {', '.join(shipped) or 'none'}{hint}")


def shipped_recipes() -> dict[str, Path]:
    """Return the recipes that ship with prior3d, name (`joint`, `paper/pri3d`) to file."""
    return {file.relative_to(_SHIPPED).with_suffix("").as_posix(): file for file in sorted(_SHIPPED.glob("**/*.yaml"))}


def _read(name: str | Path) -> tuple[dict[str, object], Source]:
    """Return the content of one file, or of standard input, and its `Source`."""
    if str(name) == STANDARD_INPUT:
        title, folder = STANDARD_INPUT_NAME, Path.cwd()
        document = _document(title, lambda: sys.stdin.buffer.read().decode("utf-8"))
    else:
        file = find_recipe(name)
        title, folder = shown(file), file.parent.absolute()
        document = _document(title, lambda: file.read_text("utf-8"))
    if not isinstance(document.value, dict):
        what = "it is empty" if document.value is None else f"got {described(document.value)}"
        raise UserError(f"{title}: expected a recipe, a mapping of sections; {what}")
    return document.value, Source(title, folder, document.lines)


def _document(title: str, read: Callable[[], str]) -> Document:
    try:
        return load(read(), title)
    except OSError as error:
        raise UserError(f"{title} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{title} is not UTF-8 text") from error


def _lay_over(content: dict[str, object], above: Mapping[str, object], within: str = "") -> dict[str, object]:
    """Merge a later file into the content, section by section; return the replaced values by dotted key.

    Lists are replaced as a whole. A null removes an entry of `priors` or `probes`.
    """
    replaced: dict[str, object] = {}
    for name, value in above.items():
        key = f"{within}{name}"
        below = content.get(name)
        if isinstance(below, dict) and isinstance(value, Mapping):
            replaced |= _lay_over(below, value, f"{key}.")
            continue
        if name in content:
            replaced[key] = value
        if value is None and name in content and within.removesuffix(".") in _ENTRIES:
            del content[name]
        else:
            content[name] = value
    return replaced


def _not_within(lines: Mapping[str, int], keys: Collection[str]) -> dict[str, int]:
    """Return the lines of all keys except the given ones and those below them."""
    below = tuple(f"{key}{mark}" for key in keys for mark in ".[")
    return {key: line for key, line in lines.items() if key not in keys and not key.startswith(below)}


def _override(content: dict[str, object], overrides: Sequence[str], name: str) -> tuple[frozenset[str], set[str]]:
    """Put values of the command line into the content; return the given keys, and those set to null.

    A removed entry of `priors` or `probes` is only among the latter.
    """
    given: set[str] = set()
    removed: set[str] = set()
    for text in several(overrides, "overrides"):
        key, value = _parsed(text, name)
        if key in given | removed:
            raise UserError(f"{name}: {key}: given twice")
        if _put(content, key, value, name):
            given.add(key)
        if value is None:
            removed.add(key)
    return frozenset(given), removed


def _parsed(override: str, name: str) -> tuple[str, object]:
    """Return key and value of one `key.path=value`."""
    key, separator, text = override.partition("=")
    if not separator or not all(key.split(".")):
        raise UserError(f"{name}: expected key.path=value, got '{override}'")
    return key, parse_value(text, name)


def _put(content: dict[str, object], key: str, value: object, origin: str) -> bool:
    """Put one value into the content; return False if it removed an entry instead."""
    *above, name = key.split(".")
    section = content
    for index, part in enumerate(above):
        if section.get(part) is None:  # create a section that is absent or null
            section[part] = {}
        inner = section[part]
        if not isinstance(inner, dict):
            path = ".".join(above[: index + 1])
            raise UserError(f"{origin}: {key}: {path} is {described(inner)}, not a section")
        section = inner
    if value is None and len(above) == 1 and above[0] in _ENTRIES:
        if section and name not in section:
            raise UserError(f"{origin}: {key}: there is no such entry to remove{did_you_mean(name, section)}")
        section.pop(name, None)
        return False
    section[name] = value
    return True
