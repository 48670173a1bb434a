"""Small jobs for testing runners; here, and not in `testing`, because other processes import them without torch."""

import os
import signal
import time
from pathlib import Path

from prior3d.contracts.runner import Progress
from prior3d.errors import DamagedFile


def _begin(log: Path, number: int) -> None:
    with open(log / "log", "a", encoding="utf-8") as lines:
        lines.write(f"{number} {os.getpid()}\n")


def write(place: Path, number: int, folder: Path, progress: Progress) -> list[DamagedFile]:
    """Write the number of a job as its result, and record in `place` that this process began it."""
    _begin(place, number)
    for _ in progress(range(2), "writing", 2):
        (folder / "number.txt").write_text(str(number))
    return [DamagedFile(f"{number}.png", f"why {number}")]


def write_slowly(place: Path, number: int, folder: Path, progress: Progress) -> list[DamagedFile]:
    """Write the number after a tenth of a second."""
    time.sleep(0.1)
    return write(place, number, folder, progress)


def write_and_raise(place: Path, error: Exception, folder: Path, progress: Progress) -> None:
    """Write the number and fail."""
    write(place, 3, folder, progress)
    raise error


def write_and_die(checker: int, once: bool, place: Path, number: int, folder: Path, progress: Progress) -> None:
    """Write the number; kill this process at job 3, once or always, unless it is the checking process."""
    write(place, number, folder, progress)
    mark = place / "died"
    if number == 3 and os.getpid() != checker and not (once and mark.exists()):
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)


def write_and_interrupt(checker: int, place: Path, number: int, folder: Path, progress: Progress) -> None:
    """Write the number; at job 3 interrupt the checking process like Ctrl-C, and continue for a long time."""
    write(place, number, folder, progress)
    if number == 3:
        os.kill(checker, signal.SIGINT)
        time.sleep(5)


def write_much(size: int, folder: Path, progress: Progress) -> None:
    """Write the given number of bytes."""
    (folder / "data").write_bytes(bytes(size))
