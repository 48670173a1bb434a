"""Labels of images and of pixels: classes, and counts of right predictions."""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

from prior3d.contracts.fields import IGNORE_CLASS
from prior3d.contracts.probe import Part
from prior3d.errors import UserError
from prior3d.probes.probe_data import ProbeData


def labels_of(data: ProbeData, part: Part) -> Tensor:
    """Return the class of each image of a part, [N] int64."""
    labels = data.field(part, "label")
    return labels.take(torch.arange(len(labels))).long()


def names_of(data: ProbeData, part: Part) -> list[str]:
    """Return a name for each image of a part: its scene (a domain) and its index there.

    Images of a domain are sampled independently, so a bootstrap resamples images rather than the few domains.
    """
    scenes = data.parts[part].scenes
    return [f"{scenes[scene]}/{frame}" for scene, frame in data.frames[part]]


def count_classes(data: ProbeData) -> int:
    """Return the number of classes, from the data's names or, without names, from the highest label.

    Raises:
        UserError: All training images are of one class.
    """
    trained = labels_of(data, "train")
    if trained.min() == trained.max():
        raise UserError("all training images are of one class: there is nothing to tell apart", "data")
    named = len(data.parts["held_out"].class_names)
    return named or int(max(trained.max(), labels_of(data, "held_out").max())) + 1


def class_frequency(data: ProbeData) -> Tensor:
    """Count the training pixels of each class: [K] int64, K from the data's names or, without, from the highest id.

    Raises:
        UserError: A part has no label at all, or a class without a name.
    """
    names = data.parts["held_out"].class_names
    train, held_out = (_pixels_by_class(data, part) for part in ("train", "held_out"))
    highest = int(torch.maximum(train, held_out).nonzero().max())
    if names and highest >= len(names):
        raise UserError(f"there are pixels of class {highest}, but only {len(names)} classes have names", "data")
    return train[: len(names) or highest + 1]


def _pixels_by_class(data: ProbeData, part: Part) -> Tensor:
    labels = data.field(part, "semantic")
    counts = torch.zeros(256, dtype=torch.int64)
    for rows in torch.arange(len(labels)).split(64):
        counts += torch.bincount(labels.take(rows).flatten(), minlength=256)
    counts[IGNORE_CLASS] = 0
    if not counts.any():
        split = data.parts[part].spec.split
        what = f"the {split} split has no labeled pixel, all are of class {IGNORE_CLASS} (ignore): check its masks"
        raise UserError(what, "data")
    return counts


def count_by_class(ids: Tensor, counted: Tensor, classes: int) -> Tensor:
    """Count the pixels of each image and class: ids [n, H, W] where `counted`, to [n, K]."""
    first = classes * torch.arange(len(ids), device=ids.device)[:, None, None]
    return torch.bincount((first + ids)[counted], minlength=classes * len(ids)).view(len(ids), classes)


def mean_iou(hits: Tensor, predicted: Tensor, labeled: Tensor) -> float:
    """Return the mean over classes of hits / union, from pixel counts [K]; classes that never occur do not count."""
    union = predicted + labeled - hits
    return float((hits / union)[union > 0].mean())


def count_hits(predicted: Tensor, truth: Tensor, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Count pixels by image and class; those of unknown class (255) do not count.

    Args:
        predicted: Class ids [n, H, W] int64.
        truth: Class ids [n, H, W] int64.
        classes: Number of classes, K.

    Returns:
        Counts [n, K] int64 each: pixels of the class, those of them predicted right, pixels predicted as the class.
    """
    known = truth != IGNORE_CLASS
    return (
        count_by_class(truth, known, classes),
        count_by_class(truth, known & (predicted == truth), classes),
        count_by_class(predicted, known, classes),
    )


def cross_entropy(logits: Tensor, truth: Tensor) -> Tensor:
    """Return the mean cross-entropy over pixels of known class; 0 if there are none.

    Args:
        logits: Logits [n, K, ...].
        truth: Class ids [n, ...], 255 = unknown.
    """
    truth = truth.long()
    summed = F.cross_entropy(logits, truth, ignore_index=IGNORE_CLASS, reduction="sum")
    return summed / (truth != IGNORE_CLASS).sum().clamp_min(1)  # a batch may have no label at all


def score_constant(data: ProbeData, guess: int, classes: int) -> dict[str, Tensor]:
    """Return the scores of guessing one class for every held-out pixel: see `count_hits`, by name, [N, K] each."""
    truth = data.field("held_out", "semantic")

    def count(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        ids = truth.take(rows).long()
        return count_hits(torch.full_like(ids, guess), ids, classes)

    # Keys of score files keep their spelling: finished runs hold them.
    return counted(("labelled", "hits", "predicted"), map(count, torch.arange(len(truth)).split(64)))


def counted(names: Iterable[str], batches: Iterable[tuple[Tensor, ...]]) -> dict[str, Tensor]:
    """Return the counts of all batches, concatenated, by name."""
    return dict(zip(names, map(torch.cat, zip(*batches, strict=True)), strict=True))
