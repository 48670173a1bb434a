"""Pooled features of the images of one part, their classes and their names: what probes of whole images read."""

import torch
from torch import Tensor

from prior3d.errors import UserError
from prior3d.probes.models import FrozenModel, concatenate
from prior3d.probes.probe_data import Part, ProbeData


class FrozenVectors:
    """One vector per image, those of several backbones side by side; rows go to the device."""

    def __init__(self, model: FrozenModel, data: ProbeData, part: Part) -> None:
        self.device = model.device
        self._parts = data.features(model, part, "pooled")
        self.channels = sum(part.shape[1] for part in self._parts)

    def __len__(self) -> int:
        return len(self._parts[0])

    def take(self, rows: Tensor, unit_length: bool = False) -> Tensor:
        """Return the vectors of images [n, C] in float32, of unit length if asked."""
        return concatenate([part.take(rows, self.device).float() for part in self._parts], unit_length)


def labels_of(data: ProbeData, part: Part) -> Tensor:
    """Return the class of each image of a part, [N] int64."""
    labels = data.field(part, "label")
    return labels.take(torch.arange(len(labels))).long()


def names_of(data: ProbeData, part: Part) -> list[str]:
    """Return a name for each image of a part: its scene (a domain) and its number there.

    Images of a domain are drawn one by one, so a bootstrap draws them, and not the few domains.
    """
    scenes = data.parts[part].scenes
    return [f"{scenes[scene]}/{frame}" for scene, frame in data.frames[part]]


def count_classes(data: ProbeData) -> int:
    """Return how many classes there are, by the data's names or, without, by the highest label.

    Raises:
        UserError: all training images are of one class.
    """
    trained = labels_of(data, "train")
    if trained.min() == trained.max():
        raise UserError("all training images are of one class: there is nothing to tell apart", "data")
    named = len(data.parts["held_out"].class_names)
    return named or int(max(trained.max(), labels_of(data, "held_out").max())) + 1
