"""The contract of a prior: what it is told, what it is given each step, what it returns."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor, nn

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Batch = dict[str, Tensor]
"""A batch: field name (see `prior3d.contracts.fields`) to tensor."""

FEATURE_KINDS = frozenset({"encoder", "dense", "pooled"})
"""The kinds of features that one pass of a backbone gives."""

TEACHERS = frozenset({"reference", "ema"})
"""The frozen backbones whose features a prior may read next to those of the one that trains."""

READABLE = FEATURE_KINDS | TEACHERS
"""What a prior may ask for in `reads`."""


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

    def maps(self) -> list[Tensor]:
        """Return the trainable maps: what a zero loss is connected to."""
        maps = [tensor for tensor in (self.dense, self.pooled, *self.encoder.values()) if tensor is not None]
        if not maps:
            raise ValueError("these features hold no map: a prior must read encoder, dense or pooled")
        return maps


Teacher = Callable[[Tensor], Features]
"""A frozen backbone: images [B, V, 3, H, W] in 0..1 to the kinds of features that the prior reads, without gradient."""


@dataclass(frozen=True)
class Scene:
    """A scene as the offline stage of a prior sees it: all of its frames, none of them augmented.

    Attributes:
        index: of the scene, as in the batch field `scene`.
        name: for messages.
        frames: how many there are; numbers run from 0, as in the batch field `frame`.
        read: decodes the frames of some numbers to a batch of ONE sample: the fields of `prepares`, [1, V, ...] on the
            device, images in 0..1. Frames that are damaged are left out where the recipe says so: `frame` [1, V] tells
            which are there.
    """

    index: int
    name: str
    frames: int
    read: Callable[[Sequence[int]], Batch]


class Prior(nn.Module):
    """An objective on the features of one backbone pass.

    Subclass it, take `backbone` and typed keyword options in the constructor (they are the schema of the recipe's
    section), and write `forward`. A prior owns its heads, memory banks and teachers; it does not own its weight, its
    schedule, the optimiser, logging or devices, nor how much of the backbone trains.

    Attributes:
        contract: version of this interface the prior was written for.
        encodes: image fields it wants features of; the union over all priors is encoded in one pass.
        reads: the kinds of features it reads, a subset of encoder, dense, pooled, reference, ema; of the teachers
            `reference` and `ema` it gets the same kinds as of the backbone that trains.
        needs: batch fields it reads each step; "depth|pseudo_depth" means that either will do.
        views: the minimum number of views of a sample.
        prepares: fields its offline stage reads, of all frames of all scenes; none for no such stage.
        refresh_steps: optimiser steps before which the offline stage runs anew with the moving average of the backbone
            as its teacher. Without any it runs once, before training, with the initial backbone.
        prepared_version: to be raised whenever `prepare` writes something else for the same options.
        prepared_options: names of the options on which what it writes depends; None for all of them.
    """

    contract: ClassVar[int] = 1
    encodes: tuple[str, ...] = ("image",)
    reads: frozenset[str] = frozenset({"dense"})
    needs: tuple[str, ...] = ()
    views: int = 1
    prepares: tuple[str, ...] = ()
    refresh_steps: tuple[int, ...] = ()
    prepared_version: ClassVar[int] = 0
    prepared_options: ClassVar[tuple[str, ...] | None] = None

    def __init__(self, backbone: BackboneSpec) -> None:
        super().__init__()
        self.backbone = backbone

    def prepare(self, scene: Scene, teacher: Teacher, folder: Path) -> None:
        """Write what this prior needs of one scene: its offline stage, where it `prepares` anything.

        Scenes are shared out among processes and runs, so what is written may depend on the arguments and on the
        `prepared_options`, but neither on other scenes nor on this prior's parameters. Whoever is killed leaves
        nothing behind, and another begins the scene anew.

        Args:
            scene: the scene.
            teacher: encodes its images; see `refresh_steps`.
            folder: an empty folder, which appears under its final name when all is written.
        """
        raise NotImplementedError(f"{type(self).__name__} prepares {self.prepares} and has no prepare()")

    def attach(self, folders: Sequence[Path]) -> None:
        """Take over what was prepared, by this process or another; until then the loss is 0 (`zero`).

        Called before training or, with `refresh_steps`, at each of these and on resume after one.

        Args:
            folders: those `prepare` has filled; scene i of the batch field `scene` is in `folders[i]`.
        """

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

    def plot(self, batch: Batch, features: Mapping[str, Features]) -> "dict[str, Figure]":
        """Return pictures for TensorBoard, by name; none by default."""
        return {}

    def zero(self, features: Mapping[str, Features]) -> Tensor:
        """Return a loss of exactly 0 that is connected to all of the features and to this prior's parameters.

        For batches with nothing to learn from: a detached zero would hang DistributedDataParallel, and `x.sum() * 0`
        is NaN where x holds inf. Added to a loss on some of the maps it connects the others.
        """
        tensors = [tensor for name in self.encodes for tensor in features[name].maps()]
        tensors += [parameter for parameter in self.parameters() if parameter.requires_grad]
        return sum(tensor.flatten()[:0].sum() for tensor in tensors)
