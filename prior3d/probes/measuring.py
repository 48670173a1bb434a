"""Running probes on models: statistics re-estimated first, features read once for all probes on the same data."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy

import torch
from torch import Tensor

from prior3d.backbone import Backbone
from prior3d.batch_norm import reestimate_batch_norm
from prior3d.data.dataset import Progress, silent
from prior3d.errors import UserError
from prior3d.probes.models import FrozenModel
from prior3d.probes.probe_data import ProbeData
from prior3d.probes.results import Results
from prior3d.probes.scores import Scores
from prior3d.probes.tasks import ProbeTask

_IMAGES, _BATCH = 128, 16
"""Training images whose statistics BatchNorm layers get, without augmentation, as probes see images."""


def freeze(backbones: Sequence[Backbone], data: ProbeData, device: str | torch.device) -> FrozenModel:
    """Return copies of backbones as probes see them; the originals are left as they are."""
    copies = [deepcopy(backbone).requires_grad_(False).to(device) for backbone in backbones]
    for copy in copies:
        check_size(copy, data.size)
        reestimate_batch_norm(copy, copy.encode_dense, _training_images(data, device))
    return FrozenModel(copies, device)


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
    """
    for group in _by_data(tasks):
        missing = {name: [task for task in group if not results.has(task.label, name)] for name in models}
        if not any(missing.values()):
            continue
        with opened(group, workers, progress) as data:
            for name, todo in missing.items():
                if todo:
                    model = freeze(models[name], data, device)
                    for task in todo:
                        results.put(task.label, name, measure(task, model, data))
                    data.forget(model)
            for task in group if controls else ():
                for name, scores in task.probe.controls(data).items():
                    results.put(task.label, name, [scores])


def measure(task: ProbeTask, model: FrozenModel, data: ProbeData) -> list[Scores]:
    """Measure a model with one probe, once per seed where seeds make a difference."""
    seeds = task.seeds if task.probe.seeded else 1
    return [task.probe.measure(model, data, seed) for seed in range(seeds)]


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
    for chosen in rows.split(_BATCH):
        yield images.take(chosen, device).float() / 255
