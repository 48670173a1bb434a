"""Probes before and after training, and the report of both in the run folder."""

import time
from collections.abc import Collection, Mapping
from copy import deepcopy
from typing import TYPE_CHECKING

import torch
from rich.console import Console
from torch import Tensor

from prior3d.backbone import Backbone
from prior3d.errors import UserError
from prior3d.files import write_json
from prior3d.pretraining.building import Parts, checkpoint_of
from prior3d.pretraining.folder import RunFolder
from prior3d.pretraining.progress import Bars
from prior3d.probes.classifier import checkpoint_classifier, classifier_digest
from prior3d.probes.keys import keys_of
from prior3d.probes.measuring import Measuring
from prior3d.probes.results import AFTER, BEFORE, Results
from prior3d.reporting import About, Drawings, compare, device_name, tabulate, write_report
from prior3d.reporting.events import write_events

if TYPE_CHECKING:
    from prior3d.recipe import Recipe
    from prior3d.registry import Registry


class Probing:
    """Measures the backbone of a run before and after training; what an interrupted run measured is kept.

    Args:
        folder: of the run, its initial weights written.
        parts: of the run.
        recipe: of the run.
        registry: the plugins it uses.
        console: shows table and progress.
    """

    def __init__(
        self, folder: RunFolder, parts: Parts, recipe: "Recipe", registry: "Registry", console: Console
    ) -> None:
        self.folder, self.parts, self.recipe, self.registry, self.console = folder, parts, recipe, registry, console
        self._initial = deepcopy(parts.backbone) if parts.probes else None
        if self._initial is not None:
            folder.load_initial(self._initial)
        for task in parts.probes:
            with task.section():
                task.probe.check(parts.backbone, trains=recipe.backbone.train != "frozen")
        checkpoint = _checkpoint(parts, recipe)
        self._classifier = None if checkpoint is None else classifier_digest(parts.backbone, checkpoint)
        started_from = None if checkpoint is None else dict.fromkeys((BEFORE, AFTER), checkpoint)
        # one for both: predictions of before are plotted beside those of after
        self._measuring = Measuring(probe_device(recipe), recipe.data.workers, started_from)

    def before(self) -> None:
        """Measure the initial weights."""
        if self.parts.probes:
            results = self._results({BEFORE: self._initial})
            self._evaluate({BEFORE: self._initial}, results)
            self._save(results)

    def after(self, idle: Collection[str] = ()) -> None:
        """Measure the trained weights; print the table and write the report.

        Args:
            idle: labels of the priors that never acted: their loss was 0 in every step, and nothing is due to them.
        """
        if not self.parts.probes:
            return
        started = time.perf_counter()
        models = {BEFORE: self._initial} if self.recipe.trainer.probe_before else {}
        models[AFTER] = self.parts.backbone
        results, drawings = self._results(models), Drawings()
        is_known = all(results.has(task.label, when) for task in self.parts.probes for when in models)
        if not (is_known and self.folder.report.exists()):
            self._evaluate(models, results, drawings)
            self._save(results)
        comparison = compare(self.parts.probes, results, list(models), [(AFTER, BEFORE)])
        self.console.print(tabulate(comparison, "frozen features on held-out scenes"))
        if drawings.figures:
            seconds = round(time.perf_counter() - started, 1)
            steps = {BEFORE: 0, AFTER: self.recipe.trainer.max_steps}
            write_events(self.folder.path, comparison, drawings.figures, steps)
            write_report(self.folder.path, comparison, drawings.figures, self._about(models, seconds, idle))
        self.console.print(f"report: {self.folder.report}")

    def _evaluate(self, models: dict[str, Backbone], results: Results, drawings: Drawings | None = None) -> None:
        self._measuring.run(
            self.parts.probes,
            {name: [backbone] for name, backbone in models.items()},
            results,
            progress=Bars(self.console, f"{list(models)[-1]}: "),
            plot=drawings,
            plotted=list(models),
        )

    def _results(self, models: dict[str, Backbone]) -> Results:
        results = Results.load(self.folder.scores)
        results.file = self.folder.scores
        weights = {name: backbone.digest() for name, backbone in models.items()}
        sections, data = self.recipe.probes, self.recipe.data
        classifiers = dict.fromkeys(weights, self._classifier)
        results.keep_only(keys_of(self.parts.probes, sections, data, self.registry, weights, classifiers))
        return results

    def _save(self, results: Results) -> None:
        metrics = results.metrics({task.label: task.probe for task in self.parts.probes})
        write_json(self.folder.probes, metrics)

    def _about(self, models: dict[str, Backbone], seconds: float, idle: Collection[str]) -> About:
        recipe, steps = self.recipe, self.recipe.trainer.max_steps
        start = "random weights" if recipe.backbone.weights is None else f"the weights of {recipe.backbone.weights}"
        start = "timm's weights" if recipe.backbone.pretrained else start
        priors = ", ".join(label for label in recipe.priors if label not in idle) or "no prior that acted"
        never = f"; {', '.join(sorted(idle))} never acted, the loss was 0 in every step" if idle else ""
        texts = {
            BEFORE: f"{recipe.backbone.name} before training: {start}",
            AFTER: f"{recipe.backbone.name} after {steps} steps with {priors}{never}",
        }
        facts = {name: {"backbone": recipe.backbone.name, "sha256": model.digest()} for name, model in models.items()}
        plain = recipe.to_dict()
        plain["probes"] = {task.label: plain["probes"][task.label] for task in self.parts.probes}
        return About(
            f"{recipe.name}: before and after training",
            {name: texts[name] for name in models},
            facts,
            (
                "One training run: the intervals hold the spread over scenes, not over training seeds. A claim about a"
                " prior needs several runs and a baseline.",
                "`prior3d-eval` on this folder adds the features of both side by side, and a control of that capacity.",
                *(f"{label} was left out: {why}." for label, why in self.parts.left_out.items()),
            ),
            {"device": device_name(probe_device(recipe)), "seconds": seconds, "seed": recipe.seed},
            {name: plain[name] for name in ("seed", "backbone", "data", "probes")},
        )


def _checkpoint(parts: Parts, recipe: "Recipe") -> Mapping[str, Tensor] | None:
    """Return the weights that the run starts from with their classifier, if a probe needs it."""
    for task in parts.probes:
        if task.probe.needs_classifier:
            weights = checkpoint_of(recipe.backbone)
            if weights is None or checkpoint_classifier(parts.backbone, weights) is None:
                raise UserError(
                    "needs the classifier that weights come with: set backbone.pretrained, or backbone.weights to a"
                    " file with one",
                    f"probes.{task.label}",
                )
            return weights
    return None


def probe_device(recipe: "Recipe") -> str:
    """Return the device probes run on: the training's."""
    use_gpu = recipe.trainer.accelerator != "cpu" and torch.cuda.is_available()
    return "cuda" if use_gpu else "cpu"
