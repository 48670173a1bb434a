"""The contracts of work per scene: a job, and a runner that brings jobs somewhere."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from prior3d.errors import DamagedFile

Progress = Callable[[Iterable, str, int], Iterable]
"""Wraps an iterable in a progress bar: (items, description, how many) -> the same items."""


def silent(items: Iterable, description: str, total: int) -> Iterable:
    """Show no progress."""
    return items


@dataclass(frozen=True)
class SceneJob:
    """Work that is done once for one scene, and kept: plain data that travels to other processes.

    Attributes:
        kind: what sort of result, a folder name such as `pairs` or `prepared/gaussian_distillation`.
        scene: its name, for messages.
        facts: plain JSON values on which the result depends: its key in the store.
        build: writes the result's files into the (empty) folder it is given, may show progress within the scene, and
            returns the files it left out because they are damaged, None where that cannot be; can be pickled.
        name: of the result's folder; None for the key of the facts.
        on_device: whether it computes on a GPU where there is one.
    """

    kind: str
    scene: str
    facts: Mapping[str, Any]
    build: Callable[[Path, Progress], Sequence[DamagedFile] | None]
    name: str | None = None
    on_device: bool = False

    def __str__(self) -> str:
        return f"{self.kind} of {self.scene}"


class Work(Protocol):
    """Does one job through the store's locks, or finds it done; can be pickled, together with jobs."""

    def __call__(self, job: SceneJob, wait: bool = True) -> bool:
        """Return True when the result is there; False, at once, where another process is at it and `wait` is false.

        Args:
            job: what to do.
            wait: for another process that is at it; should that one die, the job is done here.

        Raises:
            UserError: what the job raised, or the cache cannot be written.
        """
        ...


class Runner(ABC):
    """Runs scene jobs somewhere: in this process, in several, on a cluster.

    Subclasses take typed keyword options, the schema of `prepare:`. What jobs build goes through the store, whose
    locks let any number of runners, on any machines that see its folder, share the work; a runner only decides where
    `work` is called. A whole runner:

        class Threads(Runner):
            '''Runs jobs in threads of this process.'''

            def run(self, jobs, work):
                with ThreadPoolExecutor() as pool:
                    numbers = {pool.submit(work, job): number for number, job in enumerate(jobs)}
                    for done in as_completed(numbers):
                        done.result()  # raises what the job raised
                        yield numbers[done]

    `prior3d.testing.check_runner` says what else a runner must keep to.
    """

    contract: ClassVar[int] = 1

    @abstractmethod
    def run(self, jobs: Sequence[SceneJob], work: Work) -> Iterator[int]:
        """Do all jobs; yield the number of each, its place in `jobs`, once and as soon as its result is there.

        The first error ends the run and is raised as it is. When the iterator is closed (after an error elsewhere, or
        Ctrl-C), everything that was started has ended.

        Args:
            jobs: independent of each other; others may be at some of them, or have done them.
            work: does one job. Passing over those that others are at (`wait=False`), to come back to them last, lets
                several runners share the jobs; it may be called for one job in several places at once.

        Raises:
            UserError: what a job raised.
        """
