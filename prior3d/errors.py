"""Errors that a user can cause: each is one line that says what is wrong, where, and what to do."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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

    def put_within(self, key: str) -> None:
        """Make the key, relative so far to the section at `key`, relative to what holds that section."""
        if not key:
            return
        if not self.key:
            self.key = key
        elif not self.key.startswith("--"):
            self.key = f"{key}{self.key}" if self.key.startswith("[") else f"{key}.{self.key}"


@contextmanager
def section(key: str) -> Iterator[None]:
    """Give errors that are raised inside the block the key of the section that they are about.

    Sections nest: what a probe's dataset raises about `root` leaves `section("data")` within
    `section("probes.depth")` as `probes.depth.data.root`.

    Args:
        key: the section, relative to what holds it; a label, or dotted; empty for the section in hand itself.

    Raises:
        UserError: the one raised inside, of whatever subclass.

    >>> with section("probes.depth.data"):
    ...     raise UserError("no folder /scans", "root")
    Traceback (most recent call last):
    prior3d.errors.UserError: probes.depth.data.root: no folder /scans
    """
    try:
        yield
    except UserError as error:
        error.put_within(key)
        raise


class DamagedFile(Exception):
    """A file of a dataset cannot be decoded; `data.on_damage` says whether that ends the run or is counted.

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
