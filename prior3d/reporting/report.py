"""An existing report of probe results, to read from Python."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from prior3d.reporting.writing import JSON, MARKDOWN


@dataclass(frozen=True)
class Report:
    """The report in a folder, as `prior3d.evaluate` and `Run.report` return it.

    Attributes:
        folder: Folder with report.md, report.json and figures/.
    """

    folder: Path

    @classmethod
    def find(cls, folder: Path) -> "Report | None":
        """Return the report in a folder; None if there is none."""
        return cls(folder) if (folder / JSON).is_file() else None

    @cached_property
    def content(self) -> dict[str, Any]:
        """Content of report.json: models, probes, metrics with their intervals, figures, notes, versions."""
        return json.loads((self.folder / JSON).read_text(encoding="utf-8"))

    @property
    def text(self) -> str:
        """Text of report.md, Markdown."""
        return (self.folder / MARKDOWN).read_text(encoding="utf-8")

    @property
    def metrics(self) -> dict[str, dict[str, dict[str, float]]]:
        """Dict from probe to column (`before`, `after`, a control, ...) to metric to value."""
        found: dict[str, dict[str, dict[str, float]]] = {}
        for label, probe in self.content["probes"].items():
            for metric, row in probe["metrics"].items():
                for column, entry in row["columns"].items():
                    found.setdefault(label, {}).setdefault(column, {})[metric] = entry["value"]
        return found

    @property
    def figures(self) -> dict[str, Path]:
        """Dict from the name of a figure to its file."""
        return {name: self.folder / file for name, file in self.content["figures"].items()}

    def _repr_markdown_(self) -> str:
        return self.text
