"""Files of a study: one JSON per unit, and the chosen trials."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prior3d.contracts.scores import Scores
from prior3d.files import write_atomically
from prior3d.study.matrix import Matrix, Unit

FAILED = "failed"


@dataclass(frozen=True)
class Records:
    """The output folder of a study.

    Attributes:
        folder: Folder with the units' results.
        matrix: Matrix that determines which of them are still valid.
    """

    folder: Path
    matrix: Matrix

    def read(self, unit: Unit) -> dict[str, Any] | None:
        """Return the record of a unit, None if there is none or it is of another recipe."""
        path = self.folder / unit.path
        if not path.exists():
            return None
        record = json.loads(path.read_text(encoding="utf-8"))
        return record if record["key"] == self.matrix.key(unit) else None

    def done(self, unit: Unit) -> dict[str, Any] | None:
        """Return the record of a unit that did not fail."""
        record = self.read(unit)
        return None if record is None or FAILED in record else record

    def write(self, unit: Unit, record: dict[str, object]) -> None:
        """Write the record of a unit, atomically."""
        path = self.folder / unit.path
        path.parent.mkdir(parents=True, exist_ok=True)
        head = {"unit": unit.__dict__, "key": self.matrix.key(unit)}
        write_atomically(path, json.dumps(head | record).encode())

    def scores(self, unit: Unit, probe: str) -> Scores | None:
        """Return the scores of a probe in a unit."""
        record = self.done(unit)
        plain = record["scores"].get(probe) if record else None
        return Scores.from_plain(plain) if plain else None

    def seconds(self, unit: Unit) -> float:
        """Return how long a unit took; 0 if it was not done."""
        record = self.done(unit)
        return record["train seconds"] + record["probe seconds"] if record else 0.0
