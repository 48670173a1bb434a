"""Probes before and after training, and their report in the run folder."""

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from prior3d.backbone import Backbone
from prior3d.files import write_json
from prior3d.pretraining.building import weights_with_classifier
from prior3d.pretraining.machine import choose_device
from prior3d.pretraining.progress import Bars
from prior3d.probes.classifier import classifier_digest
from prior3d.probes.keys import keys_of
from prior3d.probes.measuring import Measuring
from prior3d.probes.results import AFTER, BEFORE, Results
from prior3d.reporting import About, Plots, compare, device_name, tabulate, write_report
from prior3d.reporting.events import write_events

if TYPE_CHECKING:
    from prior3d.pretraining.run import Run

_NO_CLASSIFIER = (
    "needs a classifier that comes with the weights: set backbone.pretrained, or backbone.weights to a file with one"
)


class Probing:
    """Measure the backbone of a run before and after training; results of an interrupted run are kept.

    Args:
        run: the run, with its folder.
    """

    def __init__(self, run: "Run") -> None:
        self.run = run
        self.tasks, self.files = run.parts.probes, run.files
        for task in self.tasks:
            with task.section():
                task.probe.check(run.backbone, trains=run.recipe.backbone.train != "frozen")
        checkpoint = weights_with_classifier(self.tasks, run.backbone, run.recipe.backbone, _NO_CLASSIFIER)
        self._classifier = None if checkpoint is None else classifier_digest(run.backbone, checkpoint)
        started_from = None if checkpoint is None else dict.fromkeys((BEFORE, AFTER), checkpoint)
        # shared: predictions before and after training are plotted next to each other
        self.device = choose_device(run.recipe.trainer.accelerator)
        self._measuring = Measuring(self.device, run.recipe.data.workers, started_from)

    def before(self) -> None:
        """Measure the initial weights."""
        if self.tasks:
            models = {BEFORE: self.run.initial}
            results = self._results({BEFORE: self.run.digest})
            self._evaluate(models, results)
            self._save(results)

    def after(self) -> None:
        """Measure the trained weights; print the table and write the report."""
        if not self.tasks:
            return
        started = time.perf_counter()
        models = {BEFORE: self.run.initial} if self.run.recipe.trainer.probe_before else {}
        models[AFTER] = self.run.backbone
        digests = {name: self.run.digest if name == BEFORE else model.digest() for name, model in models.items()}
        results, plots = self._results(digests), Plots()
        is_known = all(results.has(task.label, when) for task in self.tasks for when in models)
        if not (is_known and self.files.report.exists()):
            self._evaluate(models, results, plots)
            self._save(results)
        comparison = compare(self.tasks, results, list(models), [(AFTER, BEFORE)])
        self.run.console.print(tabulate(comparison, "frozen features on held-out scenes"))
        if plots.figures:
            seconds = round(time.perf_counter() - started, 1)
            steps = {BEFORE: 0, AFTER: self.run.max_steps}
            write_events(self.files.path, comparison, plots.figures, steps)
            write_report(self.files.path, comparison, plots.figures, self._about(digests, seconds))
        self.run.console.print(f"report: {self.files.report}")

    def _evaluate(self, models: dict[str, Backbone], results: Results, plots: Plots | None = None) -> None:
        self._measuring.run(
            self.tasks,
            {name: [backbone] for name, backbone in models.items()},
            results,
            progress=Bars(self.run.console, f"{list(models)[-1]}: "),
            plot=plots,
            plotted=list(models),
        )

    def _results(self, digests: Mapping[str, str]) -> Results:
        results = Results.load(self.files.scores)
        results.file = self.files.scores
        sections, data = self.run.recipe.probes, self.run.recipe.data
        classifiers = dict.fromkeys(digests, self._classifier)
        results.keep_only(keys_of(self.tasks, sections, data, self.run.registry, digests, classifiers))
        return results

    def _save(self, results: Results) -> None:
        metrics = results.metrics({task.label: task.probe for task in self.tasks})
        write_json(self.files.probes, metrics)

    def _about(self, digests: Mapping[str, str], seconds: float) -> About:
        recipe, backbone = self.run.recipe, self.run.recipe.backbone
        start = "random weights" if backbone.weights is None else f"the weights of {backbone.weights}"
        start = "timm's weights" if backbone.pretrained else start
        credits = _credit(list(recipe.priors), self.run.idle)
        texts = {
            BEFORE: f"{backbone.name} before training: {start}",
            AFTER: f"{backbone.name} after {self.run.max_steps} steps with {credits}",
        }
        plain = recipe.to_dict()
        plain["probes"] = {task.label: plain["probes"][task.label] for task in self.tasks}
        return About(
            f"{recipe.name}: before and after training",
            {name: texts[name] for name in digests},
            {name: {"backbone": backbone.name, "sha256": digest} for name, digest in digests.items()},
            (
                "One training run: the intervals hold the spread over scenes, not over training seeds. A claim about a"
                " prior needs several runs and a baseline.",
                "`prior3d-eval` on this folder adds the features of both side by side, and a control of that capacity.",
                *(f"{label} was left out: {why}." for label, why in self.run.parts.left_out.items()),
            ),
            {"device": device_name(self.device), "seconds": seconds, "seed": recipe.seed},
            {name: plain[name] for name in ("seed", "backbone", "data", "probes")},
        )


def _credit(labels: Sequence[str], idle: Sequence[str]) -> str:
    """Name the priors that acted and those that did not."""
    text = ", ".join(label for label in labels if label not in idle)
    return f"{text} ({', '.join(idle)}: the loss stayed 0)" if idle else text
