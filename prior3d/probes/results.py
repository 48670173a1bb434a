"""Scores of several models under several probes, stored as JSON, each with a key of the inputs it was measured on."""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from prior3d.contracts.probe import Probe, metrics_of
from prior3d.contracts.scores import Scores
from prior3d.files import write_atomically

BEFORE, AFTER = "before", "after"

KeyOf = Callable[[str, str | None], str | None]
"""Function from probe label and column (None for controls) to a text that changes with everything its scores depend on;
None for what is not measured."""

_FORMAT = 2


@dataclass
class Origin:
    """How one column of one probe was measured.

    Attributes:
        key: Key of everything that the scores depend on; None if it was not requested.
        seconds: Duration of the measurement.
        control: Whether this is a control, measured without a model.
    """

    key: str | None = None
    seconds: float | None = None
    control: bool = False


@dataclass
class Results:
    """Measured scores: probe label to column (a model or a control) to one `Scores` per seed.

    Attributes:
        scores: Scores by label and column.
        measured: Origin of the scores by label and column.
        file: File to write everything to after each `put`; None to write only with `save`.
        columns: Names of models and controls in the order of the tables.
    """

    scores: dict[str, dict[str, list[Scores]]] = field(default_factory=dict)
    measured: dict[str, dict[str, Origin]] = field(default_factory=dict)
    file: Path | None = None
    _keys: KeyOf | None = field(default=None, init=False, repr=False)
    _aside: dict[str, dict[str, tuple[list[Scores], Origin]]] = field(default_factory=dict, init=False, repr=False)

    def put(
        self, label: str, column: str, scores: list[Scores], seconds: float | None = None, control: bool = False
    ) -> None:
        """Set the scores of a probe on a model, or of a control."""
        self.scores.setdefault(label, {})[column] = scores
        found = Origin(self._key(label, column, control), seconds, control)
        self.measured.setdefault(label, {})[column] = found
        if self.file is not None:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self.save(self.file)

    def has(self, label: str, column: str) -> bool:
        """Return whether a probe has measured a model."""
        return column in self.scores.get(label, {})

    def has_controls(self, label: str) -> bool:
        """Return whether a probe has measured its controls."""
        return any(measured.control for measured in self.measured.get(label, {}).values())

    def keep_only(self, keys: KeyOf) -> None:
        """Drop scores of anything else, and give scores measured from now on their keys.

        Scores without a key, from other probes or models, are set aside: written with the rest, but not part of it.
        """
        self._keys = keys
        for label, columns in self.measured.items():
            for column in [name for name, found in columns.items() if not self._is_wanted(label, name, found)]:
                scores, found = self.scores[label].pop(column), columns.pop(column)
                if self._key(label, column, found.control) is None:
                    self._aside.setdefault(label, {})[column] = scores, found

    def adopt(self, others: "Results", columns: Iterable[str]) -> None:
        """Reuse scores that another run measured on the same inputs, under any model names.

        Args:
            others: Scores of the other run.
            columns: Names of the models to look for.
        """
        for label, theirs in others.measured.items():
            for column, found in theirs.items():
                for name in [column] if found.control else columns:
                    if self._is_wanted(label, name, found) and not self.has(label, name):
                        self.scores.setdefault(label, {})[name] = others.scores[label][column]
                        self.measured.setdefault(label, {})[name] = found

    def _is_wanted(self, label: str, column: str, found: Origin) -> bool:
        return found.key is not None and found.key == self._key(label, column, found.control)

    def _key(self, label: str, column: str, control: bool) -> str | None:
        return None if self._keys is None else self._keys(label, None if control else column)

    @property
    def columns(self) -> list[str]:
        """Columns over all probes: before, after, then the others in order of appearance."""
        found = dict.fromkeys(column for by_column in self.scores.values() for column in by_column)
        return [*(name for name in (BEFORE, AFTER) if name in found), *(n for n in found if n not in (BEFORE, AFTER))]

    def metrics(self, probes: Mapping[str, Probe]) -> dict[str, dict[str, dict[str, float]]]:
        """Return a dict from label to column to metric to value, the mean over seeds."""
        return {
            label: {
                column: metrics_of(probes[label], by_column[column]) for column in self.columns if column in by_column
            }
            for label, by_column in self.scores.items()
            if label in probes
        }

    def save(self, path: Path) -> None:
        """Write the scores, atomically."""
        everything = {label: dict(columns) for label, columns in self._aside.items()}
        for label, columns in self.scores.items():
            for column, scores in columns.items():
                found = self.measured.get(label, {}).get(column, Origin())
                everything.setdefault(label, {})[column] = scores, found
        plain = {
            label: {
                column: {**asdict(found), "scores": [one.to_plain() for one in scores]}
                for column, (scores, found) in columns.items()
            }
            for label, columns in everything.items()
        }
        write_atomically(path, json.dumps({"format": _FORMAT, "probes": plain}).encode())

    @classmethod
    def load(cls, path: Path) -> "Results":
        """Read the file that `save` wrote; return empty results if it is missing or of another version."""
        plain = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if plain.get("format") != _FORMAT:
            return cls()
        results = cls()
        for label, columns in plain["probes"].items():
            for column, entry in columns.items():
                scores = [Scores.from_plain(one) for one in entry.pop("scores")]
                results.scores.setdefault(label, {})[column] = scores
                results.measured.setdefault(label, {})[column] = Origin(**entry)
        return results
