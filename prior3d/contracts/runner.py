"""The contracts of work per scene: a job, and a runner that brings jobs somewhere."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

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
        build: writes the result's files into the (empty) folder it is given; can be pickled.
    """

    kind: str
    scene: str
    facts: Mapping[str, Any]
    build: Callable[[Path], None]


class Runner(ABC):
    """Runs scene jobs somewhere: in this process, in several, on a cluster.

    Subclasses take typed keyword options. What a job builds goes through the store, whose locks let any number of
    runners, on any machine that sees the folder, share the work; a runner only decides where `work` is called.
    """

    contract: ClassVar[int] = 1

    @abstractmethod
    def run(
        self, jobs: Sequence[SceneJob], work: Callable[[SceneJob], Path], progress: Progress = silent
    ) -> list[Path]:
        """Run all jobs and return the folders of their results, in the order of the jobs.

        Args:
            jobs: independent of each other.
            work: does one job, or finds it done; can be pickled; may be called for one job in several places at once.
            progress: shows how far it is.

        Raises:
            UserError: what a job raised.
        """
