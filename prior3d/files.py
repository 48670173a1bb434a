"""Files that are written completely or not at all, and keys that change with the content they stand for."""

import errno
import glob
import hashlib
import json
import math
import os
import re
import shutil
import socket
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from prior3d.errors import UserError

__all__ = [
    "canonical",
    "content_key",
    "fingerprint",
    "replacing",
    "synchronize",
    "write_atomically",
    "write_json",
    "writing",
]

_FULL = {errno.ENOSPC, errno.EDQUOT}
_CLOSED = {errno.EROFS, errno.EACCES, errno.EPERM}
_SAID_OF_FULL = re.compile(
    r"\d+ requested and \d+ written$|Not enough free space to write \d+ bytes"  # numpy
    r"|(.*\b)?(No space left on device|Disk quota exceeded)( \(os error \d+\))?$"  # torch, safetensors
)
"""Wording of libraries that drop the error number."""

_TORCH_FAILED = re.compile(
    r"\[enforce fail at inline_container\.cc:\d+\] \. unexpected pos \d+ vs \d+"
    r"|PytorchStreamWriter failed writing file|basic_ios::clear: iostream error"
)
"""Wording of torch if a write has failed, whatever the reason."""

_NOTHING_LEFT = 65536
"""Bytes below which a file system counts as full."""


@contextmanager
def writing(path: Path, key: str | None = None, kept: str = "") -> Iterator[None]:
    """Report in one line that `path` cannot be written because the disk is full or not writable.

    Args:
        path: the file or folder that the block writes; its folder exists.
        key: key of the option that sets the path.
        kept: what the message says in the end about that which was there before.

    Raises:
        UserError: replaces an error of the block that has this cause; all other errors pass unchanged.

    >>> with writing(Path("/data/cache"), "cache"):
    ...     raise OSError(errno.ENOSPC, "No space left on device")
    Traceback (most recent call last):
    prior3d.errors.UserError: cache: cannot write /data/cache: No space left on device; free some, or use another folder
    """
    try:
        yield
    except Exception as error:
        why = None if isinstance(error, UserError | BlockingIOError) else _why_not_written(error, path)
        if why is None:
            raise
        raise UserError(f"cannot write {path}: {why}{kept}", key) from error


@contextmanager
def writing_from_threads(path: Path, key: str | None = None) -> Iterator[None]:
    """Do as `writing`, for a block in which threads of other libraries write: what they would print is not printed.

    TensorBoard's writer fails in a thread of its own, which shows a traceback, and again in the thread that uses it.

    Args:
        path: the folder that the block writes to.
        key: of the option that says where it is.

    Raises:
        UserError: as `writing`.
    """
    print_error = threading.excepthook

    def print_others(failed: threading.ExceptHookArgs) -> None:
        if failed.exc_value is None or _why_not_written(failed.exc_value, path) is None:
            print_error(failed)

    threading.excepthook = print_others
    try:
        with writing(path, key):
            yield
    finally:
        threading.excepthook = print_error


def _why_not_written(error: BaseException, path: Path) -> str | None:
    """Return why a file system rejects a write and what to do; None if the error has another cause."""
    full = "No space left on device; free some, or use another folder"
    folder = path if path.is_dir() else path.parent
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in _FULL:
            return f"{os.strerror(cause.errno)}; free some, or use another folder"
        if isinstance(cause, OSError) and cause.errno in _CLOSED and _lies_in(cause.filename, folder):
            return f"{os.strerror(cause.errno)}; use a folder that can be written"
        if _drops_number(cause) and (
            _SAID_OF_FULL.match(str(cause)) or (_TORCH_FAILED.match(str(cause)) and _is_full(folder))
        ):
            return full
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return None


def _drops_number(error: BaseException) -> bool:
    """Return whether an error is of a kind that libraries raise for a failed write without its error number."""
    if isinstance(error, OSError):
        return error.errno is None
    return (
        isinstance(error, RuntimeError) or type(error).__name__ == "SafetensorError"
    )  # of a package not imported here


def _is_full(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    space = shutil.disk_usage(folder)
    return space.total > 0 and space.free < _NOTHING_LEFT  # /proc and the like have none at all


def _lies_in(file: object, folder: Path) -> bool:
    """Return whether an error about this file concerns the folder; an error without a file name may."""
    return not isinstance(file, str | os.PathLike) or Path(file).absolute().is_relative_to(folder.absolute())


@contextmanager
def replacing(path: Path, kept: str = "") -> Iterator[Path]:
    """Provide a temporary file to write, which replaces `path` atomically when the block ends.

    Readers always see the complete old or the complete new content, even after a crash. A block that raises keeps the
    old content and leaves no temporary file. Temporary files of killed processes of this machine are removed.

    Args:
        path: the file.
        kept: what errors say in the end about the old content.

    Raises:
        UserError: the disk is full, or the folder cannot be written.
    """
    mine = f".{path.name}.{socket.gethostname()}-"
    for left in path.parent.glob(f"{glob.escape(mine)}*.tmp"):
        if _is_of_the_dead(left.name.removeprefix(mine), r"(\d+)\.tmp"):
            _remove(left)
    temporary = path.with_name(f"{mine}{os.getpid()}.tmp")
    try:
        with writing(path, kept=kept):
            yield temporary
            synchronize(temporary)
            os.replace(temporary, path)
    finally:
        _remove(temporary)


def temporary_folder(prefix: str, parent: Path | None = None) -> tempfile.TemporaryDirectory:
    """Make a folder that goes when it is left, and remove those that killed processes of this machine left.

    Args:
        prefix: of its name, by which what was left is found.
        parent: where it is made; the system's folder for temporary files by default.

    Raises:
        UserError: the disk is full, or the parent cannot be written.
    """
    parent = Path(tempfile.gettempdir() if parent is None else parent)
    mine = f"{prefix}{socket.gethostname()}-"
    for left in parent.glob(f"{glob.escape(mine)}*"):
        if _is_of_the_dead(left.name.removeprefix(mine), r"(\d+)-[^-]+"):
            shutil.rmtree(left, ignore_errors=True)
    with writing(parent):
        return tempfile.TemporaryDirectory(prefix=f"{mine}{os.getpid()}-", dir=parent)


def _remove(temporary: Path) -> None:
    with suppress(OSError):  # already gone, or on a disk that became read-only
        temporary.unlink()


def _is_of_the_dead(name: str, pattern: str) -> bool:
    """Return whether the process in the rest of a temporary's name, after this machine's name, has ended.

    Another pattern belongs to another machine, whose name begins with this one's: `node-1` and `node`.
    """
    found = re.fullmatch(pattern, name, re.ASCII)
    if found is None:
        return False
    try:
        os.kill(int(found[1]), 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        return False
    return False


def synchronize(path: Path) -> None:
    """Force a file or folder to the disk: otherwise a rename may reach the disk before the renamed content."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file atomically: readers see the complete old or the complete new content, even after a crash.

    Args:
        path: the file; its folder exists.
        content: the complete content.

    Raises:
        UserError: the disk is full, or the folder cannot be written.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: Path, content: Mapping[str, object]) -> None:
    """Write plain values atomically as JSON; numbers that are not finite, which JSON lacks, become null."""
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
        facts: everything that the entry's bytes depend on, as plain JSON values; the order of keys does not matter.

    Raises:
        TypeError: a value is not plain JSON, so its text could differ between processes.
    """
    return hashlib.sha256(canonical(facts).encode()).hexdigest()[:20]


def canonical(facts: Mapping[str, Any]) -> str:
    """Return the canonical text of plain JSON values, independent of the order of their keys."""
    return json.dumps(facts, sort_keys=True, separators=(",", ":"), allow_nan=False)


def fingerprint(files: Iterable[Path]) -> str:
    """Return a text that changes with the names, sizes or times of files; their content is not read."""
    found = hashlib.sha256()
    for file in files:
        status = os.stat(file)
        found.update(os.fsencode(file) + f" {status.st_size} {status.st_mtime_ns};".encode())
    return found.hexdigest()
