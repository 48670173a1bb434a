"""Models as probes see them: frozen features of one backbone, or of several side by side."""

from collections.abc import Callable, Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prior3d.backbone import Backbone
from prior3d.contracts.probe import FeatureKind

ENCODER_STRIDE = 8
"""Pixels per cell of the `encoder` features of a pyramid; a ViT's keep their own."""


class FrozenModel:
    """Frozen features of one or several backbones; several are concatenated along the channels.

    Args:
        backbones: in evaluation mode, their BatchNorm statistics re-estimated; never changed.
        device: where they are, and images have to be.
        classify: images [N, 3, H, W] in 0..1 to the logits of the checkpoint's own frozen classifier, if it has one.
        class_names: of those logits, where they are known.
    """

    def __init__(
        self,
        backbones: Sequence[Backbone],
        device: str | torch.device = "cpu",
        classify: Callable[[Tensor], Tensor] | None = None,
        class_names: tuple[str, ...] = (),
    ) -> None:
        self.backbones = tuple(backbones)
        self.device = torch.device(device)
        self.classify = classify
        self.class_names = class_names
        self.beside: tuple[FrozenModel, ...] = ()

    @classmethod
    def side_by_side(cls, models: "Sequence[FrozenModel]") -> "FrozenModel":
        """Return the model whose features are those of several models, concatenated; kept in `beside`."""
        made = cls([backbone for model in models for backbone in model.backbones], models[0].device)
        made.beside = tuple(models)
        return made

    @torch.no_grad()
    def read(self, images: Tensor, kind: FeatureKind = "dense") -> tuple[Tensor, ...]:
        """Return the features of each part: maps [N, C, h, w], of equal size, or vectors [N, C].

        Args:
            images: [N, 3, H, W] in 0..1, on the device.
            kind: which features.
        """
        parts = [_read(backbone, images, kind) for backbone in self.backbones]
        if kind == "pooled":
            return tuple(parts)
        finest = max((part.shape[-2:] for part in parts), key=lambda size: size[0] * size[1])
        return tuple(resize(part, tuple(finest)) for part in parts)

    def trainable(self) -> list[Backbone]:
        """Return copies of the backbones whose every parameter may be trained."""
        return [deepcopy(backbone).requires_grad_(True) for backbone in self.backbones]


def concatenate(parts: Sequence[Tensor], unit_length: bool = False) -> Tensor:
    """Concatenate parts along the channels.

    Args:
        parts: as `FrozenModel.read` gives them.
        unit_length: give every part unit length first (and so the whole): for comparisons by cosine, where the part
            with the larger numbers would decide alone.

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
    """Bring maps [N, C, h, w] to another size: bilinearly to a finer one, by means over cells to a coarser one."""
    if tuple(maps.shape[-2:]) == size:
        return maps
    if maps.shape[-2] > size[0]:
        return F.adaptive_avg_pool2d(maps, size)
    return F.interpolate(maps, size, mode="bilinear", align_corners=False)
