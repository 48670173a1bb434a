"""Running probes on models: statistics re-estimated first, features read once for all probes on the same data."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import partial

import torch
from torch import Tensor

from prior3d.backbone import Backbone
from prior3d.backbone.batch_norm import reestimate_batch_norm
from prior3d.contracts.probe import Probe
from prior3d.contracts.runner import Progress, silent
from prior3d.contracts.scores import Scores
from prior3d.errors import UserError
from prior3d.probes.classifier import checkpoint_classifier
from prior3d.probes.models import FrozenModel
from prior3d.probes.probe_data import ProbeData
from prior3d.probes.results import Results
from prior3d.probes.tasks import ProbeTask
from prior3d.randomness import generator

Draw = Callable[[Sequence[ProbeTask], Mapping[str, FrozenModel], ProbeData], None]
"""Draws models on the data that some tasks share."""

_IMAGES, _BATCH = 256, 64
"""Training images whose statistics BatchNorm layers get, without augmentation, as probes see images."""


Weights = Mapping[str, Tensor]
"""A state dict."""


def freeze(
    backbones: Sequence[Backbone], data: ProbeData, device: str | torch.device, started_from: Weights | None = None
) -> FrozenModel:
    """Return copies of backbones as probes see them; the originals are left as they are.

    Args:
        backbones: whose features are concatenated.
        data: its training images give the statistics of BatchNorm layers.
        device: to measure on.
        started_from: weights of a single backbone before training, with the classifier that they came with.
    """
    copies = [deepcopy(backbone).requires_grad_(False).to(device) for backbone in backbones]
    for copy in copies:
        _check_weights(copy)
        check_size(copy, data.size)
        # pooled, too: some families have a layer between the last map and the pooling
        reestimate_batch_norm(copy, partial(copy, reads=("dense", "pooled")), _training_images(data, device))
    if started_from is None:
        return FrozenModel(copies, device)
    return FrozenModel(copies, device, checkpoint_classifier(copies[0], started_from))


def _check_weights(backbone: Backbone) -> None:
    for name, tensor in backbone.state_dict().items():
        if not tensor.isfinite().all():
            raise UserError(f"the weights of {backbone.encoder.name} hold NaN or infinity: {name}")


def check_size(backbone: Backbone, size: tuple[int, int]) -> None:
    """Raise UserError where a backbone, made for one size, cannot take a probe's images."""
    if tuple(size) == backbone.size:
        return
    try:
        with torch.no_grad():
            device = next(backbone.parameters()).device
            backbone.eval()(torch.zeros(1, 3, *size, device=device), ("dense",))
    except (AssertionError, RuntimeError, ValueError) as error:
        height, width = size
        name = backbone.encoder.name
        raise UserError(f"{name} cannot take images of {height} x {width} pixels ({error})", "data.size") from error


def evaluate(
    tasks: Sequence[ProbeTask],
    models: Mapping[str, Sequence[Backbone]],
    results: Results,
    device: str | torch.device,
    *,
    controls: bool = True,
    workers: int = 0,
    progress: Progress = silent,
    started_from: Mapping[str, Weights] | None = None,
    frozen: "FrozenModels | None" = None,
    draw: Draw | None = None,
    drawn: Sequence[str] = (),
) -> None:
    """Measure models with probes; what `results` holds already is not measured again.

    Args:
        tasks: the probes, their datasets prepared.
        models: name to the backbones whose features it concatenates: mostly one.
        results: receives the scores.
        device: to measure on.
        controls: measure what needs no model, too.
        workers: processes that decode.
        progress: shows how far it is.
        started_from: name of a model to the weights it had before training, with their classifier.
        frozen: keeps the models as they were measured, for a later call that draws them.
        draw: draws what some models get right and wrong; called with the tasks of the same data, at the end of each.
        drawn: names of those models.
    """
    frozen = FrozenModels(started_from) if frozen is None else frozen
    for group in _by_data(tasks):
        todo = [
            (name, task)
            for name, backbones in models.items()
            for task in group
            if applies(task, backbones) and not results.has(task.label, name)
        ]
        plain = [task for task in group if controls and _lacks_controls(task, results)]
        if not (todo or plain or draw):
            continue
        with opened(group, workers, progress) as data:
            for task in plain:
                with task.locating():
                    controls = task.probe.controls(data)
                for name, scores in controls.items():
                    results.put(task.label, name, [scores], control=True)
            for name, task in progress(todo, f"probes on {data.parts['held_out'].spec.split} images", len(todo)):
                started = time.perf_counter()
                scores = measure(task, frozen.get(group, name, models[name], data, device), data)
                results.put(task.label, name, scores, time.perf_counter() - started)
            for show in progress([draw], "drawing", 1) if draw else ():
                show(group, {name: frozen.get(group, name, models[name], data, device) for name in drawn}, data)


def applies(task: ProbeTask, backbones: Sequence[Backbone]) -> bool:
    """Whether a probe can measure these backbones side by side."""
    return len(backbones) == 1 or not task.probe.needs_classifier


class FrozenModels:
    """Models as probes see them: each backbone frozen once for each data that its statistics are estimated on.

    Args:
        started_from: as of `evaluate`.
    """

    def __init__(self, started_from: Mapping[str, Weights] | None = None) -> None:
        self._started_from = started_from or {}
        self._single: dict[tuple[str, int], FrozenModel] = {}
        self._made: dict[tuple[str, str], FrozenModel] = {}
        self._originals: list[Backbone] = []

    def get(
        self,
        group: Sequence[ProbeTask],
        name: str,
        backbones: Sequence[Backbone],
        data: ProbeData,
        device: str | torch.device,
    ) -> FrozenModel:
        """Return a model frozen for the data of a group of tasks."""
        key = group[0].label, name
        if key not in self._made:
            started_from = self._started_from.get(name)
            singles = [self._freeze(group[0].label, backbone, data, device, started_from) for backbone in backbones]
            self._made[key] = singles[0] if len(singles) == 1 else FrozenModel.side_by_side(singles)
        return self._made[key]

    def _freeze(
        self,
        label: str,
        backbone: Backbone,
        data: ProbeData,
        device: str | torch.device,
        started_from: Weights | None,
    ) -> FrozenModel:
        key = label, id(backbone)
        if key not in self._single:
            self._single[key] = freeze([backbone], data, device, started_from)
            self._originals.append(backbone)  # alive, so that no other one gets its id
        return self._single[key]


def _lacks_controls(task: ProbeTask, results: Results) -> bool:
    has_some = type(task.probe).controls is not Probe.controls
    return has_some and not results.has_controls(task.label)


def measure(task: ProbeTask, model: FrozenModel, data: ProbeData, first_seed: int = 0) -> list[Scores]:
    """Measure a model with one probe, once per seed where seeds make a difference, from `first_seed` upwards."""
    seeds = task.seeds if task.probe.seeded else 1
    with task.locating():
        return [task.probe.measure(model, data, first_seed + number) for number in range(seeds)]


@contextmanager
def opened(tasks: Sequence[ProbeTask], workers: int = 0, progress: Progress = silent) -> Iterator[ProbeData]:
    """Open the data that some tasks share; what was kept of it is removed at the end."""
    data = ProbeData(tasks[0].parts, most=tasks[0].most, workers=workers, progress=progress)
    try:
        yield data
    finally:
        data.close()


def _by_data(tasks: Iterable[ProbeTask]) -> list[list[ProbeTask]]:
    groups: dict[tuple, list[ProbeTask]] = {}
    for task in tasks:
        key = (*sorted((part, id(dataset)) for part, dataset in task.parts.items()), task.most)
        groups.setdefault(key, []).append(task)
    return list(groups.values())


def _training_images(data: ProbeData, device: str | torch.device) -> Iterator[Tensor]:
    images = data.field("train" if "train" in data.parts else "held_out", "image")
    rows = torch.linspace(0, len(images) - 1, min(_IMAGES, len(images))).round().long()
    # Mixed: batches of one scene or class vary less than the data does, and the variance between them would be lost.
    rows = rows[torch.randperm(len(rows), generator=generator("batch norm"))]
    for chosen in rows.split(_BATCH):
        yield images.take(chosen, device).float() / 255
