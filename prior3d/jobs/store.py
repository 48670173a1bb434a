"""Results that are computed once and shared by runs on disk: one folder per entry, complete or absent."""

import contextlib
import errno
import fcntl
import logging
import os
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from prior3d.errors import UserError
from prior3d.files import canonical, content_key, synchronize, writing

_PARTIAL = ".partial"
_LOCK = ".lock"
_POLL_SECONDS = 0.05
_log = logging.getLogger(__name__)

# POSIX locks do not exclude threads of one process, and closing a second handle would drop the first one's lock: so one
# thread per entry and process. A forked child starts with none: the threads that hold them do not exist there.
_threads: dict[str, threading.Lock] = {}
os.register_at_fork(after_in_child=_threads.clear)


class Busy(BlockingIOError):
    """Another process, or another thread, is building the entry."""


@dataclass(frozen=True)
class Store:
    """A folder of entries `root/kind/<content key>`, each built at most once.

    Attributes:
        root: the cache folder (`cache` of `data:`); created when the first entry is built.
        key: key of the option that sets the folder, relative to the current section; None if no option does.
    """

    root: Path
    key: str | None = "cache"

    def path(self, kind: str, facts: Mapping[str, Any], name: str | None = None) -> Path:
        """Return the path of the entry for these facts, whether or not it exists; a given name replaces the key."""
        return Path(self.root) / kind / (name or content_key(facts))

    def build(
        self,
        kind: str,
        facts: Mapping[str, Any],
        build: Callable[[Path], None],
        wait: bool = True,
        name: str | None = None,
    ) -> Path:
        """Return the entry's folder, building it if it does not exist; its `facts.json` stores the facts.

        Args:
            kind: kind of entry, a folder name such as `rooms`.
            facts: everything that the entry depends on, see `content_key`.
            build: writes the entry's files into the (empty) folder it is given.
            wait: see `build_once`.
            name: name of the folder, instead of the key of the facts.
        """

        def build_with_facts(folder: Path) -> None:
            build(folder)
            (folder / "facts.json").write_text(canonical(facts) + "\n", encoding="utf-8")

        return build_once(self.path(kind, facts, name), build_with_facts, wait, self.key)

    def clear(self, kind: str) -> None:
        """Remove partly written entries of a kind that killed builders left."""
        folder = Path(self.root) / kind
        with contextlib.suppress(UserError):  # a folder that cannot be written has none of our files
            _remove_stale(folder)


def build_once(entry: Path, build: Callable[[Path], None], wait: bool = True, key: str | None = "cache") -> Path:
    """Return the folder `entry`, building it if it does not exist; safe with many processes, threads and kills.

    The first process locks the entry, builds into a temporary folder next to it, forces that to the disk and renames
    it; the others wait and find it complete. If the builder dies (SIGKILL, power loss), the kernel releases its lock, a
    waiting process removes the remains and starts again. If `build` raises, nothing remains.

    Args:
        entry: the folder; its name must not begin with a dot.
        build: writes the entry's files into the (empty) folder it is given.
        wait: whether to wait until the entry exists if another process is building it.
        key: key of the option that sets the folder of the entries, for errors.

    Raises:
        Busy: another process is building the entry, and `wait` is false.
        UserError: the file system of the cache has no locks, is full, or cannot be written.
    """
    if entry.is_dir():  # checked without a lock, so a finished cache may be read-only
        return entry
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {entry.parent}: {error.strerror}; use another one", key) from error
    with _locked(entry, wait, key):
        if not entry.is_dir():
            _remove_stale(entry.parent, entry.name)
            _build(entry, build, key)
    return entry


def _build(entry: Path, build: Callable[[Path], None], key: str | None) -> None:
    # A unique name: a surviving child of a killed builder then writes to a folder that nobody reads.
    partial = entry.parent / f".{entry.name}.{secrets.token_hex(4)}{_PARTIAL}"
    try:
        with writing(entry.parent, key):  # checks the free space before the temporary folder is removed
            partial.mkdir()
            build(partial)
            for path in sorted(partial.rglob("*"), reverse=True):
                synchronize(path)
            synchronize(partial)
            partial.rename(entry)
            synchronize(entry.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _remove_stale(parent: Path, owned: str | None = None) -> None:
    """Remove remains of dead builders in `parent`; `owned` is the entry whose lock the caller holds, if any."""
    for partial in parent.glob(f".*{_PARTIAL}"):
        name = partial.name[1:].rsplit(".", 2)[0]
        if name == owned:
            shutil.rmtree(partial, ignore_errors=True)
            continue
        with contextlib.suppress(Busy), _locked(parent / name, wait=False):
            shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def _locked(entry: Path, wait: bool = True, key: str | None = None) -> Iterator[None]:
    """Hold the entry's lock among processes and threads; raise Busy if it is taken and `wait` is false."""
    lock = entry.with_name(f".{entry.name}{_LOCK}")
    thread = _threads.setdefault(str(lock.absolute()), threading.Lock())
    if not thread.acquire(blocking=wait):
        raise Busy(errno.EAGAIN, "another thread builds", str(entry))
    try:
        # The lock file stays: removing it would let a third process lock a new one while a second waits for the old.
        with _open_lock(lock, key) as handle:
            _lock_file(handle.fileno(), entry, wait, key)
            yield
    finally:
        thread.release()


def _open_lock(lock: Path, key: str | None) -> TextIO:
    with writing(lock.parent, key):
        return open(lock, "a", encoding="utf-8")


def _lock_file(handle: int, entry: Path, wait: bool, key: str | None) -> None:
    # lockf rather than flock: children forked by a builder do not inherit it, so it always ends with the builder. The
    # loop polls instead of waiting in the kernel, because the kernel reports false deadlocks between threads, and
    # because a network file system could otherwise block Ctrl-C.
    waiting = False
    while True:
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                message = f"the file system of {entry.parent} has no file locks ({error.strerror}): use another folder"
                raise UserError(message, key) from error
            if not wait:
                raise Busy(errno.EAGAIN, "another process builds", str(entry)) from error
        if not waiting:
            _log.info("waiting for another process that builds %s", entry)
            waiting = True
        time.sleep(_POLL_SECONDS)
