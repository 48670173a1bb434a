"""The backbone: any timm encoder, a light decoder to a fine stride where one is asked for, one pass for all readers."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

import timm
import torch
from timm.data import resolve_model_data_config
from timm.models import group_parameters
from torch import Tensor, nn
from torch.nn import functional as F

from prior3d.backbone.weights import digest
from prior3d.contracts.prior import BackboneSpec
from prior3d.errors import UserError

Train = str
"""How much of the encoder trains: full, last_n or frozen."""


@dataclass(frozen=True)
class Maps:
    """Flat output of one pass over N images: stride to [N, C_s, h_s, w_s], dense [N, C, h, w], pooled [N, P]."""

    encoder: Mapping[int, Tensor]
    dense: Tensor | None
    pooled: Tensor | None


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


class Decoder(nn.Module):
    """A light top-down decoder: lateral 1x1 convolutions, bilinear upsampling, one 3x3 smoothing.

    It fuses all encoder maps of stride >= `stride`, and upsamples where the encoder has no map that fine.
    At 64 channels it has 0.08 M parameters on a ConvNeXt-Atto, 0.10 M on a ResNet-18 and 0.29 M on a ResNet-50; Pri3D's
    has 9.5 M on a ResNet-18 and 152 M on a ResNet-50. The encoder is what is kept, so the capacity should be there.

    Reference:
        Lin et al., Feature Pyramid Networks for Object Detection, 2017, arXiv 1612.03144 (top-down pathway; here one
        output level, sums at each level without per-level smoothing).
    """

    def __init__(self, encoder_channels: Mapping[int, int], stride: int, channels: int) -> None:
        super().__init__()
        self.stride = stride
        strides = sorted((s for s in encoder_channels if s >= stride), reverse=True)
        self.laterals = nn.ModuleDict({str(s): nn.Conv2d(encoder_channels[s], channels, 1) for s in strides})
        self.smooth = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 1),
        )

    def forward(self, maps: Mapping[int, Tensor], size: tuple[int, int]) -> Tensor:
        """Return the dense map [N, C, ceil(H / stride), ceil(W / stride)] for images of `size` pixels."""
        fused = None
        for stride, lateral in self.laterals.items():  # coarse to fine
            level = lateral(maps[int(stride)])
            fused = level if fused is None else level + _resize(fused, level.shape[-2:])
        target = tuple(math.ceil(side / self.stride) for side in size)
        return self.smooth(_resize(fused, target))


class Backbone(nn.Module):
    """Encoder and optional decoder, computing only what is read.

    Args:
        name: timm model name.
        size: height and width of the images, pixels.
        pretrained: load the weights timm publishes for `name`.
        decoder_stride: stride of the decoder's output; None for no decoder (`dense` is then the encoder's last map).
        channels: channels of the decoder's output.
        timm_options: further arguments of `timm.create_model`, such as {"pad_type": "same"}.
        mean, std: what images are normalised with, per channel of 0..1; None for the model's own.

    Raises:
        UserError: the model is unknown, or cannot take images of this size.
    """

    def __init__(
        self,
        name: str,
        size: tuple[int, int],
        *,
        pretrained: bool = False,
        decoder_stride: int | None = None,
        channels: int = 64,
        timm_options: Mapping[str, object] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.size = tuple(size)
        self.encoder = Encoder(name, pretrained=pretrained, timm_options=timm_options, mean=mean, std=std)
        self.decoder = Decoder(self.encoder.channels, decoder_stride, channels) if decoder_stride else None
        if self.decoder is not None and not self.decoder.laterals:
            raise UserError(
                f"the strides of {name} are {sorted(self.encoder.channels)}, none is {decoder_stride} or coarser",
                "backbone.decoder_stride",
            )
        last = max(self.encoder.channels)
        self.spec = BackboneSpec(
            name=name,
            size=self.size,
            dense_channels=channels if self.decoder else self.encoder.channels[last],
            dense_stride=decoder_stride or last,
            encoder_channels=dict(self.encoder.channels),
            pooled_channels=self.encoder.pooled_channels,
            has_decoder=self.decoder is not None,
        )
        self._check_size()

    def forward(self, images: Tensor, reads: Iterable[str]) -> Maps:
        """Encode images [N, 3, H, W] (float, 0..1) once, for readers of any of encoder, dense and pooled."""
        encoder_maps, pooled = self.encoder(images, pooled="pooled" in reads)
        dense = None
        if "dense" in reads:
            last = encoder_maps[max(encoder_maps)]
            dense = self.decoder(encoder_maps, tuple(images.shape[-2:])) if self.decoder else last
        return Maps(encoder_maps, dense, pooled)

    def train(self, mode: bool = True) -> "Backbone":
        """Set the mode; whatever part of the encoder is frozen stays in evaluation mode, running statistics too."""
        super().train(mode)
        for module in self.encoder.modules():
            parameters = list(module.parameters())
            if parameters and not any(parameter.requires_grad for parameter in parameters):
                module.eval()
        return self

    def encode_dense(self, images: Tensor) -> Tensor:
        """Return the dense features [N, C, h, w] of images [N, 3, H, W] in 0..1: what probes read."""
        return self(images, ("dense",)).dense

    def digest(self) -> str:
        """Return a SHA-256 of all weights, of the running statistics and of what images are normalised with."""
        return digest({**self.state_dict(), "mean": self.encoder.mean, "std": self.encoder.std})

    def _check_size(self) -> None:
        try:
            with torch.no_grad():
                was_training = self.training
                self.eval()
                self(torch.zeros(1, 3, *self.size), ("dense",))
                self.train(was_training)
        except (AssertionError, RuntimeError, ValueError) as error:
            hint = f"a multiple of {self.spec.dense_stride}" if self.encoder.isotropic else "another size"
            height, width = self.size
            raise UserError(
                f"{self.encoder.name} cannot take images of {height} x {width} pixels; use {hint} ({error})",
                "data.size",
            ) from error


def set_trainable(backbone: Backbone, train: Train, last_n: int, reads: Iterable[str]) -> None:
    """Choose which parameters train, and freeze those that no reader's features depend on.

    An unread parameter (a decoder nobody reads, the norm before a classifier) gets no gradient, which breaks
    DistributedDataParallel at the second step and lets weight decay erode pre-trained weights.

    Args:
        backbone: changed in place.
        train: full, last_n (the last n blocks of a ViT, the last n stages of others) or frozen (encoder only).
        last_n: the n of last_n.
        reads: features that are read: any of encoder, dense, pooled.
    """
    backbone.requires_grad_(True)
    if train == "frozen":
        backbone.encoder.requires_grad_(False)
    elif train == "last_n":
        groups = group_parameters(backbone.encoder.model, backbone.encoder.model.group_matcher(coarse=True))
        kept = {name for group in sorted(groups)[-last_n:] for name in groups[group]}
        for name, parameter in backbone.encoder.model.named_parameters():
            parameter.requires_grad_(name in kept)
    _freeze_unread(backbone, reads)


def _freeze_unread(backbone: Backbone, reads: Iterable[str]) -> None:
    was_training = backbone.training
    backbone.eval()  # running statistics must not see the probe image
    with torch.enable_grad():
        maps = backbone(torch.rand(1, 3, *backbone.size), reads)
        read = [*(maps.encoder.values() if "encoder" in reads else ()), maps.dense, maps.pooled]
        total = sum(tensor.float().pow(2).sum() for tensor in read if tensor is not None)
    parameters = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
    if total.requires_grad:
        gradients = torch.autograd.grad(total, parameters, allow_unused=True)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.requires_grad_(gradient is not None)
    backbone.train(was_training)


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


def _resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    return F.interpolate(maps, size, mode="bilinear", align_corners=False)
