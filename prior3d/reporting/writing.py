"""Writing a report: figures first, then report.json and report.md, which refer to them; each file is complete."""

import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from prior3d.files import write_atomically
from prior3d.probes.statistics import Estimate
from prior3d.reporting.about import About, describe_data, versions
from prior3d.reporting.comparison import Comparison, MetricRow, Section, is_sure
from prior3d.reporting.markdown import to_markdown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

JSON, MARKDOWN, FIGURES = "report.json", "report.md", "figures"

FORMAT = 1
"""Version of report.json."""


def write_report(folder: Path, comparison: Comparison, figures: "Mapping[str, Figure]", about: About) -> Path:
    """Write figures/*.png, report.json and report.md into a folder; return the path of report.md.

    Args:
        folder: Output folder, created if it is missing; figures of an earlier report are removed.
        comparison: Numbers of the report.
        figures: Dict from name to figure; `depth/predictions` becomes figures/depth-predictions.png.
        about: Other content of the report.
    """
    (folder / FIGURES).mkdir(parents=True, exist_ok=True)
    files = {name: f"{FIGURES}/{_file_name(name)}.png" for name in figures}
    for name, figure in figures.items():
        content = io.BytesIO()
        figure.savefig(content, format="png")
        write_atomically(folder / files[name], content.getvalue())
    plain = {**to_plain(comparison, about, files), "versions": versions()}
    write_atomically(folder / JSON, json.dumps(plain, indent=1, allow_nan=False).encode())
    write_atomically(folder / MARKDOWN, to_markdown(comparison, about, files, versions()).encode())
    for stale in set((folder / FIGURES).glob("*.png")) - {folder / file for file in files.values()}:
        stale.unlink()
    return folder / MARKDOWN


def to_plain(comparison: Comparison, about: About, figures: Mapping[str, str]) -> dict[str, object]:
    """Return a report as plain values for JSON.

    Args:
        comparison: Numbers of the report.
        about: Other content of the report.
        figures: Dict from name to file, relative to the report.
    """
    return {
        "format": FORMAT,
        "title": about.title,
        "key": about.key,
        "columns": dict(about.columns),
        "models": {name: dict(facts) for name, facts in about.models.items()},
        "probes": {section.task.label: _section(section) for section in comparison.sections},
        "figures": dict(figures),
        "notes": list(about.notes),
        "measured": dict(about.facts),
        "recipe": dict(about.sections),
    }


def _section(section: Section) -> dict[str, object]:
    task = section.task
    return {
        "probe": type(task.probe).__name__,
        "data": describe_data(task),
        "seeds": task.seeds if task.probe.seeded else 1,
        "models": list(section.models),
        "controls": list(section.controls),
        "metrics": {row.metric: _row(row, section.controls) for row in section.rows},
    }


def _row(row: MetricRow, controls: Sequence[str]) -> dict[str, object]:
    return {
        "lower is better": row.lower_is_better,
        "columns": {
            name: {**_estimate(found), "by seed": [_finite(value) for value in row.by_seed[name]]}
            for name, found in row.columns.items()
        },
        "differences": {
            f"{ours} - {theirs}": {
                **_estimate(found),
                "p": _finite(found.p),
                "verdict": row.verdict((ours, theirs), controls),
                "controls not beaten": row.unbeaten(ours, controls),
            }
            for (ours, theirs), found in row.differences.items()
        },
    }


def _estimate(found: Estimate) -> dict[str, object]:
    sure = is_sure(found)
    return {
        "value": _finite(found.value),
        "interval": [found.low, found.high] if sure else None,
        "spread over seeds": _finite(found.spread),
        "standard error": _finite(found.standard_error) if sure else None,
        "groups": found.groups,
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _file_name(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in name)
