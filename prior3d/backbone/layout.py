"""Layout of the maps of a timm model: stride, extent and channels, measured by a forward pass."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prior3d.backbone.memory import is_out_of_memory
from prior3d.messages import first_line

_FORWARD_ERRORS = (AssertionError, RuntimeError, ValueError, IndexError, TypeError, ZeroDivisionError)
"""Errors that timm models raise for an image size that they cannot take."""


class Unfit(ValueError):
    """A model does not take images of a size, or its maps do not match their strides; the text gives the reason."""


@dataclass(frozen=True)
class Layout:
    """Alignment of a model's maps with images, found by a forward pass.

    Attributes:
        index_of_stride: stride to the number of the block or stage whose map has it; the last one if several do.
        channels: stride to channels of that map.
        pooled_channels: channels of the pooled feature.
        cell: images are padded to whole cells of this many pixels; 1 for no padding.
        isotropic: whether all blocks share one stride, as those of a ViT do.
        probe_size: the smallest tested image, height and width in pixels.
    """

    index_of_stride: dict[int, int]
    channels: dict[int, int]
    pooled_channels: int
    cell: int
    isotropic: bool
    probe_size: tuple[int, int]


def find_layout(model: nn.Module, size: tuple[int, int]) -> Layout:
    """Find the alignment of a model's maps with images of a size, by forward passes at this and at another size.

    timm's description (`feature_info`) is not used: for some families its strides, channels or extents are wrong. Maps
    are accepted if cell i of a map of stride s begins at pixel i * s and every pixel has a cell.

    Args:
        model: a timm model without classifier, on any device including meta; it is not changed.
        size: height and width of images, pixels.

    Raises:
        Unfit: the model does not take such images, or its maps are not aligned like this.
    """
    described = [entry["reduction"] for entry in model.feature_info]
    if len(set(described)) == 1:
        return _layout(model, size, described, cell=1)  # a ViT rejects sizes itself, with a message
    try:
        return _layout(model, size, described, cell=max(described))
    except Unfit as misfit:
        try:
            return _layout(model, size, described, cell=1)  # built for one size, such as LeViT's 224 of stride 64
        except Unfit:
            raise misfit from None


def pool(model: nn.Module, final: Tensor) -> Tensor:
    """Return a model's pooled feature [N, P]: that of its head, or the mean of final features over cells or tokens."""
    pooled = model.forward_head(final, pre_logits=True)
    if pooled.dim() == 2:
        return pooled
    return pooled.mean((2, 3)) if pooled.dim() == 4 else pooled.mean(1)


def _layout(model: nn.Module, size: tuple[int, int], described: Sequence[int], cell: int) -> Layout:
    isotropic = len(set(described)) == 1
    padded = tuple(-(-side // cell) * cell for side in size)
    maps, pooled = _run(model, padded, isotropic)
    strides = _strides(maps, padded, described)
    coarsest = max(strides)
    if cell not in (1, coarsest):
        return _layout(model, size, strides, coarsest)
    return Layout(
        index_of_stride={stride: index for index, stride in enumerate(strides)},
        channels={stride: one.shape[1] for stride, one in zip(strides, maps, strict=True)},
        pooled_channels=pooled.shape[1],
        cell=cell,
        isotropic=isotropic,
        probe_size=min(padded, _other_size(model, padded, strides), key=math.prod),
    )


def _other_size(model: nn.Module, size: tuple[int, int], strides: Sequence[int]) -> tuple[int, int]:
    """Return a second size that the model takes, with maps of the same strides; the first if it takes no other."""
    other = (4 * max(strides), 2 * max(strides))  # even numbers of cells: MobileViTs take only those
    try:
        maps, _ = _run(model, other, len(set(strides)) == 1)
    except Unfit:
        return size
    _strides(maps, other, strides, exact=True)
    return other


def _strides(maps: Sequence[Tensor], size: tuple[int, int], described: Sequence[int], exact: bool = False) -> list[int]:
    if len(maps) != len(described):
        raise Unfit(f"timm describes {len(described)} maps and the model gives {len(maps)}")
    return [_stride(one, size, stride, exact) for one, stride in zip(maps, described, strict=True)]


def _stride(one: Tensor, size: tuple[int, int], described: int, exact: bool) -> int:
    (height, width), (rows, columns) = size, one.shape[-2:]
    expected = math.ceil(height / described), math.ceil(width / described)
    if expected == (rows, columns):
        return described
    if not exact and height % rows == 0 and width % columns == 0 and height // rows == width // columns:
        return height // rows
    raise Unfit(
        f"its map of stride {described} has {rows} x {columns} cells for {height} x {width} pixels, where"
        f" {expected[0]} x {expected[1]} would lie on them"
    )


def _run(model: nn.Module, size: tuple[int, int], isotropic: bool) -> tuple[list[Tensor], Tensor]:
    images = torch.zeros(1, 3, *size, device=next(model.parameters()).device)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            every = list(range(len(model.feature_info)))
            final, maps = model.forward_intermediates(images, indices=every, norm=isotropic, output_fmt="NCHW")
            pooled = pool(model, final)
    except _FORWARD_ERRORS as error:
        if is_out_of_memory(error):
            raise
        raise Unfit(first_line(error, f"{type(error).__name__} in timm's code, without a reason")) from error
    finally:
        model.train(was_training)
    return maps, pooled
