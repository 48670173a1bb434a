"""What an evaluation leaves in its folder: the scores as they come, then the report; a later one goes on from there."""

import json
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from prior3d.evaluation.columns import RANDOM, Column, notes_on_models
from prior3d.evaluation.request import Request
from prior3d.evaluation.subjects import Subject
from prior3d.files import content_key
from prior3d.probes.classifier import classifier_digest
from prior3d.probes.keys import keys_of
from prior3d.probes.results import BEFORE, Results
from prior3d.reporting import About, Comparison, Drawings, write_report
from prior3d.reporting.events import write_events
from prior3d.reporting.writing import JSON, MARKDOWN

SCORES = "scores.json"


def open_results(
    out: Path,
    subject: Subject,
    request: Request,
    columns: Mapping[str, Column],
    started_from: Mapping[str, Mapping[str, Tensor]],
) -> tuple[Results, str]:
    """Return what is measured already, here or by the run itself, and a key of all that the report depends on."""
    weights = {name: column.key for name, column in columns.items()}
    classifiers = {
        name: classifier_digest(columns[name].backbones[0], checkpoint) for name, checkpoint in started_from.items()
    }
    keys = keys_of(request.tasks, request.probes, request.data, request.registry, weights, classifiers)
    results = Results.load(out / SCORES)
    results.file = out / SCORES
    results.keep_only(keys)
    if subject.run is not None:
        results.adopt(Results.load(subject.run.scores))
    texts = {name: column.text for name, column in columns.items()}
    scores = {task.label: [keys(task.label, name) for name in columns] for task in request.tasks}
    return results, content_key({"scores": scores, "columns": texts})


def key_of_report(out: Path) -> str | None:
    """Return the key of the report that is there already."""
    if not ((out / JSON).is_file() and (out / MARKDOWN).is_file()):
        return None
    return json.loads((out / JSON).read_text(encoding="utf-8")).get("key")


def describe(
    subject: Subject, request: Request, columns: Mapping[str, Column], key: str, against: Subject | None
) -> About:
    """Return what the report says beside the numbers."""
    notes = notes_on_models(columns)
    if subject.run is not None:
        notes.append(
            "One training run: the intervals hold the spread over scenes, not over training seeds. A claim about a"
            " prior needs several runs and a baseline."
        )
    if f"{BEFORE} + {RANDOM}" in columns:
        notes.append(
            "The control's features are random: more channels help a little whatever they hold. --control takes an"
            " independently trained model of the same size, a harder control."
        )
    name = subject.short_name
    title = f"{name} against {against.short_name}" if against else f"{name}, before and after training"
    return About(
        title if len(columns) > 1 else f"{name}, frozen features",
        {name: column.text for name, column in columns.items()},
        {name: column.models[0].facts() for name, column in columns.items() if len(column.models) == 1},
        tuple(notes),
        {"seed": request.seed},
        request.to_plain(),
        key,
    )


def write(out: Path, comparison: Comparison, drawings: Drawings, about: About) -> None:
    """Write the report and the events in place of earlier ones."""
    out.mkdir(parents=True, exist_ok=True)
    earlier = list(out.glob("events.out.tfevents.*"))
    write_events(out, comparison, drawings.figures)
    write_report(out, comparison, drawings.figures, about)
    for file in earlier:
        file.unlink()
