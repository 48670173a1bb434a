"""The contracts of work per scene: a job, and a runner that executes jobs."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from prior3d.errors import DamagedFile

Progress = Callable[[Iterable, str, int], Iterable]
"""A function that wraps an iterable in a progress bar: (items, description, number of items) -> the same items."""


def silent(items: Iterable, description: str, total: int) -> Iterable:
    """Show no progress."""
    return items


@dataclass(frozen=True)
class SceneJob:
    """Work done once for one scene, whose result is kept: plain data that can be sent to other processes.

    Attributes:
        kind: kind of result, a folder name such as `pairs` or `prepared/gaussian_distillation`.
        scene: name of the scene, for messages.
        facts: plain JSON values on which the result depends; they form its key in the store.
        build: function that writes the result's files into the (empty) folder it is given. It may show progress within
            the scene. It returns the files it left out because they are damaged, or None if there can be none. It can
            be pickled.
        name: name of the result's folder; None for the key of the facts.
        on_device: whether it computes on a GPU if there is one.
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
    """A function that does one job under the store's locks, or finds it done; it can be pickled together with jobs."""

    def __call__(self, job: SceneJob, wait: bool = True) -> bool:
        """Return True when the result exists; False at once if another process does the job and `wait` is false.

        Args:
            job: the job to do.
            wait: whether to wait for another process that is doing the job; if that process dies, the job is done here.

        Raises:
            UserError: the job raised it, or the cache cannot be written.
        """
        ...


class Runner(ABC):
    """A runner of scene jobs: in this process, in several processes, or on a cluster.

    Subclasses take typed keyword options, which define the schema of `prepare:`. Jobs write their results through the
    store. Its locks let any number of runners, on all machines that see its folder, share the work; a runner only
    decides where `work` is called. A complete runner:

        class Threads(Runner):
            '''Runs jobs in threads of this process.'''

            def run(self, jobs, work):
                with ThreadPoolExecutor() as pool:
                    numbers = {pool.submit(work, job): number for number, job in enumerate(jobs)}
                    for done in as_completed(numbers):
                        done.result()  # raises what the job raised
                        yield numbers[done]

    `prior3d.testing.check_runner` checks the other requirements of a runner.

    Attributes:
        contract: version of this contract. A plugin that sets the number it was written for is refused, in one line, by
            a prior3d with another number.
    """

    contract: ClassVar[int] = 1

    @abstractmethod
    def run(self, jobs: Sequence[SceneJob], work: Work) -> Iterator[int]:
        """Do all jobs; yield the number of each, its place in `jobs`, once and as soon as its result exists.

        The first error ends the run and is raised unchanged. Closing the iterator (after an error elsewhere, or Ctrl-C)
        ends all processes and threads that the runner started.

        Args:
            jobs: jobs that are independent of each other; other processes may be doing some of them, or may have done
                them.
            work: does one job. Several runners share the jobs if each skips those that others are doing (`wait=False`)
                and returns to them last. It may be called for one job in several places at once.

        Raises:
            UserError: a job raised it.
        """
