"""One unit: train according to its recipe, measure the backbone, return plain values for JSON."""

import json
import platform
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import nn

from prior3d.backbone import Backbone
from prior3d.contracts.runner import silent
from prior3d.contracts.scores import Scores
from prior3d.data.preparing import DatasetUse, prepare_datasets
from prior3d.jobs.running import make_runner
from prior3d.pretraining.building import Parts, build, checkpoint_of, fields_to_decode, make_backbone
from prior3d.pretraining.folder import RunFolder
from prior3d.pretraining.machine import choose_device
from prior3d.pretraining.run import Run
from prior3d.pretraining.training import fit, prepare
from prior3d.probes.measuring import freeze, measure
from prior3d.probes.probe_data import ProbeData
from prior3d.probes.tasks import ProbeTask, build_tasks
from prior3d.recipe import Recipe
from prior3d.registry import Registry
from prior3d.registry.source_digest import source_digest
from prior3d.reporting import device_name
from prior3d.study.starting import Start, add_noise, take_statistics
from prior3d.version import __version__

AS_IT_IS = Start()


class Bench:
    """State that a process keeps between units: the probes' images and labels, on the device if they fit.

    Args:
        scratch: Folder for run folders and features, used by this process only.
        keep_weights: Folder for the encoders; None to keep none.
    """

    def __init__(self, scratch: Path, keep_weights: Path | None = None) -> None:
        self.scratch = scratch
        self.keep_weights = keep_weights
        self._data: dict[str, ProbeData] = {}

    def run(self, recipe: Recipe, name: str, start: Start = AS_IT_IS) -> dict[str, object]:
        """Train and measure; return the result as plain values.

        Args:
            recipe: Recipe of the unit; without priors, nothing is trained.
            name: Name of the unit, for files.
            start: Changes to the initial weights.
        """
        registry = Registry(recipe.plugins)
        started = time.perf_counter()
        if recipe.priors:
            parts = build(recipe, registry)
            backbone = parts.backbone
            # Require all of them: a study must not lose an endpoint silently.
            tasks = build_tasks(recipe.probes, recipe.data, registry, recipe.seed, parts.dataset)
            opened = self._open_all(recipe, registry, tasks)  # unusable data must end the unit before it trains
            add_noise(backbone, start.noise, recipe.seed)
            if start.batch_norm == "training images":
                _prepare_training(recipe, registry, parts)
                take_statistics(backbone, parts.dataset)
            facts = self._train(Run(recipe, registry, replace(parts, probes=[])), name)
        else:
            backbone = make_backbone(recipe.backbone, recipe.data.size, recipe.seed)
            add_noise(backbone, start.noise, recipe.seed)
            tasks = build_tasks(recipe.probes, recipe.data, registry, recipe.seed)
            opened = self._open_all(recipe, registry, tasks)
            facts = {"encoder images": 0, "teacher images": 0, "losses": {}, "steps": 0}
        trained = time.perf_counter()
        scores, by_probe = self._measure(recipe, backbone, opened)
        return {
            **facts,
            "scores": {label: found.to_plain() for label, found in scores.items()},
            "probe sources": {task.label: source_digest(type(task.probe)) for task in tasks},
            "train seconds": round(trained - started, 2),
            "probe seconds": round(time.perf_counter() - trained, 2),
            "seconds by probe": by_probe,
            "device": device_name(choose_device(recipe.trainer.accelerator)),
            "versions": {"prior3d": __version__, "torch": torch.__version__, "python": platform.python_version()},
            # Records are moved between machines, so leave out folders of this one.
            "recipe": recipe.to_yaml().replace(f"{Path.cwd()}/", "").replace(str(Path.home()), "~"),
            "start": asdict(start),
        }

    def close(self) -> None:
        """Remove the stored files."""
        for data in self._data.values():
            data.close()
        shutil.rmtree(self.scratch, ignore_errors=True)

    def _train(self, run: Run, name: str) -> dict[str, object]:
        prepare(run)
        counts = {"encoder images": 0, "teacher images": 0}

        def count(module: nn.Module, inputs: Sequence[object]) -> None:
            # Copies of the backbone (teachers) carry this hook, too.
            own = module is run.backbone and torch.is_grad_enabled()
            counts["encoder images" if own else "teacher images"] += len(inputs[0])

        folder = run.files = RunFolder.create(self.scratch, name, run.recipe.to_yaml())
        hook = run.backbone.register_forward_pre_hook(count)
        try:
            fit(run)
            if run.stopped_by is not None:
                raise RuntimeError(f"the training was stopped by {run.stopped_by}")
            summary = json.loads(folder.summary.read_text(encoding="utf-8"))
            if self.keep_weights is not None:
                self.keep_weights.mkdir(parents=True, exist_ok=True)
                shutil.move(folder.backbone, self.keep_weights / f"{name}.safetensors")
        finally:
            hook.remove()
            shutil.rmtree(folder.path, ignore_errors=True)
        return {**counts, "losses": summary["losses, mean of the last batches"], "steps": summary["steps"]}

    def _measure(
        self, recipe: Recipe, backbone: Backbone, opened: Sequence[tuple[ProbeData, Sequence[ProbeTask]]]
    ) -> tuple[dict[str, Scores], dict[str, float]]:
        """Return the probes' scores, and the seconds of each; the first one on a dataset reads the features."""
        scores, seconds = {}, {}
        for data, group in opened:
            needed = any(task.probe.needs_classifier for task in group)
            weights = checkpoint_of(recipe.backbone) if needed else None
            model = freeze([backbone], data, choose_device(recipe.trainer.accelerator), weights)
            try:
                for task in group:
                    started = time.perf_counter()
                    (scores[task.label],) = measure(task, model, data, recipe.seed)
                    seconds[task.label] = round(time.perf_counter() - started, 2)
            finally:
                data.forget(model)
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()  # other processes share the device
        return scores, seconds

    def _open_all(
        self, recipe: Recipe, registry: Registry, tasks: Sequence[ProbeTask]
    ) -> list[tuple[ProbeData, list[ProbeTask]]]:
        """Return the data of probes, verified and prepared, with the probes that are measured on it."""
        by_data: dict[str, list[ProbeTask]] = {}
        for task in tasks:
            by_data.setdefault(_data_key(recipe, task), []).append(task)
        return [(self._open(key, group[0], recipe, registry), group) for key, group in by_data.items()]

    def _open(self, key: str, task: ProbeTask, recipe: Recipe, registry: Registry) -> ProbeData:
        if key not in self._data:
            _prepare(
                [
                    DatasetUse(f"{task.label}, {dataset.spec.split}", dataset, key=task.data_key)
                    for dataset in task.parts.values()
                ],
                recipe,
                registry,
            )
            folder = self.scratch / f"probe-data-{len(self._data)}"
            folder.mkdir(parents=True, exist_ok=True)
            self._data[key] = ProbeData(task.parts, most=task.most, workers=recipe.data.workers, folder=folder)
        return self._data[key]


def _prepare_training(recipe: Recipe, registry: Registry, parts: Parts) -> None:
    fields = fields_to_decode(parts.objective, parts.dataset)
    _prepare([DatasetUse("train", parts.dataset, fields)], recipe, registry)


def _prepare(uses: Sequence[DatasetUse], recipe: Recipe, registry: Registry) -> None:
    """Verify and prepare datasets as a run does; lines for the log go into that of the worker."""
    runner = make_runner(recipe.prepare.runner, recipe.prepare.options, registry)
    prepare_datasets(uses, recipe.data.on_damage, silent, print, runner)


def _data_key(recipe: Recipe, task: ProbeTask) -> str:
    """Return a text that is equal for tasks with the same images and labels, for any seed of the run."""
    own = recipe.probes[task.label].data
    training = {
        name: value for name, value in recipe.to_dict()["data"].items() if name not in ("batch_size", "augment")
    }
    described = {} if own is None else {"name": own.name, "size": own.size, "options": dict(own.options)}
    splits = {part: dataset.spec.split for part, dataset in task.parts.items()}
    views = task.parts["held_out"].spec.views
    return json.dumps([training, described, splits, views, task.most], sort_keys=True)
