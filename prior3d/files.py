"""Files written whole or not at all, and keys that change when what they stand for does."""

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that readers, and a crash at any moment, see the old content or the new, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(temporary, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_json(path: Path, content: Mapping[str, object]) -> None:
    """Write plain values, atomically; numbers that are not finite, which JSON does not know, become null."""
    write_atomically(path, json.dumps(_with_nulls(content), indent=2, allow_nan=False).encode())


def _with_nulls(value: object) -> object:
    if isinstance(value, Mapping):
        return {name: _with_nulls(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_with_nulls(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def content_key(facts: Mapping[str, Any]) -> str:
    """Return 20 hexadecimal digits that change whenever any of the facts changes.

    Args:
        facts: whatever the entry's bytes depend on, as plain JSON values; the order of keys does not matter.

    Raises:
        TypeError: a value is not plain JSON, so that its text would not be the same in every process.
    """
    return hashlib.sha256(canonical(facts).encode()).hexdigest()[:20]


def canonical(facts: Mapping[str, Any]) -> str:
    """Return the one text of plain JSON values, whatever the order of their keys."""
    return json.dumps(facts, sort_keys=True, separators=(",", ":"), allow_nan=False)


def fingerprint(files: Iterable[Path]) -> str:
    """Return a text that changes with the names, sizes or times of files; what they hold is not read."""
    found = hashlib.sha256()
    for file in files:
        status = os.stat(file)
        found.update(os.fsencode(file) + f" {status.st_size} {status.st_mtime_ns};".encode())
    return found.hexdigest()
