"""Models as probes see them: frozen features of one backbone, or of several concatenated."""

from collections.abc import Callable, Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prior3d.backbone import Backbone
from prior3d.contracts.probe import FeatureKind

ENCODER_STRIDE = 8
"""Pixels per cell of the `encoder` features of a pyramid; a ViT keeps its own stride."""


class FrozenModel:
    """Frozen features of one or several backbones; several are concatenated along the channels.

    Args:
        backbones: Backbones in evaluation mode, with re-estimated BatchNorm statistics; never changed.
        device: Device of the backbones and images.
        classify: Function from images [N, 3, H, W] in 0..1 to the logits of the checkpoint's frozen classifier, if any.
    """

    def __init__(
        self,
        backbones: Sequence[Backbone],
        device: str | torch.device = "cpu",
        classify: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.backbones = tuple(backbones)
        self.device = torch.device(device)
        self.classify = classify
        self.beside: tuple[FrozenModel, ...] = ()

    @classmethod
    def side_by_side(cls, models: "Sequence[FrozenModel]") -> "FrozenModel":
        """Return the model whose features are those of several models, concatenated; `beside` keeps the models."""
        made = cls([backbone for model in models for backbone in model.backbones], models[0].device)
        made.beside = tuple(models)
        return made

    @torch.no_grad()
    def read(self, images: Tensor, kind: FeatureKind = "dense") -> tuple[Tensor, ...]:
        """Return the features of each part: maps [N, C, h, w], of equal size, or vectors [N, C].

        Args:
            images: Images [N, 3, H, W] in 0..1, on the device.
            kind: Type of features.
        """
        parts = [_read(backbone, images, kind) for backbone in self.backbones]
        if kind == "pooled":
            return tuple(parts)
        finest = max((part.shape[-2:] for part in parts), key=lambda size: size[0] * size[1])
        return tuple(resize(part, tuple(finest)) for part in parts)

    def trainable(self) -> list[Backbone]:
        """Return copies of the backbones with all parameters trainable."""
        return [deepcopy(backbone).requires_grad_(True) for backbone in self.backbones]


def concatenate(parts: Sequence[Tensor], unit_length: bool = False) -> Tensor:
    """Concatenate parts along the channels.

    Args:
        parts: Parts from `FrozenModel.read`.
        unit_length: Scale every part to unit length first (and so the whole), for comparisons by cosine. Otherwise the
            part with the larger numbers would dominate.

    >>> concatenate([torch.ones(1, 2, 3, 3), torch.ones(1, 4, 3, 3)]).shape
    torch.Size([1, 6, 3, 3])
    """
    if not unit_length:
        return torch.cat(list(parts), 1)
    return torch.cat([F.normalize(part.float(), dim=1) for part in parts], 1) / len(parts) ** 0.5


def _read(backbone: Backbone | nn.Module, images: Tensor, kind: FeatureKind) -> Tensor:
    if kind == "dense":
        return backbone(images, ("dense",)).dense
    if kind == "pooled":
        return backbone(images, ("pooled",)).pooled
    maps = backbone(images, ("encoder",)).encoder
    stride = max(min(maps), ENCODER_STRIDE)
    size = maps[stride].shape[-2:] if stride in maps else tuple(-(-side // stride) for side in images.shape[-2:])
    return torch.cat([resize(level, tuple(size)) for level in maps.values()], 1)


def resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize maps [N, C, h, w]: bilinearly to a finer size, by means over cells to a coarser one."""
    if tuple(maps.shape[-2:]) == size:
        return maps
    if maps.shape[-2] > size[0]:
        return F.adaptive_avg_pool2d(maps, size)
    return F.interpolate(maps, size, mode="bilinear", align_corners=False)
