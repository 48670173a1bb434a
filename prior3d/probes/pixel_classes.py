"""Pixels counted by class, and the mean IoU that follows."""

import torch
from torch import Tensor

from prior3d.contracts.fields import IGNORE_CLASS
from prior3d.errors import UserError
from prior3d.probes.probe_data import Part, ProbeData


def class_frequency(data: ProbeData) -> Tensor:
    """Count the training pixels of each class: [K] int64, K by the data's names or, without, by the highest id.

    Raises:
        UserError: a part without a single label, or with a class that has no name.
    """
    names = data.parts["held_out"].class_names
    train, held_out = (_pixels_by_class(data, part) for part in ("train", "held_out"))
    highest = int(torch.maximum(train, held_out).nonzero().max())
    if names and highest >= len(names):
        raise UserError(f"there are pixels of class {highest}, and only {len(names)} classes have names", "data")
    return train[: len(names) or highest + 1]


def _pixels_by_class(data: ProbeData, part: Part) -> Tensor:
    labels = data.field(part, "semantic")
    counts = torch.zeros(256, dtype=torch.int64)
    for rows in torch.arange(len(labels)).split(64):
        counts += torch.bincount(labels.take(rows).flatten(), minlength=256)
    counts[IGNORE_CLASS] = 0
    if not counts.any():
        split = data.parts[part].spec.split
        what = f"the {split} split has no labelled pixel, all are of class {IGNORE_CLASS} (ignore): check its masks"
        raise UserError(what, "data")
    return counts


def count_by_class(ids: Tensor, counted: Tensor, classes: int) -> Tensor:
    """Count the pixels of each image and class: ids [n, H, W] where `counted`, to [n, K]."""
    first = classes * torch.arange(len(ids), device=ids.device)[:, None, None]
    return torch.bincount((first + ids)[counted], minlength=classes * len(ids)).view(len(ids), classes)


def mean_iou(hits: Tensor, predicted: Tensor, labelled: Tensor) -> float:
    """Return the mean over classes of hits / union, from pixel counts [K]; classes nowhere to be seen do not count."""
    union = predicted + labelled - hits
    return float((hits / union)[union > 0].mean())
