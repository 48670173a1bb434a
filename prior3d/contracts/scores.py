"""Results of a probe, stored by scene or image so that intervals and differences can be computed later."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Metrics = Mapping[str, float]
"""Metric name, including the unit, to value."""

Totals = Mapping[str, Tensor]
"""Statistics summed over groups, from which metrics are computed."""

Summarize = Callable[[Totals], Metrics]


@dataclass(frozen=True)
class Scores:
    """Additive statistics by group: counts of hits, confusion matrices, sums of squared errors, histograms.

    They are additive: the metrics of any resampling of the groups follow from sums, without the features.

    Attributes:
        groups: names of the scenes, or of the images if the data has no scenes; a bootstrap resamples them.
        statistics: name to [G, ...] float64, the first axis over the groups.

    >>> scores = Scores(("a", "b"), {"hits": torch.tensor([1.0, 2.0])})
    >>> scores.total()["hits"].item()
    3.0
    """

    groups: tuple[str, ...]
    statistics: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        for name, values in self.statistics.items():
            if len(values) != len(self.groups):
                raise ValueError(f"expected {name} of {len(self.groups)} groups, got {len(values)}")

    def total(self, weights: Tensor | None = None) -> dict[str, Tensor]:
        """Return the sums over groups, each counted once or `weights` [G] times."""
        if weights is None:
            return {name: values.double().sum(0) for name, values in self.statistics.items()}
        return {name: torch.tensordot(weights.double(), values.double(), 1) for name, values in self.statistics.items()}

    def to_plain(self) -> dict[str, object]:
        """Return the scores as lists that JSON can hold."""
        return {
            "groups": list(self.groups),
            "statistics": {name: values.tolist() for name, values in self.statistics.items()},
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, object]) -> "Scores":
        """Return the scores that `to_plain` converted."""
        statistics = {name: torch.tensor(v, dtype=torch.float64) for name, v in plain["statistics"].items()}
        return cls(tuple(plain["groups"]), statistics)


def by_group(names: Sequence[str], group_of: Tensor, statistics: Mapping[str, Tensor]) -> Scores:
    """Sum the statistics of single images by group.

    Args:
        names: names of the G groups.
        group_of: [N] int64, the group of each image.
        statistics: name to [N, ...].

    Returns:
        The scores of the groups that have at least one image.

    >>> scores = by_group(["a", "b"], torch.tensor([0, 0, 1]), {"hits": torch.tensor([1.0, 0.0, 1.0])})
    >>> scores.groups, scores.statistics["hits"].tolist()
    (('a', 'b'), [1.0, 1.0])
    """
    present = torch.unique(group_of)
    row = torch.full((len(names),), -1, dtype=torch.int64)
    row[present] = torch.arange(len(present))
    rows = row[group_of.cpu()]
    summed = {
        name: torch.zeros(len(present), *values.shape[1:], dtype=torch.float64).index_add_(
            0, rows, values.detach().cpu().double()
        )
        for name, values in statistics.items()
    }
    return Scores(tuple(names[index] for index in present.tolist()), summed)
