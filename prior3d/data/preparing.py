"""Preparation of datasets before they are read: check files, run the one-time jobs, describe data, judge damage."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

from prior3d.contracts.dataset import Dataset
from prior3d.contracts.runner import Progress, Runner, silent
from prior3d.errors import DamagedFile, section
from prior3d.jobs import Store, run_jobs


@dataclass(frozen=True)
class DatasetUse:
    """A dataset and how a run uses it.

    Attributes:
        name: Name for messages.
        dataset: Dataset to prepare.
        fields: Fields that the run reads.
        key: Section of the recipe that describes it.
    """

    name: str
    dataset: Dataset
    fields: frozenset[str] = frozenset()
    key: str = "data"


def each_once(uses: Iterable[DatasetUse]) -> list[DatasetUse]:
    """Return the first use of each dataset; of equal names, the second becomes `test (2)`."""
    taken, found = Counter(), {}
    for use in uses:
        if id(use.dataset) not in found:
            taken[use.name] += 1
            number = taken[use.name]
            found[id(use.dataset)] = use if number == 1 else replace(use, name=f"{use.name} ({number})")
    return list(found.values())


def prepare_datasets(
    uses: Sequence[DatasetUse],
    on_damage: Literal["refuse", "skip"],
    progress: Progress,
    say: Callable[[str], None],
    runner: Runner | None = None,
) -> None:
    """Verify all data and run its one-time jobs; log a description of the data and any damage.

    Args:
        uses: Datasets and their use.
        on_damage: The option `data.on_damage`.
        progress: Shows progress.
        say: Takes lines for the log.
        runner: Runner of the jobs per scene; `local` by default.

    Raises:
        UserError: The files do not fit together, or one is damaged.
    """
    for use in uses:
        with section(use.key):
            use.dataset.verify()
    for use in uses:
        with refusing_damage(), section(use.key):
            prepare(use.dataset, use.fields, runner, progress, use.name)
        judge_damage(use.dataset.damaged, on_damage, say)
        for line in use.dataset.describe():
            say(f"{use.name}: {line}")


def prepare(
    dataset: Dataset,
    fields: frozenset[str] = frozenset(),
    runner: Runner | None = None,
    progress: Progress = silent,
    name: str | None = None,
) -> None:
    """Run a dataset's jobs, stage by stage.

    Args:
        dataset: Dataset to prepare.
        fields: Fields that will be read.
        runner: Runner of the jobs; `local` by default.
        progress: Shows the progress of each stage.
        name: Name of the data for the progress; its split by default.

    Raises:
        UserError: The job's error, with a key that is relative to the section that describes the data.
    """
    for jobs in dataset.jobs(fields):
        if jobs:
            run_jobs(jobs, Store(dataset.spec.cache), runner, progress, f"{name or dataset.spec.split}: {jobs[0].kind}")


def judge_damage(
    damaged: Sequence[DamagedFile], on_damage: Literal["refuse", "skip"], say: Callable[[str], None]
) -> None:
    """End the run because files are damaged, or log which are skipped.

    Args:
        damaged: Damaged files.
        on_damage: The option `data.on_damage`.
        say: Takes lines for the log.

    Raises:
        UserError: There are damaged files, and they are refused.
    """
    if damaged and on_damage == "refuse":
        with section("data"):
            raise damaged[0].refusal(len(damaged))
    for damage in damaged:
        say(f"skipped: {damage}")


@contextmanager
def refusing_damage() -> Iterator[None]:
    """Turn a damaged file that ends the run, raised in the block, into a UserError."""
    try:
        yield
    except DamagedFile as damage:
        with section("data"):
            raise damage.refusal() from damage
