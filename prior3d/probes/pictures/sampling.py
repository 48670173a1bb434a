"""Features of a model on images of any sizes, and at the same places of them for all models."""

from collections.abc import Iterable, Mapping, Sequence
from math import lcm

import torch
from torch import Tensor
from torch.nn import functional as F

from prior3d.errors import UserError
from prior3d.probes.measuring import check_size
from prior3d.probes.models import FrozenModel, Kind, concatenate
from prior3d.randomness import generator

PLACES = 2048
"""Pixels that axes and clusters are fitted to, over all images: more changes no picture, and the work grows with its
cube."""


def check_sizes(models: Mapping[str, FrozenModel], sizes: Iterable[tuple[int, int]]) -> None:
    """Raise UserError where a model cannot take images of one of these sizes, height and width in pixels."""
    for model in models.values():
        for size in {_whole_cells(model, size) for size in sizes}:
            for backbone in model.backbones:
                try:
                    check_size(backbone, size)
                except UserError as error:
                    raise UserError(error.message) from error  # no key of a recipe is at fault


def encode(model: FrozenModel, image: Tensor, kind: Kind) -> Tensor:
    """Return the features [C, h, w] of an image [3, H, W] in 0..1, in float32 on the CPU.

    The image is resized to the nearest whole number of the model's cells, so that the map covers it exactly.

    Raises:
        UserError: the features are not finite.
    """
    if kind == "pooled":
        raise ValueError("expected features with a place, dense or encoder, got pooled")
    size = _whole_cells(model, tuple(image.shape[-2:]))
    image = image.to(model.device)[None].float()
    if tuple(image.shape[-2:]) != size:
        image = F.interpolate(image, size, mode="bilinear", align_corners=False, antialias=True).clamp(0, 1)
    parts = model.read(image, kind)
    features = concatenate(parts, unit_length=len(parts) > 1)[0].float().cpu()
    if not features.isfinite().all():
        raise UserError(f"the features of {model.backbones[0].encoder.name} are not finite")
    return features


def sample_places(images: int) -> Tensor:
    """Return places [images, P, 2] as shares of height and width, 0..1, the same whatever the models."""
    return torch.rand(images, -(-PLACES // images), 2, generator=generator("pictures", images))


def read_places(features: Tensor, places: Tensor) -> Tensor:
    """Return the features [P, C] of the cells of a map [C, h, w] in which places [P, 2] lie."""
    size = torch.tensor(features.shape[1:])
    rows, columns = torch.minimum((places * size).long(), size - 1).unbind(1)
    return features[:, rows, columns].T


def sample_features(
    maps: Mapping[str, Sequence[Tensor]],  # by model, a map [C, h, w] for each image
) -> dict[str, Tensor]:
    """Return by model the features [R, C] at the same places of the same images."""
    places = sample_places(len(next(iter(maps.values()))))
    return {
        name: torch.cat([read_places(features, here) for features, here in zip(own, places, strict=True)])
        for name, own in maps.items()
    }


def _whole_cells(model: FrozenModel, size: tuple[int, int]) -> tuple[int, int]:
    # The coarsest map's cell: encoders pad to it themselves, with a border that would be part of the picture.
    cell = lcm(*(max(backbone.spec.encoder_channels) for backbone in model.backbones))
    return tuple(max(round(side / cell), 1) * cell for side in size)
