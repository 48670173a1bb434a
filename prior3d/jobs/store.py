"""What is computed once and shared by runs on disk: one folder per entry, whole or not there at all."""

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
from prior3d.files import canonical, content_key

_PARTIAL = ".partial"
_LOCK = ".lock"
_POLL_SECONDS = 0.05
_log = logging.getLogger(__name__)

# POSIX locks do not exclude threads of one process, and closing a second handle would drop the first one's lock: so one
# thread per entry and process. A forked child starts without any: the threads that hold them do not exist there.
_threads: dict[str, threading.Lock] = {}
os.register_at_fork(after_in_child=_threads.clear)


@dataclass(frozen=True)
class Store:
    """A folder of entries `root/kind/<content key>`, each built at most once.

    Attributes:
        root: the cache folder (`data.cache`); made when something is built.
    """

    root: Path

    def path(self, kind: str, facts: Mapping[str, Any]) -> Path:
        """Return where the entry for these facts lies, or would lie."""
        return Path(self.root) / kind / content_key(facts)

    def build(self, kind: str, facts: Mapping[str, Any], build: Callable[[Path], None], wait: bool = True) -> Path:
        """Return the entry's folder, built first where it does not exist; the facts are kept in its `facts.json`.

        Args:
            kind: what sort of entry, a folder name such as `rooms`.
            facts: what the entry depends on, see `content_key`.
            build: writes the entry's files into the (empty) folder it is given.
            wait: as in `build_once`.
        """

        def build_with_facts(folder: Path) -> None:
            build(folder)
            (folder / "facts.json").write_text(canonical(facts) + "\n", encoding="utf-8")

        return build_once(self.path(kind, facts), build_with_facts, wait)


def build_once(entry: Path, build: Callable[[Path], None], wait: bool = True) -> Path:
    """Return the folder `entry`, built first where it does not exist; safe for many processes, threads and kills.

    The first to come locks the entry, builds into a temporary folder beside it, forces that to the disk and renames
    it; the others wait and find it whole. If the builder dies (SIGKILL, power), the kernel releases its lock, one of
    the waiting takes over from the start, and the remains are removed. If `build` raises, nothing is left behind.

    Args:
        entry: the folder; its name must not begin with a dot.
        build: writes the entry's files into the (empty) folder it is given.
        wait: for whoever builds the entry at the moment.

    Raises:
        BlockingIOError: somebody is building the entry, and `wait` is false.
        UserError: the file system of the cache has no locks, or the cache cannot be written.
    """
    if entry.is_dir():  # without a lock, so that a finished cache may be read-only
        return entry
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the cache folder {entry.parent}: {error.strerror}", "data.cache") from error
    with _locked(entry, wait):
        if not entry.is_dir():
            _remove_stale(entry.parent, entry.name)
            _build(entry, build)
    return entry


def _build(entry: Path, build: Callable[[Path], None]) -> None:
    # A name of its own: should a child of a killed builder live on, it writes where nobody looks.
    partial = entry.parent / f".{entry.name}.{secrets.token_hex(4)}{_PARTIAL}"
    partial.mkdir()
    try:
        build(partial)
        for path in sorted(partial.rglob("*"), reverse=True):
            _synchronise(path)
        _synchronise(partial)
        partial.rename(entry)
        _synchronise(entry.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _synchronise(path: Path) -> None:
    """Force a file or folder to the disk: a rename may otherwise get there before what it renames."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove_stale(parent: Path, owned: str) -> None:
    """Remove what builders that died left in `parent`; `owned` is the entry whose lock the caller holds."""
    for partial in parent.glob(f".*{_PARTIAL}"):
        name = partial.name[1:].rsplit(".", 2)[0]
        if name == owned:
            shutil.rmtree(partial, ignore_errors=True)
            continue
        with contextlib.suppress(BlockingIOError), _locked(parent / name, wait=False):
            shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def _locked(entry: Path, wait: bool = True) -> Iterator[None]:
    """Hold the entry's lock, among processes and threads; BlockingIOError if it is taken and `wait` is false."""
    lock = entry.with_name(f".{entry.name}{_LOCK}")
    thread = _threads.setdefault(str(lock.absolute()), threading.Lock())
    if not thread.acquire(blocking=wait):
        raise BlockingIOError(errno.EAGAIN, "another thread builds", str(entry))
    try:
        # The lock file stays: removing it would let a third process lock a new one while a second waits for the old.
        with _open_lock(lock) as handle:
            _lock_file(handle.fileno(), entry, wait)
            yield
    finally:
        thread.release()


def _open_lock(lock: Path) -> TextIO:
    try:
        return open(lock, "a", encoding="utf-8")
    except PermissionError as error:
        raise UserError(f"the cache folder {lock.parent} cannot be written", "data.cache") from error


def _lock_file(handle: int, entry: Path, wait: bool) -> None:
    # lockf rather than flock: children forked by a builder do not inherit it, so it ends with the builder whatever they
    # do. Asked for again and again rather than waited for, because the kernel sees deadlocks between threads that are
    # none, and so that network file systems cannot block a Ctrl-C.
    waiting = False
    while True:
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                message = f"the file system of {entry.parent} has no file locks ({error.strerror}): use another folder"
                raise UserError(message, "data.cache") from error
            if not wait:
                raise BlockingIOError(errno.EAGAIN, "another process builds", str(entry)) from error
        if not waiting:
            _log.info("waiting for another process that builds %s", entry)
            waiting = True
        time.sleep(_POLL_SECONDS)
