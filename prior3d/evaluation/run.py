"""An evaluation from names of models to a report: check, prepare, measure, plot, write; a repeated run continues it."""

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from rich.console import Console

from prior3d.data.preparing import DatasetUse, each_once, prepare_datasets
from prior3d.errors import ArgumentError, UserError, argument, section
from prior3d.evaluation.columns import Column, build_columns, notes_on_models, pairs_of, single_names
from prior3d.evaluation.models import Subject, find_other, find_subject
from prior3d.evaluation.request import Request, build_request
from prior3d.files import content_key, temporary_folder
from prior3d.jobs.running import make_runner
from prior3d.pretraining.building import weights_with_classifier
from prior3d.pretraining.machine import choose_device, sharing_cores
from prior3d.pretraining.progress import Bars, make_console
from prior3d.probes.classifier import classifier_digest
from prior3d.probes.keys import keys_of
from prior3d.probes.measuring import Measuring, StateDict, applies, check_size
from prior3d.probes.results import Results
from prior3d.probes.tasks import ProbeTask, uses_of
from prior3d.recipe.source import COMMAND_LINE
from prior3d.reporting import JSON, MARKDOWN, About, Comparison, Plots, compare, device_name, tabulate, write_report
from prior3d.reporting.events import write_events
from prior3d.reporting.report import Report

SCORES = "scores.json"


@dataclass(frozen=True)
class Arguments:
    """Arguments of `prior3d-eval`.

    Attributes:
        model: A run folder, a weight file or a model of timm.
        against: Another model to compare with; None for the run's initial weights, or for no comparison.
        control: Another model of the same size, trained independently; None for random weights.
        probes: Names of the probes; none for those of the run's recipe, or the default ones.
        seeds: Number of measurements, each with a different probe seed.
        out: Folder for the report.
        overrides: Values `key.path=value`.
        plugins: Further plugin files.
        device: Device to measure on.
        overrides_name: Name of the overrides in messages.
    """

    model: str
    against: str | None = None
    control: str | None = None
    probes: Sequence[str] = ()
    seeds: int | None = None
    out: Path | None = None
    overrides: Sequence[str] = ()
    plugins: Sequence[str] = ()
    device: Literal["auto", "cpu", "cuda"] = "auto"
    overrides_name: str = COMMAND_LINE


def run(arguments: Arguments) -> None:
    """Run `prior3d-eval`: measure models and write a report, showing progress.

    Raises:
        UserError: Models, data or probes do not work; no files remain.
    """
    measure_and_report(arguments, make_console())


def measure_and_report(arguments: Arguments, console: Console) -> Report:
    """Measure models and write a report; everything is checked before anything is written.

    Args:
        arguments: Arguments of the command.
        console: Shows progress and the table.

    Raises:
        UserError: Models, data or probes do not work; no files remain.
    """
    subject = find_subject(arguments.model, arguments.overrides, arguments.overrides_name)
    with subject.source.locating(), sharing_cores(arguments.device):
        device = device_of(arguments)
        against = find_other(arguments.against, "against") if arguments.against else None
        out = arguments.out or default_folder(subject, against, "eval")
        check_folder(out)
        request = build_request(subject, arguments.probes, arguments.seeds, arguments.plugins)
        columns = build_columns(subject, request, against, arguments.control)
        try:
            return _measure_and_report(subject, request, columns, against, out, device, console)
        finally:
            with suppress(OSError):  # it holds something, or was never made
                out.rmdir()


def device_of(arguments: Arguments) -> str:
    """Return the device to measure on, cpu or cuda; raise UserError if a GPU is requested and there is none."""
    device = choose_device(arguments.device)
    if arguments.device == "cuda" and device != "cuda":
        raise ArgumentError("there is no GPU that torch can use", "device")
    return device


def check_folder(out: Path) -> None:
    """Raise UserError if a folder cannot be created or written to; leave nothing in it."""
    existing = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    if not existing.is_dir():
        raise ArgumentError(f"{existing} is not a folder", "out")
    try:
        with argument("out"), temporary_folder(".prior3d-", existing):
            pass
    except OSError as error:
        raise ArgumentError(f"cannot write to {existing}: {error.strerror}", "out") from error


def default_folder(subject: Subject, against: Subject | None, what: str) -> Path:
    """Return the output folder: in the run folder, or in the current one."""
    suffix = "" if against is None else f"-against-{against.short_name}"
    if subject.run is not None:
        return subject.run.path / f"{what}{suffix}"
    return Path(f"{what}-{subject.short_name}{suffix}")


def _measure_and_report(
    subject: Subject,
    request: Request,
    columns: Mapping[str, Column],
    against: Subject | None,
    out: Path,
    device: str,
    console: Console,
) -> Report:
    started = time.perf_counter()
    started_from = _started_from(request.tasks, columns)
    for task in request.tasks:
        for model in {id(model): model for column in columns.values() for model in column.models}.values():
            with task.section():
                task.probe.check(model.backbone)
    _prepare(request, columns, console)
    results, key = _open_results(out, subject, request, columns, started_from)
    about = _describe(subject, request, columns, key, against)
    is_new = _key_of_report(out) != key or not _is_complete(request, columns, results)
    plots = Plots()
    if is_new:
        Measuring(device, request.data.workers, started_from).run(
            request.tasks,
            {name: column.backbones for name, column in columns.items()},
            results,
            progress=Bars(console),
            plot=plots,
            plotted=single_names(columns),
        )
    comparison = compare(request.tasks, results, list(columns), pairs_of(columns))
    console.print(tabulate(comparison, about.title))
    if is_new:
        facts = {"device": device_name(device), "seconds": round(time.perf_counter() - started, 1)}
        _write(out, comparison, plots, replace(about, facts={**about.facts, **facts}))
    console.print(f"{'' if is_new else 'nothing is new; '}report: {out / MARKDOWN}")
    return Report(out)


def _prepare(request: Request, columns: Mapping[str, Column], console: Console) -> None:
    """Describe the comparison, run the jobs of the data, and refuse what cannot be measured."""
    for name, column in columns.items():
        console.print(f"{name}: {column.text}")
    for label, why in request.left_out.items():
        console.print(f"left out: {label}: {why}")
    runner = make_runner(request.prepare.runner, request.prepare.options, request.registry)
    prepare_datasets(_datasets(request.tasks), request.data.on_damage, Bars(console), console.print, runner)
    models = {id(model): model for column in columns.values() for model in column.models}
    for task in request.tasks:
        with task.section(), section("data"):
            for dataset in task.parts.values():
                if not sum(dataset.frame_count(scene) for scene in range(len(dataset.scenes))):
                    raise UserError(f"the {dataset.spec.split} split is empty: there is nothing to measure on")
                for model in models.values():
                    check_size(model.backbone, dataset.spec.size)


def _datasets(tasks: Sequence[ProbeTask]) -> list[DatasetUse]:
    """Return the datasets of the probes, each once, with distinct names."""
    return each_once(uses_of(tasks, lambda task, dataset: f"{type(dataset).__name__}, {dataset.spec.split}"))


def _started_from(tasks: Sequence[ProbeTask], columns: Mapping[str, Column]) -> dict[str, StateDict]:
    """Return the weights of the columns with their classifiers, if a probe needs them.

    Raises:
        UserError: There is no classifier.
    """
    found = {}
    for name in single_names(columns):
        (model,) = columns[name].models
        lacking = f"needs a classifier, and {name} has none: {model.text}"
        found[name] = weights_with_classifier(tasks, model.backbone, model.section, lacking)
    return {name: weights for name, weights in found.items() if weights is not None}


def _is_complete(request: Request, columns: Mapping[str, Column], results: Results) -> bool:
    return all(
        results.has(task.label, name)
        for task in request.tasks
        for name, column in columns.items()
        if applies(task, column.backbones)
    )


def _open_results(
    out: Path,
    subject: Subject,
    request: Request,
    columns: Mapping[str, Column],
    started_from: Mapping[str, StateDict],
) -> tuple[Results, str]:
    """Return existing results, from here or the run itself, and a key of everything that the report depends on."""
    weights = {name: column.key for name, column in columns.items()}
    classifiers = {
        name: classifier_digest(columns[name].backbones[0], checkpoint) for name, checkpoint in started_from.items()
    }
    keys = keys_of(request.tasks, request.probes, request.data, request.registry, weights, classifiers)
    results = Results.load(out / SCORES)
    results.file = out / SCORES
    results.keep_only(keys)
    if subject.run is not None:
        results.adopt(Results.load(subject.run.scores), single_names(columns))
    texts = {name: column.text for name, column in columns.items()}
    scores = {task.label: [keys(task.label, name) for name in columns] for task in request.tasks}
    return results, content_key({"scores": scores, "columns": texts})


def _key_of_report(out: Path) -> str | None:
    """Return the key of the existing report."""
    if not ((out / JSON).is_file() and (out / MARKDOWN).is_file()):
        return None
    return json.loads((out / JSON).read_text(encoding="utf-8")).get("key")


def _describe(
    subject: Subject, request: Request, columns: Mapping[str, Column], key: str, against: Subject | None
) -> About:
    """Return the report's description of models and measurements."""
    notes = [*notes_on_models(columns), *(f"{label} was left out: {why}." for label, why in request.left_out.items())]
    if subject.run is not None:
        notes.append(
            "One training run: the intervals hold the spread over scenes, not over training seeds. A claim about a"
            " prior needs several runs and a baseline."
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


def _write(out: Path, comparison: Comparison, plots: Plots, about: About) -> None:
    """Write the report and the events, replacing earlier ones."""
    out.mkdir(parents=True, exist_ok=True)
    earlier = list(out.glob("events.out.tfevents.*"))
    write_events(out, comparison, plots.figures)
    write_report(out, comparison, plots.figures, about)
    for file in earlier:
        file.unlink()
