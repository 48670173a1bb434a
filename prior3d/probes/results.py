"""Scores of several models under several probes: kept as JSON, shown as one table."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rich.table import Table

from prior3d.probes.probe import Probe, metrics_of
from prior3d.probes.scores import Scores
from prior3d.weights import write_atomically

BEFORE, AFTER = "before", "after"


@dataclass
class Results:
    """What was measured: probe label to column (a model or a control) to one `Scores` per seed.

    Attributes:
        columns: names of models and controls in the order in which tables show them.
    """

    scores: dict[str, dict[str, list[Scores]]] = field(default_factory=dict)

    def put(self, label: str, column: str, scores: list[Scores]) -> None:
        """Set what a probe measured of a model."""
        self.scores.setdefault(label, {})[column] = scores

    def has(self, label: str, column: str) -> bool:
        """Whether a probe has measured a model."""
        return column in self.scores.get(label, {})

    @property
    def columns(self) -> list[str]:
        """Columns over all probes: before, after, then the others as they came."""
        found = dict.fromkeys(column for by_column in self.scores.values() for column in by_column)
        return [*(name for name in (BEFORE, AFTER) if name in found), *(n for n in found if n not in (BEFORE, AFTER))]

    def metrics(self, probes: Mapping[str, Probe]) -> dict[str, dict[str, dict[str, float]]]:
        """Return label to column to metric to value, the mean over seeds."""
        return {
            label: {
                column: metrics_of(probes[label], by_column[column]) for column in self.columns if column in by_column
            }
            for label, by_column in self.scores.items()
            if label in probes
        }

    def save(self, path: Path) -> None:
        """Write the scores, atomically."""
        plain = {
            label: {column: [one.to_plain() for one in scores] for column, scores in by_column.items()}
            for label, by_column in self.scores.items()
        }
        write_atomically(path, json.dumps(plain).encode())

    @classmethod
    def load(cls, path: Path) -> "Results":
        """Read what `save` wrote; nothing yet if there is no such file."""
        if not path.exists():
            return cls()
        plain = json.loads(path.read_text(encoding="utf-8"))
        return cls(
            {
                label: {column: [Scores.from_plain(one) for one in scores] for column, scores in by_column.items()}
                for label, by_column in plain.items()
            }
        )


def tabulate(results: Results, probes: Mapping[str, Probe], title: str) -> Table:
    """Return a table: a row per metric, a column for before, after, their difference, and each other model or control.

    Metrics of which less is better are marked with an arrow.
    """
    table = Table(title=title, title_justify="left")
    table.add_column("metric")
    for column in results.columns:
        table.add_column(column, justify="right")
        if column == AFTER and BEFORE in results.columns:
            table.add_column("change", justify="right")
    for label, by_column in results.metrics(probes).items():
        for metric in _metrics_in(by_column.values()):
            mark = " ↓" if metric in probes[label].lower_is_better else ""
            table.add_row(metric + mark, *_cells(results.columns, by_column, metric))
        table.add_section()
    return table


def _metrics_in(columns: Iterable[Mapping[str, float]]) -> list[str]:
    return list(dict.fromkeys(metric for metrics in columns for metric in metrics))


def _cells(columns: list[str], by_column: Mapping[str, Mapping[str, float]], metric: str) -> list[str]:
    cells = []
    for column in columns:
        value = by_column.get(column, {}).get(metric)
        cells.append("" if value is None else f"{value:.3f}")
        if column == AFTER and BEFORE in columns:
            before = by_column.get(BEFORE, {}).get(metric)
            cells.append("" if value is None or before is None else f"{value - before:+.3f}")
    return cells
