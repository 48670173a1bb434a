"""Errors that a user can cause: each is one line that says what is wrong, where, and what to do."""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

__all__ = ["DamagedFile", "DoesNotFit", "UserError", "dotted", "refusal_of", "section"]


class UserError(Exception):
    """Something in a recipe, a plugin or the data is wrong; the command prints one line and exits with 2.

    Args:
        message: what is wrong and what to do about it, one sentence or two.
        key: the option it is about, relative to the section in hand: a dataset raises `root`, and `section` makes that
            `data.root` or `probes.depth.data.root`; the command adds file and line. A key that begins with `--` is an
            argument of the command line and stays as it is.
    """

    def __init__(self, message: str, key: str | None = None) -> None:
        super().__init__(" ".join(message.split()))
        self.message = " ".join(message.split())
        self.key = key

    def __str__(self) -> str:
        return f"{self.key}: {self.message}" if self.key else self.message

    def __reduce__(self) -> tuple:
        """Pickle by arguments: errors cross the border of a loader's worker process."""
        return type(self), (self.message, self.key)

    def put_within(self, key: str, elsewhere: Mapping[str, str] = MappingProxyType({})) -> None:
        """Make the key, relative so far to the section at `key`, relative to what holds that section."""
        option = re.split(r"[.\[]", self.key or "", maxsplit=1)[0]
        if not key or (self.key or "").startswith("--"):
            return
        if not self.key or key.startswith("--"):  # an argument of the command line holds no sections
            self.key = key
        elif option in elsewhere:
            self.key = f"{elsewhere[option]}{self.key[len(option) :]}"
        else:
            self.key = f"{key}{self.key}" if self.key.startswith("[") else f"{key}.{self.key}"


class DoesNotFit(UserError):
    """Two things do not fit together, such as a probe and data, and neither of them is at fault.

    A probe that nobody asked for by name is left out because of it, with a line; anything else that a user can cause
    is a plain `UserError` and ends the run.
    """


@contextmanager
def section(key: str, elsewhere: Mapping[str, str] = MappingProxyType({})) -> Iterator[None]:
    """Give errors that are raised inside the block the key of the section that they are about.

    Sections nest: what a probe's dataset raises about `root` leaves `section("data")` within
    `section("probes.depth")` as `probes.depth.data.root`.

    Args:
        key: the section, relative to what holds it; a label, or dotted; empty for the section in hand itself.
        elsewhere: options of the section that stand in another place, and where: `{"data": "data"}` for a probe that
            is measured on the data of the run.

    Raises:
        UserError: the one raised inside, of whatever subclass.

    >>> with section("probes.depth.data"):
    ...     raise UserError("no folder /scans", "root")
    Traceback (most recent call last):
    prior3d.errors.UserError: probes.depth.data.root: no folder /scans
    >>> with section("probes.depth", elsewhere={"data": "data"}):
    ...     raise UserError("expected at least 1", "data.surface.max_points")
    Traceback (most recent call last):
    prior3d.errors.UserError: data.surface.max_points: expected at least 1
    """
    try:
        yield
    except UserError as error:
        error.put_within(key, elsewhere)
        raise


def dotted(*keys: str) -> str:
    """Return the key of an option within sections, outermost first.

    >>> dotted("probes", "depth", "data", "root")
    'probes.depth.data.root'
    """
    return ".".join(keys)


def refusal_of(call: Callable[[], object]) -> UserError | None:
    """Return the `UserError` that a call raises; None where it raises none.

    >>> str(refusal_of(lambda: DamagedFile("a.png", "truncated")))
    'None'
    """
    try:
        call()
    except UserError as error:
        return error
    return None


class DamagedFile(Exception):
    """A file of a dataset cannot be decoded; `on_damage` of `data:` says whether that ends the run or is counted.

    Args:
        path: the file.
        why: what is wrong with it, a few words.
    """

    def __init__(self, path: Path | str, why: str) -> None:
        super().__init__(f"{path}: {why}")
        self.path = Path(path)
        self.why = why

    def __reduce__(self) -> tuple:
        """Pickle by arguments: damage crosses the border of a loader's worker process."""
        return type(self), (self.path, self.why)

    def refusal(self, count: int | None = None) -> UserError:
        """Return the line that ends a run because of this file; its key is relative to `data:`.

        Args:
            count: of damaged files, where all are known.

        >>> str(DamagedFile("a.png", "truncated").refusal())
        'on_damage: damaged file a.png: truncated; repair it, or set on_damage: skip'
        """
        in_all = "" if count is None else f" ({count} in all)"
        return UserError(
            f"damaged file {self.path}: {self.why}{in_all}; repair it, or set on_damage: skip", "on_damage"
        )
