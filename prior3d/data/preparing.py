"""Preparing datasets before anything reads them: checked first, computed once, described, damage judged."""

from collections.abc import Callable, Sequence
from typing import Literal

from prior3d.contracts.dataset import Dataset
from prior3d.contracts.runner import Progress
from prior3d.errors import UserError


def prepare_datasets(
    datasets: Sequence[tuple[str, Dataset]],
    on_damage: Literal["refuse", "skip"],
    progress: Progress,
    say: Callable[[str], None],
    surface_of: Dataset | None = None,
) -> None:
    """Verify all data and compute what is computed once; say what there is, and what is damaged.

    Args:
        datasets: each with a name for messages.
        on_damage: of `data:`.
        progress: shows how far it is.
        say: takes lines for the log.
        surface_of: the dataset whose surfaces are needed, too.

    Raises:
        UserError: the files do not fit together, or one is damaged.
    """
    for _, dataset in datasets:
        dataset.verify()
    for name, dataset in datasets:
        dataset.prepare(progress)
        if dataset is surface_of:
            dataset.prepare_surface(progress)
        _judge_damage(dataset, on_damage, say)
        for line in dataset.describe():
            say(f"{name}: {line}")


def _judge_damage(dataset: Dataset, on_damage: Literal["refuse", "skip"], say: Callable[[str], None]) -> None:
    if dataset.damaged and on_damage == "refuse":
        first = dataset.damaged[0]
        raise UserError(
            f"damaged file {first.path}: {first.why} ({len(dataset.damaged)} in all); repair it, or set"
            " data.on_damage: skip",
            "data.on_damage",
        )
    for damage in dataset.damaged:
        say(f"skipped: {damage}")
