"""Preparing datasets before anything reads them: checked first, computed once, described, damage judged."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from prior3d.contracts.dataset import Dataset
from prior3d.contracts.runner import Progress, Runner, silent
from prior3d.errors import DamagedFile, section
from prior3d.jobs import Store, run_jobs


@dataclass(frozen=True)
class DatasetUse:
    """A dataset, and what a run does with it.

    Attributes:
        name: for messages.
        dataset: the data.
        fields: what the run reads of it.
        key: the section of the recipe that describes it.
    """

    name: str
    dataset: Dataset
    fields: frozenset[str] = frozenset()
    key: str = "data"


def prepare_datasets(
    uses: Sequence[DatasetUse],
    on_damage: Literal["refuse", "skip"],
    progress: Progress,
    say: Callable[[str], None],
    runner: Runner | None = None,
) -> None:
    """Verify all data and compute what is computed once; say what there is, and what is damaged.

    Args:
        uses: the data.
        on_damage: of `data:`.
        progress: shows how far it is.
        say: takes lines for the log.
        runner: does the work per scene; `local` by default.

    Raises:
        UserError: the files do not fit together, or one is damaged.
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
    """Do a dataset's jobs, stage by stage.

    Args:
        dataset: the data.
        fields: what will be read of it.
        runner: does the jobs; `local` by default.
        progress: shows how far each stage is.
        name: of the data, for the progress; its split by default.

    Raises:
        UserError: its key is relative to the section that describes the data.
    """
    for jobs in dataset.jobs(fields):
        if jobs:
            run_jobs(jobs, Store(dataset.spec.cache), runner, progress, f"{name or dataset.spec.split}: {jobs[0].kind}")


def judge_damage(
    damaged: Sequence[DamagedFile], on_damage: Literal["refuse", "skip"], say: Callable[[str], None]
) -> None:
    """End the run because files are damaged, or say which are skipped.

    Args:
        damaged: the files.
        on_damage: of `data:`.
        say: takes lines for the log.

    Raises:
        UserError: there are any, and they are refused.
    """
    if damaged and on_damage == "refuse":
        with section("data"):
            raise damaged[0].refusal(len(damaged))
    for damage in damaged:
        say(f"skipped: {damage}")


@contextmanager
def refusing_damage() -> Iterator[None]:
    """Report a damaged file that ends the run, raised in the block, as the user's error."""
    try:
        yield
    except DamagedFile as damage:
        with section("data"):
            raise damage.refusal() from damage
