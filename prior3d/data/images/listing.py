"""Lists of very many files: found without a query per file, stored without an object per file."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np


class PathTable(Sequence[str]):
    """Relative paths in one block of memory: workers copy a list of a million strings by counting references to it."""

    def __init__(self, names: Iterable[str]) -> None:
        encoded = [os.fsencode(name) for name in names]
        self._ends = np.cumsum([0, *(len(name) for name in encoded)], dtype=np.int64)
        self._bytes = b"".join(encoded)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return os.fsdecode(self._bytes[self._ends[index] : self._ends[index + 1]])


def list_files(root: Path, endings: tuple[str, ...], exclude: Sequence[Path] = ()) -> list[str]:
    """Return the sorted paths below `root` of files with these extensions, without a query about the files."""
    seen = {_identity(folder) for folder in exclude}
    found, pending = [], [""]
    while pending:
        below = pending.pop()
        identity = _identity(root / below)
        if identity in seen:  # a folder that a link inside it points to
            continue
        seen.add(identity)
        with os.scandir(root / below) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.name.lower().endswith(endings):
                    found.append(below + entry.name)
                elif entry.is_dir():
                    pending.append(f"{below}{entry.name}/")
    return sorted(found)


def _identity(folder: Path) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino
