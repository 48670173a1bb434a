"""Errors that a user can cause: each is one line that says what is wrong, where, and what to do."""

from pathlib import Path


class UserError(Exception):
    """Something in a recipe, a plugin or the data is wrong; the command prints one line and exits with 2.

    Args:
        message: what is wrong and what to do about it, one sentence or two.
        key: dotted path of the recipe's key it is about, such as `data.root`; the command adds file and line.
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
