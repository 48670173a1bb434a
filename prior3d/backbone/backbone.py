"""The backbone: any timm encoder, a light decoder to a fine stride where one is asked for, one pass for all readers."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prior3d.backbone.decoder import Decoder
from prior3d.backbone.encoder import Encoder
from prior3d.backbone.weights import digest
from prior3d.contracts.prior import BackboneSpec
from prior3d.errors import UserError


@dataclass(frozen=True)
class Maps:
    """Flat output of one pass over N images: stride to [N, C_s, h_s, w_s], dense [N, C, h, w], pooled [N, P]."""

    encoder: Mapping[int, Tensor]
    dense: Tensor | None
    pooled: Tensor | None


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
