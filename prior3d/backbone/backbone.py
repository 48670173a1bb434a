"""The backbone: any timm encoder, an optional light decoder to a fine stride, and one pass for all readers."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from prior3d.backbone.decoder import Decoder
from prior3d.backbone.encoder import Encoder
from prior3d.backbone.memory import refuse_out_of_memory
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
    """Encoder and optional decoder that compute only the features that are read.

    Args:
        encoder: name of a timm model, or an existing encoder, to which the options after `channels` then do not apply.
        size: height and width of the images, pixels.
        decoder_stride: stride of the decoder's output; None for no decoder (`dense` is then the encoder's last map).
        channels: channels of the decoder's output.
        pretrained: load the weights that timm publishes for the model.
        timm_options: additional arguments of `timm.create_model`, such as {"pad_type": "same"}.
        mean, std: normalization of images, per channel of 0..1; None for the model's own.

    Attributes:
        notes: notes for the user about the origin of the weights, one line each.

    Raises:
        UserError: the model is unknown, or cannot take images of this size; its key is one of the arguments above, or
            `name`.

    >>> import torch
    >>> backbone = Backbone("test_resnet", (64, 96), decoder_stride=4, channels=16)
    >>> backbone(torch.rand(2, 3, 64, 96), {"dense"}).dense.shape
    torch.Size([2, 16, 16, 24])
    """

    def __init__(
        self,
        encoder: str | Encoder,
        size: tuple[int, int],
        *,
        decoder_stride: int | None = None,
        channels: int = 64,
        pretrained: bool = False,
        timm_options: Mapping[str, object] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.size = tuple(size)
        self.notes: list[str] = []
        if isinstance(encoder, str):
            encoder = Encoder(encoder, pretrained=pretrained, timm_options=timm_options, mean=mean, std=std)
        self.encoder = encoder.fit(self.size)
        strides = sorted(encoder.channels)
        if decoder_stride and decoder_stride > strides[-1]:
            raise UserError(
                f"the strides of {encoder.name} are {strides}, none is {decoder_stride} or coarser", "decoder_stride"
            )
        with refuse_out_of_memory(f"a decoder of {channels} channels; use fewer", "channels"):
            self.decoder = Decoder(encoder.channels, decoder_stride, channels) if decoder_stride else None
        self.spec = BackboneSpec(
            name=encoder.name,
            size=self.size,
            dense_channels=channels if self.decoder else encoder.channels[strides[-1]],
            dense_stride=decoder_stride or strides[-1],
            encoder_channels=dict(encoder.channels),
            pooled_channels=encoder.pooled_channels,
            has_decoder=self.decoder is not None,
        )

    def forward(self, images: Tensor, reads: Iterable[str]) -> Maps:
        """Encode images [N, 3, H, W] (float, 0..1) once, for readers of any of encoder, dense and pooled."""
        encoder_maps, pooled = self.encoder(images, pooled="pooled" in reads)
        dense = None
        if "dense" in reads:
            last = encoder_maps[max(encoder_maps)]
            dense = self.decoder(encoder_maps, tuple(images.shape[-2:])) if self.decoder else last
        return Maps(encoder_maps, dense, pooled)

    def train(self, mode: bool = True) -> "Backbone":
        """Set the mode; frozen parts of the encoder, including running statistics, stay in evaluation mode."""
        super().train(mode)
        for module in self.encoder.modules():
            parameters = list(module.parameters())
            if parameters and not any(parameter.requires_grad for parameter in parameters):
                module.eval()
        return self

    def digest(self) -> str:
        """Return a SHA-256 of all weights, the running statistics, and the mean and std that normalize images."""
        return digest({**self.state_dict(), "mean": self.encoder.mean, "std": self.encoder.std})
