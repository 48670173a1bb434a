"""The contract of a prior: what it is told, what it is given each step, what it returns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor, nn

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Batch = dict[str, Tensor]
"""A batch: field name (see `prior3d.fields`) to tensor."""

READABLE = frozenset({"encoder", "dense", "pooled", "reference", "ema"})
"""The kinds of features a prior may ask for in `reads`."""


@dataclass(frozen=True)
class BackboneSpec:
    """What a prior knows of the backbone when it builds its heads.

    Attributes:
        name: timm name of the encoder.
        size: height and width of every image in this run, in pixels.
        dense_channels: channels of `Features.dense`.
        dense_stride: image pixels per cell of `Features.dense` (along each axis).
        encoder_channels: stride to channels of each encoder map; a ViT has one entry, its patch tokens.
        pooled_channels: channels of `Features.pooled`.
        has_decoder: whether `dense` comes from a decoder rather than being the encoder's tokens.
    """

    name: str
    size: tuple[int, int]
    dense_channels: int
    dense_stride: int
    encoder_channels: Mapping[int, int]
    pooled_channels: int
    has_decoder: bool

    @property
    def dense_size(self) -> tuple[int, int]:
        """Rows and columns of `Features.dense`."""
        return tuple(-(-side // self.dense_stride) for side in self.size)


@dataclass(frozen=True)
class Features:
    """What one backbone pass gives for one image field; only what some prior reads is there.

    Attributes:
        encoder: stride to map [B, V, C_s, h_s, w_s].
        dense: [B, V, C, h, w], the decoder's output, or the patch tokens where there is no decoder.
        pooled: [B, V, P].
        reference: the same of the frozen INITIAL encoder.
        ema: the same of the exponential moving average of the backbone.
    """

    encoder: Mapping[int, Tensor] = field(default_factory=dict)
    dense: Tensor | None = None
    pooled: Tensor | None = None
    reference: "Features | None" = None
    ema: "Features | None" = None

    def first(self) -> Tensor:
        """Return any one of the trainable maps: what a zero loss is connected to."""
        for tensor in (self.dense, self.pooled, *self.encoder.values()):
            if tensor is not None:
                return tensor
        raise ValueError("these features hold no map: a prior must read encoder, dense or pooled")


class Prior(nn.Module):
    """An objective on the features of one backbone pass.

    Subclass it, take `backbone` and typed keyword options in the constructor (they are the schema of the recipe's
    section), and write `forward`. A prior owns its heads, memory banks and teachers; it does not own its weight, its
    schedule, the optimiser, logging or devices, nor how much of the backbone trains.

    Attributes:
        contract: version of this interface the prior was written for.
        encodes: image fields it wants features of; the union over all priors is encoded in one pass.
        reads: the kinds of features it reads, a subset of encoder, dense, pooled, reference, ema.
        needs: batch fields it reads each step; "depth|pseudo_depth" means that either will do.
        prepares: batch fields its offline stage reads.
        views: the minimum number of views of a sample.
    """

    contract: ClassVar[int] = 1
    encodes: tuple[str, ...] = ("image",)
    reads: frozenset[str] = frozenset({"dense"})
    needs: tuple[str, ...] = ()
    prepares: tuple[str, ...] = ()
    views: int = 1
    prepared_version: ClassVar[int] = 0

    def __init__(self, backbone: BackboneSpec) -> None:
        super().__init__()
        self.backbone = backbone

    def prepare_batch(self, batch: Batch) -> Batch:
        """Return the batch, with any field this prior makes itself and wants encoded; runs before the pass."""
        return batch

    def forward(self, batch: Batch, features: Mapping[str, Features]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss (a scalar connected to the features) and scalars to log.

        Args:
            batch: the fields of `needs`, on the device, images as float32 0..1.
            features: by image field, as named in `encodes`.
        """
        raise NotImplementedError

    def draw(self, batch: Batch, features: Mapping[str, Features]) -> "dict[str, Figure]":
        """Return pictures for TensorBoard, by name; none by default."""
        return {}

    def zero(self, features: Mapping[str, Features]) -> Tensor:
        """Return a loss of exactly 0 that is connected to the features and to this prior's parameters.

        For batches with nothing to learn from: a detached zero would hang DistributedDataParallel, and `x.sum() * 0`
        is NaN where x holds inf.
        """
        tensors: Sequence[Tensor] = [features[name].first() for name in self.encodes]
        tensors = [*tensors, *(p for p in self.parameters() if p.requires_grad)]
        return sum(tensor.flatten()[:0].sum() for tensor in tensors)
