"""A report as plain values, for report.json; numbers that do not exist are null."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from prior3d.probes.statistics import Estimate
from prior3d.probes.tasks import ProbeTask
from prior3d.reporting.comparison import Comparison, Row, Section, is_sure

if TYPE_CHECKING:
    from prior3d.reporting.writing import About

FORMAT = 1
"""Of report.json."""


def to_plain(comparison: Comparison, about: "About", figures: Mapping[str, str]) -> dict[str, object]:
    """Return a report as JSON can hold it.

    Args:
        comparison: the numbers.
        about: what else is said.
        figures: name to file, relative to the report.
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


def describe_data(task: ProbeTask) -> dict[str, object]:
    """Return what a probe was measured on: dataset, size of images, and for each part its split, images and scenes."""
    held_out = task.parts["held_out"]
    parts = {}
    for part, dataset in task.parts.items():
        images = sum(dataset.frame_count(scene) for scene in range(len(dataset.scenes)))
        read = images if task.most is None else min(images, task.most)
        parts[part] = {"split": dataset.spec.split, "images": read, "scenes": len(dataset.scenes)}
    return {"dataset": type(held_out).__name__, "image size": list(held_out.spec.size), **parts}


def _section(section: Section) -> dict[str, object]:
    task = section.task
    return {
        "probe": type(task.probe).__name__,
        "data": describe_data(task),
        "seeds": task.seeds if task.probe.seeded else 1,
        "models": list(section.models),
        "controls": list(section.controls),
        "metrics": {row.metric: _row(row) for row in section.rows},
    }


def _row(row: Row) -> dict[str, object]:
    return {
        "lower is better": row.lower_is_better,
        "columns": {
            name: {**_estimate(found), "by seed": [_finite(value) for value in row.by_seed[name]]}
            for name, found in row.columns.items()
        },
        "differences": {
            f"{ours} - {theirs}": {**_estimate(found), "p": _finite(found.p), "verdict": row.verdict((ours, theirs))}
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
