"""Running probes on models: statistics are re-estimated first; features are read once per dataset for all probes."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import Tensor

from prior3d.backbone import Backbone
from prior3d.backbone.batch_norm import reestimate_batch_norm
from prior3d.contracts.probe import Measured, Probe, measured, metrics_of
from prior3d.contracts.runner import Progress, silent
from prior3d.contracts.scores import Scores
from prior3d.errors import UserError, section
from prior3d.probes.classifier import checkpoint_classifier
from prior3d.probes.features import mixed_batches
from prior3d.probes.models import FrozenModel
from prior3d.probes.probe_data import ProbeData
from prior3d.probes.results import Results
from prior3d.probes.tasks import ProbeTask

PlotTask = Callable[[ProbeTask, Mapping[str, FrozenModel], ProbeData, Mapping[str, Any]], None]
"""Function that plots models on the data of a task; see `Probe.plot`."""

_IMAGES = 256
"""Number of training images for the statistics of BatchNorm layers, without augmentation, as probes see images."""

StateDict = Mapping[str, Tensor]
"""Weights by name, as in a checkpoint."""


def freeze(
    backbones: Sequence[Backbone], data: ProbeData, device: str | torch.device, started_from: StateDict | None = None
) -> FrozenModel:
    """Return copies of backbones as probes see them; the originals do not change.

    Args:
        backbones: Backbones whose features are concatenated.
        data: Data whose training images give the statistics of BatchNorm layers.
        device: Device to measure on.
        started_from: Weights of a single backbone before training, with the classifier of its checkpoint.
    """
    copies = [deepcopy(backbone).requires_grad_(False).to(device) for backbone in backbones]
    for copy in copies:
        _check_weights(copy)
        with section("data"):
            check_size(copy, data.size)
        images = data.field("train" if "train" in data.parts else "held_out", "image")
        batches = mixed_batches(images, device, stream="batch norm", most=_IMAGES, even=False)
        # Also pooled: some families have a layer between the last map and the pooling.
        reestimate_batch_norm(copy, partial(copy, reads=("dense", "pooled")), batches)
    if started_from is None:
        return FrozenModel(copies, device)
    return FrozenModel(copies, device, checkpoint_classifier(copies[0], started_from))


def _check_weights(backbone: Backbone) -> None:
    for name, tensor in backbone.state_dict().items():
        if not tensor.isfinite().all():
            raise UserError(f"the weights of {backbone.encoder.name} hold NaN or infinity: {name}")


def check_size(backbone: Backbone, size: tuple[int, int]) -> None:
    """Refuse an image size that a backbone, made for another one, cannot take.

    Raises:
        UserError: With the key `size`.
    """
    if problem := size_problem(backbone, size):
        raise UserError(problem, "size")


def size_problem(backbone: Backbone, size: tuple[int, int]) -> str | None:
    """Return why a backbone, made for one size, cannot take images of another; None if it can."""
    if tuple(size) == backbone.size:
        return None
    try:
        with torch.no_grad():
            device = next(backbone.parameters()).device
            backbone.eval()(torch.zeros(1, 3, *size, device=device), ("dense",))
    except (AssertionError, RuntimeError, ValueError) as error:
        height, width = size
        return f"{backbone.encoder.name} cannot take images of {height} x {width} pixels ({error})"
    return None


class Measuring:
    """Measures models with probes, and keeps the measured models for a later call that plots them.

    Args:
        device: Device to measure on.
        workers: Number of processes that decode.
        started_from: Dict from the name of a model to its weights before training, with their classifier.
    """

    def __init__(
        self, device: str | torch.device, workers: int = 0, started_from: Mapping[str, StateDict] | None = None
    ) -> None:
        self.device, self.workers = device, workers
        self._frozen = _FrozenModels(device, started_from or {})
        self._shown: dict[tuple[str, str], Any] = {}

    def run(
        self,
        tasks: Sequence[ProbeTask],
        models: Mapping[str, Sequence[Backbone]],
        results: Results,
        *,
        progress: Progress = silent,
        plot: PlotTask | None = None,
        plotted: Sequence[str] = (),
    ) -> None:
        """Measure models and controls; skip measurements that `results` already holds.

        Args:
            tasks: Probes, with prepared datasets.
            models: Dict from name to the backbones whose features are concatenated: usually one.
            results: Receives the scores.
            progress: Shows progress.
            plot: Function that plots some of the models; called for each task while its data is open.
            plotted: Names of the models to plot.

        Raises:
            UserError: With the key of the probe or the data that cannot be measured.
        """
        for group in _by_data(tasks):
            todo = [
                (name, task)
                for name, backbones in models.items()
                for task in group
                if applies(task, backbones) and not results.has(task.label, name)
            ]
            without_controls = [task for task in group if _lacks_controls(task, results)]
            if not (todo or without_controls or plot):
                continue
            with opened(group, self.workers, progress) as data:
                for task in without_controls:
                    _measure_controls(task, models, results, data)
                what = f"probes on {data.parts['held_out'].spec.split} images"
                for name, task in progress(todo, what, len(todo)):
                    started = time.perf_counter()
                    found = self._measure(task, group, name, models[name], data)
                    results.put(task.label, name, found, time.perf_counter() - started)
                if plot is not None:
                    shown = {name: self._frozen.get(group, name, models[name], data) for name in plotted}
                    for task in progress(group, "figures", len(group)):
                        with task.section():
                            plot(task, shown, data, _Shown(list(plotted), partial(self._show, task, shown, data)))

    def _measure(
        self, task: ProbeTask, group: Sequence[ProbeTask], name: str, backbones: Sequence[Backbone], data: ProbeData
    ) -> list[Scores]:
        with task.section():
            found = _by_seed(task, self._frozen.get(group, name, backbones, data), data)
        self._shown[task.label, name] = found[0].shown
        return [one.scores for one in found]

    def _show(self, task: ProbeTask, models: Mapping[str, FrozenModel], data: ProbeData, name: str) -> object:
        """Return what a measurement kept for plotting; measure again if another process did the measurement."""
        key = task.label, name
        if key not in self._shown:
            self._shown[key] = measured(task.probe.measure(models[name], data, 0)).shown
        return self._shown[key]


def applies(task: ProbeTask, backbones: Sequence[Backbone]) -> bool:
    """Return whether a probe can measure these backbones together."""
    return len(backbones) == 1 or not task.probe.needs_classifier


def measure(task: ProbeTask, model: FrozenModel, data: ProbeData, first_seed: int = 0) -> list[Scores]:
    """Measure a model with one probe, once per seed from `first_seed` on if seeds matter, otherwise once."""
    with task.section():
        return [one.scores for one in _by_seed(task, model, data, first_seed)]


@contextmanager
def opened(tasks: Sequence[ProbeTask], workers: int = 0, progress: Progress = silent) -> Iterator[ProbeData]:
    """Open the data that several tasks share; remove its temporary files at the end."""
    with tasks[0].section():
        data = ProbeData(tasks[0].parts, most=tasks[0].most, workers=workers, progress=progress)
    try:
        yield data
    finally:
        data.close()


def _by_seed(task: ProbeTask, model: FrozenModel, data: ProbeData, first_seed: int = 0) -> list[Measured]:
    seeds = task.seeds if task.probe.seeded else 1
    found = [measured(task.probe.measure(model, data, first_seed + number)) for number in range(seeds)]
    for one in found:
        metrics_of(task.probe, one)  # refuses a wrong `summarize` before scores are kept
    return found


def _lacks_controls(task: ProbeTask, results: Results) -> bool:
    has_some = type(task.probe).controls is not Probe.controls
    return has_some and not results.has_controls(task.label)


def _measure_controls(task: ProbeTask, models: Iterable[str], results: Results, data: ProbeData) -> None:
    with task.section():
        found = task.probe.controls(data)
        for name in found:
            if name in models:
                raise UserError(f"a model has the name of its control, {name}: rename the model's file or folder")
    for name, scores in found.items():
        results.put(task.label, name, [scores], control=True)


def _by_data(tasks: Iterable[ProbeTask]) -> list[list[ProbeTask]]:
    groups: dict[tuple, list[ProbeTask]] = {}
    for task in tasks:
        key = (*sorted((part, id(dataset)) for part, dataset in task.parts.items()), task.most)
        groups.setdefault(key, []).append(task)
    return list(groups.values())


class _FrozenModels:
    """Models as probes see them: each backbone is frozen once per dataset that its statistics are estimated on."""

    def __init__(self, device: str | torch.device, started_from: Mapping[str, StateDict]) -> None:
        self._device, self._started_from = device, started_from
        self._single: dict[tuple[str, int], FrozenModel] = {}
        self._made: dict[tuple[str, str], FrozenModel] = {}
        self._originals: list[Backbone] = []

    def get(self, group: Sequence[ProbeTask], name: str, backbones: Sequence[Backbone], data: ProbeData) -> FrozenModel:
        """Return a model frozen for the data of a group of tasks."""
        key = group[0].label, name
        if key not in self._made:
            singles = [self._freeze(group[0].label, name, backbone, data) for backbone in backbones]
            self._made[key] = singles[0] if len(singles) == 1 else FrozenModel.side_by_side(singles)
        return self._made[key]

    def _freeze(self, label: str, name: str, backbone: Backbone, data: ProbeData) -> FrozenModel:
        key = label, id(backbone)
        if key not in self._single:
            self._single[key] = freeze([backbone], data, self._device, self._started_from.get(name))
            self._originals.append(backbone)  # keep it alive, so no other object gets its id
        return self._single[key]


class _Shown(Mapping[str, Any]):
    """What measurements kept for plotting, by name of the model; computed on access."""

    def __init__(self, names: Sequence[str], find: Callable[[str], Any]) -> None:
        self._names, self._find = names, find

    def __getitem__(self, name: str) -> Any:
        if name not in self._names:
            raise KeyError(name)
        return self._find(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
