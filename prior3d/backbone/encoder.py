"""A timm model that gives its feature maps by stride and its pooled feature in one pass."""

import math
from collections.abc import Mapping, Sequence
from difflib import get_close_matches

import timm
import torch
from timm.data import resolve_model_data_config
from torch import Tensor, nn
from torch.nn import functional as F

from prior3d.errors import UserError


class Encoder(nn.Module):
    """A timm model giving its feature maps by stride (and its pooled feature) in one pass.

    A model whose blocks all share one stride (a ViT) gives one map: its patch tokens after the final norm, which is the
    state that downstream users and the probes read.
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
        self.model = _create(name, pretrained, timm_options or {})
        own = resolve_model_data_config(self.model)
        # Not in the state dict: a checkpoint of the encoder is exactly timm's.
        self.register_buffer("mean", torch.tensor(mean or own["mean"])[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std or own["std"])[:, None, None], persistent=False)
        info = [(entry["reduction"], entry["num_chs"]) for entry in self.model.feature_info]
        self.isotropic = len({stride for stride, _ in info}) == 1
        # Several blocks of one stride: the last is the map of that stride (VGG lists two of stride 16).
        self._block_of_stride = {stride: index for index, (stride, _) in enumerate(info)}
        self.channels = {stride: info[index][1] for stride, index in self._block_of_stride.items()}
        # num_features is the width before conv heads in some families; the head's own input is what pooling gives.
        self.pooled_channels = getattr(self.model, "head_hidden_size", None) or self.model.num_features

    def forward(self, images: Tensor, pooled: bool) -> tuple[dict[int, Tensor], Tensor | None]:
        """Encode images.

        Args:
            images: [N, 3, H, W] float, 0..1.
            pooled: whether to compute the pooled feature, too.

        Returns:
            Stride to map [N, C_s, h_s, w_s], and pooled [N, P] or None.
        """
        height, width = images.shape[-2:]
        images = self._pad((images - self.mean) / self.std)
        if images.is_cuda and not self.isotropic:
            images = images.contiguous(memory_format=torch.channels_last)
        blocks = list(self._block_of_stride.values())
        outputs = self.model.forward_intermediates(
            images, indices=blocks, norm=self.isotropic, output_fmt="NCHW", intermediates_only=not pooled
        )
        final, maps = outputs if pooled else (None, outputs)
        by_stride = {
            stride: output[..., : math.ceil(height / stride), : math.ceil(width / stride)]
            for stride, output in zip(self._block_of_stride, maps, strict=True)
        }
        return by_stride, self.model.forward_head(final, pre_logits=True) if pooled else None

    def _pad(self, images: Tensor) -> Tensor:
        """Pad to whole cells of the coarsest map, with the mean colour as convolutions do at a border.

        Families differ in how they round a map's size; without this, cell i of a map would not lie at pixel stride * i.
        """
        if self.isotropic:
            return images  # a ViT refuses such sizes itself, in words
        coarsest = max(self._block_of_stride)
        height, width = images.shape[-2:]
        return F.pad(images, (0, -width % coarsest, 0, -height % coarsest))


def check_name(name: str) -> None:
    """Raise UserError, with the nearest names, for a name that is no model of timm."""
    if not timm.is_model(name.split(".")[0]):
        close = get_close_matches(name, timm.list_models(), n=3)
        hint = f", did you mean {' or '.join(close)}?" if close else "; timm.list_models() lists them"
        raise UserError(f"timm has no model {name!r}{hint}", "backbone.name")


def _create(name: str, pretrained: bool, options: Mapping[str, object]) -> nn.Module:
    check_name(name)
    try:
        model = _create_for_any_size(name, pretrained, options)
    except (TypeError, RuntimeError, ValueError, AssertionError) as error:
        raise UserError(f"timm cannot make {name}: {error}", "backbone") from error
    except OSError as error:  # what fetching raises without a network, whichever library does it
        why = (str(error).splitlines() or [type(error).__name__])[0]
        advice = "or give a file you have with backbone.weights"
        raise UserError(f"cannot fetch timm's weights of {name}, {advice} ({why})", "backbone.pretrained") from error
    if not hasattr(model, "forward_intermediates"):
        raise UserError(f"timm's {name} gives no intermediate features (no forward_intermediates)", "backbone.name")
    return model


def _create_for_any_size(name: str, pretrained: bool, options: Mapping[str, object]) -> nn.Module:
    arguments = {"pretrained": pretrained, "num_classes": 0, **options}
    try:
        # Keeps a ViT's position embedding in its published shape, so that weights export back strictly.
        return timm.create_model(name, dynamic_img_size=True, **arguments)
    except TypeError as error:
        if "dynamic_img_size" not in str(error):
            raise
    return timm.create_model(name, **arguments)  # a family without that argument
