"""An evaluation from a command line to a report: check, prepare, measure, draw, write."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from torch import Tensor

from prior3d.contracts.dataset import Dataset
from prior3d.data.preparing import prepare_datasets
from prior3d.errors import UserError
from prior3d.evaluation import output
from prior3d.evaluation.arguments import Arguments, check_folder, choose_device, default_folder, other_subject
from prior3d.evaluation.columns import ALONE, Column, build_columns, pairs_of
from prior3d.evaluation.request import Request, build_request
from prior3d.evaluation.subjects import Subject, find_subject
from prior3d.pretraining.building import checkpoint_of
from prior3d.pretraining.machine import share_cores
from prior3d.pretraining.progress import Bars, make_console
from prior3d.probes.classifier import checkpoint_classifier
from prior3d.probes.measuring import applies, check_size, evaluate
from prior3d.probes.results import AFTER, BEFORE, Results
from prior3d.probes.tasks import ProbeTask
from prior3d.reporting import Drawings, compare, tabulate
from prior3d.reporting.writing import MARKDOWN, device_name


def run(arguments: Arguments) -> int:
    """Measure models and write a report; everything is checked before anything is written.

    Returns:
        The exit status 0.

    Raises:
        UserError: models, data or probes do not work; nothing is left behind.
    """
    subject = find_subject(arguments.model, arguments.overrides)
    try:
        device = choose_device(arguments.device)
        share_cores("cpu" if device == "cpu" else "gpu")
        against = other_subject(arguments.against, "--against") if arguments.against else None
        out = arguments.out or default_folder(subject, against, "eval")
        check_folder(out)
        request = build_request(subject, arguments.probes, arguments.seeds, arguments.plugins)
        columns = build_columns(subject, request, against, arguments.control)
        _measure_and_report(subject, request, columns, against, out, device)
    except UserError as error:
        raise subject.source.locate(error) from error
    return 0


def _measure_and_report(
    subject: Subject,
    request: Request,
    columns: Mapping[str, Column],
    against: Subject | None,
    out: Path,
    device: str,
) -> None:
    started = time.perf_counter()
    console = make_console()
    started_from = _checkpoints(request.tasks, columns)
    for task in request.tasks:
        for model in {id(model): model for column in columns.values() for model in column.models}.values():
            with task.locating():
                task.probe.check(model.backbone)
    _prepare(request, columns, console)
    results, key = output.open_results(out, subject, request, columns, started_from)
    about = output.describe(subject, request, columns, key, against)
    is_new = output.key_of_report(out) != key or not _is_complete(request, columns, results)
    drawings = Drawings()
    if is_new:
        _measure(request, columns, started_from, results, drawings, console, device)
    comparison = compare(request.tasks, results, list(columns), pairs_of(list(columns)))
    console.print(tabulate(comparison, about.title))
    if is_new:
        facts = {"device": device_name(device), "seconds": round(time.perf_counter() - started, 1)}
        output.write(out, comparison, drawings, replace(about, facts={**about.facts, **facts}))
    console.print(f"{'' if is_new else 'nothing is new; '}report: {out / MARKDOWN}")


def _prepare(request: Request, columns: Mapping[str, Column], console: Console) -> None:
    """Say what is compared, compute what the data need, and refuse what cannot be measured."""
    for name, column in columns.items():
        console.print(f"{name}: {column.text}")
    for label, why in request.left_out.items():
        console.print(f"left out: {label}: {why}")
    datasets = _datasets(request.tasks)
    prepare_datasets(datasets, request.data.on_damage, Bars(console), console.print)
    for _, dataset in datasets:
        if not sum(dataset.frame_count(scene) for scene in range(len(dataset.scenes))):
            raise UserError(f"the {dataset.spec.split} split is empty: there is nothing to measure on", "data")
    models = {id(model): model for column in columns.values() for model in column.models}
    for size in {dataset.spec.size for _, dataset in datasets}:
        for model in models.values():
            check_size(model.backbone, size)


def _datasets(tasks: Sequence[ProbeTask]) -> list[tuple[str, Dataset]]:
    """Return the data of the probes, each once, with names to tell them apart."""
    found = {}
    for task in tasks:
        for dataset in task.parts.values():
            found.setdefault(id(dataset), (f"{type(dataset).__name__}, {dataset.spec.split}", dataset))
    return list(found.values())


def _is_complete(request: Request, columns: Mapping[str, Column], results: Results) -> bool:
    return all(
        results.has(task.label, name)
        for task in request.tasks
        for name, column in columns.items()
        if applies(task, column.backbones)
    )


def _checkpoints(tasks: Sequence[ProbeTask], columns: Mapping[str, Column]) -> dict[str, Mapping[str, Tensor]]:
    """Return the weights of the columns with their classifiers, if a probe needs them.

    Raises:
        UserError: there is no classifier.
    """
    asking = [task.label for task in tasks if task.probe.needs_classifier]
    found = {}
    for name, column in columns.items() if asking else ():
        if len(column.models) == 1:
            (model,) = column.models
            weights = checkpoint_of(model.section)
            if weights is None or checkpoint_classifier(model.backbone, weights) is None:
                raise UserError(f"needs a classifier, and {name} has none: {model.text}", f"probes.{asking[0]}")
            found[name] = weights
    return found


def _measure(
    request: Request,
    columns: Mapping[str, Column],
    started_from: Mapping[str, Mapping[str, Tensor]],
    results: Results,
    drawings: Drawings,
    console: Console,
    device: str,
) -> None:
    evaluate(
        request.tasks,
        {name: column.backbones for name, column in columns.items()},
        results,
        device,
        workers=request.data.workers,
        progress=Bars(console),
        started_from=started_from,
        draw=drawings,
        drawn=[name for name in columns if name in (BEFORE, AFTER, ALONE)],
    )
