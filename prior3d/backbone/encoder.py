"""A timm model that computes its feature maps by stride and its pooled feature in one pass."""

import math
from collections.abc import Mapping, Sequence

import timm
import torch
from timm.data import resolve_model_data_config
from torch import Tensor, nn
from torch.nn import functional as F

from prior3d.backbone.fetching import cannot_fetch, publishes_weights, weights_source
from prior3d.backbone.layout import Unfit, find_layout, pool
from prior3d.backbone.memory import refuse_out_of_memory
from prior3d.backbone.sizes import advise
from prior3d.errors import UserError
from prior3d.messages import did_you_mean

_CREATION_ERRORS = (TypeError, RuntimeError, ValueError, AssertionError, LookupError, AttributeError, ArithmeticError)
"""Errors that timm raises for options that do not fit a model, or have the wrong type."""


class Encoder(nn.Module):
    """A timm model that computes its feature maps by stride (and its pooled feature) in one pass.

    A model whose blocks all share one stride (a ViT) gives one map: its patch tokens after the final norm, which is the
    state that downstream users and the probes read.

    Args:
        name: timm model name.
        pretrained: load the weights that timm publishes for `name`.
        timm_options: additional arguments of `timm.create_model`, such as {"pad_type": "same"}.
        mean, std: normalization of images, per channel of 0..1; None for the model's own.

    Raises:
        UserError: the model is unknown or cannot be created, or its weights cannot be fetched.
    """

    def __init__(
        self,
        name: str,
        *,
        pretrained: bool = False,
        timm_options: Mapping[str, object] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.name = name
        self.timm_options = dict(timm_options or {})
        self.model = create_model(name, pretrained=pretrained, options=self.timm_options)
        own = resolve_model_data_config(self.model)
        # Not in the state dict: a checkpoint of the encoder is exactly timm's.
        self.register_buffer("mean", torch.tensor(mean or own["mean"])[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std or own["std"])[:, None, None], persistent=False)
        self.layout = None

    def fit(self, size: tuple[int, int]) -> "Encoder":
        """Find by forward passes how the maps align with images of a size, in pixels; call it before `forward`.

        Raises:
            UserError: the model cannot take such images; the message has a size or an option that works.
        """
        height, width = size
        try:
            with refuse_out_of_memory(
                f"one image of {height} x {width} pixels is too much; use a smaller size", "size"
            ):
                self.layout = find_layout(self.model, size)
        except Unfit as misfit:
            raise UserError(
                f"{self.name} cannot take images of {height} x {width} pixels;"
                f" {advise(self.name, self.timm_options, size)} ({misfit})",
                "size",
            ) from misfit
        coarsest = max(self.channels)
        if min(size) < coarsest:
            least = " x ".join(str(max(side, coarsest)) for side in size)
            raise UserError(
                f"images of {height} x {width} pixels are smaller than one cell of {self.name}, {coarsest} x {coarsest}"
                f" pixels, and would be mostly padding; use {least} or more",
                "size",
            )
        return self

    @property
    def channels(self) -> dict[int, int]:
        """Stride to channels of each map."""
        return self.layout.channels

    @property
    def pooled_channels(self) -> int:
        """Channels of the pooled feature."""
        return self.layout.pooled_channels

    @property
    def isotropic(self) -> bool:
        """Whether all blocks share one stride, as those of a ViT do."""
        return self.layout.isotropic

    def forward(self, images: Tensor, pooled: bool) -> tuple[dict[int, Tensor], Tensor | None]:
        """Encode images.

        Args:
            images: [N, 3, H, W] float, 0..1.
            pooled: whether to compute the pooled feature as well.

        Returns:
            Stride to map [N, C_s, h_s, w_s], and pooled [N, P] or None.
        """
        height, width = images.shape[-2:]
        images = self._prepare(images)
        outputs = self.model.forward_intermediates(
            images,
            indices=list(self.layout.index_of_stride.values()),
            norm=self.isotropic,
            output_fmt="NCHW",
            intermediates_only=not pooled,
        )
        final, maps = outputs if pooled else (None, outputs)
        by_stride = {
            stride: output[..., : math.ceil(height / stride), : math.ceil(width / stride)]
            for stride, output in zip(self.layout.index_of_stride, maps, strict=True)
        }
        return by_stride, pool(self.model, final) if pooled else None

    def every_map(self, images: Tensor) -> list[Tensor]:
        """Return the maps of all blocks or stages, first to last, without the final norm, of images [N, 3, H, W]."""
        return self.model.forward_intermediates(
            self._prepare(images), norm=False, output_fmt="NCHW", intermediates_only=True
        )

    def _prepare(self, images: Tensor) -> Tensor:
        """Normalize, and pad with the mean color to whole cells of the coarsest map, as convolutions pad at a border.

        Families round a map's size differently; without padding, cell i of a map would not lie at pixel stride * i.
        """
        height, width = images.shape[-2:]
        cell = self.layout.cell
        images = F.pad((images - self.mean) / self.std, (0, -width % cell, 0, -height % cell))
        if images.is_cuda and not self.isotropic:
            images = images.contiguous(memory_format=torch.channels_last)
        return images


def check_name(name: str) -> None:
    """Raise UserError, with the nearest names, for a name that is not a timm model."""
    if not timm.is_model(name.split(".")[0]):
        hint = did_you_mean(name, timm.list_models(), most=3) or "; timm.list_models() lists them"
        raise UserError(f"timm has no model {name!r}{hint}", "name")


def create_model(
    name: str, *, pretrained: bool = False, options: Mapping[str, object] | None = None, classifier: bool = False
) -> nn.Module:
    """Create a timm model.

    Args:
        name: timm model name.
        pretrained: load the weights that timm publishes for it.
        options: additional arguments of `timm.create_model`.
        classifier: keep its classifier.

    Raises:
        UserError: the model is unknown or cannot be created, or its weights cannot be fetched.
    """
    check_name(name)
    source = weights_source(name) if pretrained else {"pretrained": False}
    arguments = {**source, **({} if classifier else {"num_classes": 0}), **(options or {})}
    try:
        with refuse_out_of_memory(f"timm cannot make {name} with {dict(options or {})}", "timm_options"):
            model = _create_for_any_size(name, arguments)
    except _CREATION_ERRORS as error:
        if pretrained and not publishes_weights(name):
            advice = "set pretrained: false, or name a file that you have with weights"
            raise UserError(f"timm publishes no weights of {name}; {advice}", "pretrained") from error
        why = str(error) or type(error).__name__
        raise UserError(f"timm cannot make {name}: {why}", "timm_options" if options else "name") from error
    except OSError as error:  # raised without a network by every library that fetches
        raise cannot_fetch(name, error) from error
    if not hasattr(model, "forward_intermediates"):
        raise UserError(
            f"timm's {name} gives no feature maps (it has no forward_intermediates): use another model",
            "name",
        )
    return model


def _create_for_any_size(name: str, arguments: Mapping[str, object]) -> nn.Module:
    try:
        # Keeps a ViT's position embedding in its published shape, so weights export back strictly.
        return timm.create_model(name, dynamic_img_size=True, **arguments)
    except TypeError as error:
        if "dynamic_img_size" not in str(error):
            raise
    return timm.create_model(name, **arguments)  # a family without this argument
