"""Errors that a user can cause: each message is one line with the problem, its place and the remedy."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePath
from types import MappingProxyType

__all__ = ["ArgumentError", "DamagedFile", "DoesNotFit", "UserError", "dotted", "refusal_of", "section"]


class UserError(Exception):
    """An error in a recipe, a plugin or the data; the command prints one line and exits with status 2.

    Args:
        message: what is wrong and how to fix it, in one or two sentences.
        key: the option it is about, relative to the current section: a dataset raises `root`, and `section` turns that
            into `data.root` or `probes.depth.data.root`; the command adds file and line.
    """

    def __init__(self, message: str, key: str | None = None) -> None:
        super().__init__(" ".join(message.split()))
        self.message = " ".join(message.split())
        self.key = key

    def __str__(self) -> str:
        return f"{self.key}: {self.message}" if self.key else self.message

    def __reduce__(self) -> tuple:
        """Pickle the constructor arguments: a loader's worker process sends errors to the main process."""
        return type(self), (self.message, self.key)

    def put_within(self, key: str, elsewhere: Mapping[str, str] = MappingProxyType({})) -> None:
        """Change the key from relative to the section at `key` to relative to the parent of that section."""
        option = re.split(r"[.\[]", self.key or "", maxsplit=1)[0]
        if not key:
            return
        if not self.key:
            self.key = key
        elif option in elsewhere:
            self.key = f"{elsewhere[option]}{self.key[len(option) :]}"
        else:
            self.key = f"{key}{self.key}" if self.key.startswith("[") else f"{key}.{self.key}"


class ArgumentError(UserError):
    """An error in an argument of a function of `prior3d` or of a command, which no section holds.

    Args:
        message: what is wrong and how to fix it.
        key: name of the argument in Python, such as `out`; commands call it `--out`.
    """

    def put_within(self, key: str, elsewhere: Mapping[str, str] = MappingProxyType({})) -> None:
        """Leave the key as it is."""


class DoesNotFit(UserError):
    """Two parts do not fit together, such as a probe and data, though each is valid by itself.

    A probe that the user did not name explicitly is then left out, with a line in the log. Every other error that a
    user can cause is a plain `UserError` and ends the run.
    """


@contextmanager
def changing(change: Callable[[UserError], UserError]) -> Iterator[None]:
    """Raise what `change` makes of a `UserError` that is raised inside the block: the error itself, or another.

    >>> with changing(lambda error: UserError(error.message, "size")):
    ...     raise UserError("expected two numbers")
    Traceback (most recent call last):
    prior3d.errors.UserError: size: expected two numbers
    """
    try:
        yield
    except UserError as error:
        changed = change(error)
        if changed is error:
            raise
        raise changed from error


@contextmanager
def section(key: str, elsewhere: Mapping[str, str] = MappingProxyType({})) -> Iterator[None]:
    """Prefix the keys of errors raised inside the block with the key of their section.

    Sections nest: an error about `root` that a probe's dataset raises inside `section("data")` inside
    `section("probes.depth")` ends with the key `probes.depth.data.root`.

    Args:
        key: the section, relative to its parent: a label or a dotted path; empty for the current section.
        elsewhere: options of the section that are defined in another place, with that place: `{"data": "data"}` for a
            probe that is measured on the data of the run.

    Raises:
        UserError: the error raised inside the block, also of a subclass.

    >>> with section("probes.depth.data"):
    ...     raise UserError("no folder /scans", "root")
    Traceback (most recent call last):
    prior3d.errors.UserError: probes.depth.data.root: no folder /scans
    >>> with section("probes.depth", elsewhere={"data": "data"}):
    ...     raise UserError("expected at least 1", "data.surface.max_points")
    Traceback (most recent call last):
    prior3d.errors.UserError: data.surface.max_points: expected at least 1
    """

    def put_within(error: UserError) -> UserError:
        error.put_within(key, elsewhere)
        return error

    with changing(put_within):
        yield


@contextmanager
def argument(key: str) -> Iterator[None]:
    """Report errors raised inside the block as errors in an argument.

    Args:
        key: name of the argument in Python.

    Raises:
        ArgumentError: replaces the error raised inside the block.

    >>> with argument("against"):
    ...     raise UserError("no such model", "backbone.name")
    Traceback (most recent call last):
    prior3d.errors.ArgumentError: against: no such model
    """

    def as_argument(error: UserError) -> UserError:
        return error if isinstance(error, ArgumentError) else ArgumentError(error.message, key)

    with changing(as_argument):
        yield


def several(given: Iterable, key: str) -> Iterable:
    """Return what an argument lists; refuse one text, whose letters would be taken for names.

    Args:
        given: value of the argument.
        key: name of the argument.

    Raises:
        ArgumentError: it is a text or a path.

    >>> several("depth", "probes")
    Traceback (most recent call last):
    prior3d.errors.ArgumentError: probes: expected a list, got the text 'depth': write ['depth']
    """
    if isinstance(given, str | PurePath):
        raise ArgumentError(f"expected a list, got the text '{given}': write ['{given}']", key)
    return given


def on_command_line(error: UserError) -> str:
    """Return the line that a command prints: it calls its arguments by their options.

    >>> on_command_line(ArgumentError("is not a folder", "out")), on_command_line(UserError("not a number", "seed"))
    ('--out: is not a folder', 'seed: not a number')
    """
    if not (isinstance(error, ArgumentError) and error.key):
        return str(error)
    option = {"plugins": "plugin"}.get(error.key, error.key)
    return f"--{option}: {error.message}"


def dotted(*keys: str) -> str:
    """Return the dotted key of an option from the names of its sections, outermost first.

    >>> dotted("probes", "depth", "data", "root")
    'probes.depth.data.root'
    """
    return ".".join(keys)


def refusal_of(call: Callable[[], object]) -> UserError | None:
    """Return the `UserError` that a call raises; None if it raises none.

    >>> str(refusal_of(lambda: DamagedFile("a.png", "truncated")))
    'None'
    """
    try:
        call()
    except UserError as error:
        return error
    return None


class DamagedFile(Exception):
    """A file of a dataset cannot be decoded; `on_damage` of `data:` decides whether that ends the run or is counted.

    Args:
        path: the file.
        why: what is wrong with it, in a few words.
    """

    def __init__(self, path: Path | str, why: str) -> None:
        super().__init__(f"{path}: {why}")
        self.path = Path(path)
        self.why = why

    def __reduce__(self) -> tuple:
        """Pickle the constructor arguments: a loader's worker process sends damage to the main process."""
        return type(self), (self.path, self.why)

    def refusal(self, count: int | None = None) -> UserError:
        """Return the error that ends a run because of this file; its key is relative to `data:`.

        Args:
            count: number of damaged files, if known.

        >>> str(DamagedFile("a.png", "truncated").refusal())
        'on_damage: damaged file a.png: truncated; repair it, or set on_damage: skip'
        """
        in_all = "" if count is None else f" ({count} in all)"
        return UserError(
            f"damaged file {self.path}: {self.why}{in_all}; repair it, or set on_damage: skip", "on_damage"
        )
