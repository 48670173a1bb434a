"""From scores to numbers to show: every metric of every column, with its interval, and the differences."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from prior3d.contracts.probe import Probe, bounds_of
from prior3d.probes.results import Results
from prior3d.probes.statistics import Estimate, Resampled, difference, draw_groups, estimate, resample
from prior3d.probes.tasks import ProbeTask

Pair = tuple[str, str]
"""Two columns: the first minus the second."""


@dataclass(frozen=True)
class MetricRow:
    """One metric of one probe.

    Attributes:
        metric: Name of the metric, unit included.
        lower_is_better: Whether lower values are better.
        columns: Dict from model or control to its value.
        by_seed: Dict from model or control to its values, one per seed.
        differences: Dict from a pair of columns to the first minus the second.
    """

    metric: str
    lower_is_better: bool
    columns: dict[str, Estimate]
    by_seed: dict[str, tuple[float, ...]]
    differences: dict[Pair, Estimate]

    def verdict(self, pair: Pair, controls: Iterable[str] = ()) -> str:
        """Return better, worse, unclear or gained: the first of a pair relative to the second.

        Args:
            pair: Pair of columns.
            controls: Columns that need no model. A value that is surely better, but no better than one of them, has
                only gained.
        """
        change = self.differences.get(pair)
        if change is None or not is_sure(change) or change.low <= 0 <= change.high:
            return "unclear"
        if (change.value < 0) != self.lower_is_better:
            return "worse"
        return "gained" if self.unbeaten(pair[0], controls) else "better"

    def unbeaten(self, column: str, controls: Iterable[str]) -> list[str]:
        """Return the controls that a model does not beat, the best one first."""
        sign = 1 if self.lower_is_better else -1
        if column not in self.columns:
            return []
        ours = sign * self.columns[column].value
        values = {name: sign * self.columns[name].value for name in controls if name in self.columns}
        return sorted((name for name, value in values.items() if value <= ours), key=values.__getitem__)


@dataclass(frozen=True)
class Section:
    """All metrics of one probe.

    Attributes:
        task: The probe and its data.
        models: Columns that are models, in order.
        controls: Columns that need no model.
        rows: Metrics of the probe.
    """

    task: ProbeTask
    models: tuple[str, ...]
    controls: tuple[str, ...]
    rows: tuple[MetricRow, ...]


@dataclass(frozen=True)
class Comparison:
    """All measurements of several models.

    Attributes:
        sections: One section per probe.
        models: All columns that are models, in order.
        pairs: Pairs of columns to compare, the most important first.
    """

    sections: tuple[Section, ...]
    models: tuple[str, ...]
    pairs: tuple[Pair, ...]


def compare(
    tasks: Sequence[ProbeTask], results: Results, models: Sequence[str], pairs: Sequence[Pair], resamples: int = 1000
) -> Comparison:
    """Compute metrics, intervals and differences.

    Args:
        tasks: Probes with their data.
        results: Scores of the probes.
        models: Columns that are models, in order.
        pairs: Pairs of columns to compare, the first minus the second.
        resamples: Number of resamplings of scenes or images, for the intervals.
    """
    sections = [_section(task, results, models, pairs, resamples) for task in tasks if results.scores.get(task.label)]
    found = [model for model in models if any(model in section.models for section in sections)]
    return Comparison(tuple(sections), tuple(found), tuple(pair for pair in pairs if set(pair) <= set(found)))


def is_sure(found: Estimate) -> bool:
    """Return whether the uncertainty of a value is known: not with a single image and a single seed."""
    return found.standard_error > 0 and math.isfinite(found.low)


def _section(
    task: ProbeTask, results: Results, models: Sequence[str], pairs: Sequence[Pair], resamples: int
) -> Section:
    scores = results.scores[task.label]
    weights = {len(found[0].groups): draw_groups(len(found[0].groups), resamples) for found in scores.values()}
    resampled = {
        column: resample(found, task.probe.summarize, weights[len(found[0].groups)]) for column, found in scores.items()
    }
    own = [model for model in models if model in scores]
    controls = [column for column in scores if column not in models]
    columns = {column: resampled[column] for column in (*own, *controls)}
    metrics = dict.fromkeys(metric for model in columns.values() for metric in model.measured)
    rows = [_row(metric, columns, pairs, task.probe) for metric in metrics]
    return Section(task, tuple(own), tuple(controls), tuple(rows))


def _row(metric: str, columns: dict[str, Resampled], pairs: Sequence[Pair], probe: Probe) -> MetricRow:
    have = {name: model for name, model in columns.items() if metric in model.measured}
    return MetricRow(
        metric,
        metric in probe.lower_is_better,
        {name: estimate(model, metric, bounds_of(probe, metric)) for name, model in have.items()},
        {name: tuple(model.measured[metric].tolist()) for name, model in have.items()},
        {(a, b): difference(have[a], have[b], metric) for a, b in pairs if a in have and b in have},
    )
