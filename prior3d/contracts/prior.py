"""The contract of a prior: its constructor arguments, its inputs at each step, and its outputs."""

from abc import ABC, abstractmethod
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
"""The kinds of features that one backbone pass computes."""

TEACHERS = frozenset({"reference", "ema"})
"""The frozen backbones whose features a prior may read in addition to those of the trained backbone."""

READABLE = FEATURE_KINDS | TEACHERS
"""The values that `reads` of a prior may contain."""


@dataclass(frozen=True)
class BackboneSpec:
    """Properties of the backbone that a prior needs to build its heads.

    Attributes:
        name: timm name of the encoder.
        size: height and width of every image in this run, in pixels.
        dense_channels: channels of `Features.dense`.
        dense_stride: image pixels per cell of `Features.dense` (along each axis).
        encoder_channels: stride to channels of each encoder map; a ViT has one entry, its patch tokens.
        pooled_channels: channels of `Features.pooled`.
        has_decoder: whether `dense` is the output of a decoder; otherwise it is the encoder's patch tokens.
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
        """Numbers of rows and columns of `Features.dense`."""
        return tuple(-(-side // self.dense_stride) for side in self.size)


@dataclass(frozen=True)
class Features:
    """Features of one backbone pass for one image field; only the kinds that some prior reads are present.

    Attributes:
        encoder: stride to map [B, V, C_s, h_s, w_s].
        dense: [B, V, C, h, w], the decoder's output, or the patch tokens if there is no decoder.
        pooled: [B, V, P].
        reference: the same features from the frozen INITIAL encoder.
        ema: the same features from the exponential moving average of the backbone.
    """

    encoder: Mapping[int, Tensor] = field(default_factory=dict)
    dense: Tensor | None = None
    pooled: Tensor | None = None
    reference: "Features | None" = None
    ema: "Features | None" = None

    def maps(self) -> list[Tensor]:
        """Return the trainable maps, to which a zero loss is connected."""
        maps = [tensor for tensor in (self.dense, self.pooled, *self.encoder.values()) if tensor is not None]
        if not maps:
            raise ValueError("these features hold no map: a prior must read encoder, dense or pooled")
        return maps


Teacher = Callable[[Tensor], Features]
"""A frozen backbone: maps images [B, V, 3, H, W] in 0..1 to the features that the prior reads, without gradient."""


@dataclass(frozen=True)
class Scene:
    """A scene in the offline stage of a prior: all of its frames, none of them augmented.

    Attributes:
        index: number of the scene, as in the batch field `scene`.
        name: for messages.
        frames: number of frames; frames are numbered from 0, as in the batch field `frame`.
        read: decodes frames, given their numbers, to a batch of ONE sample: the fields of `prepares`, [1, V, ...] on
            the device, images in 0..1. With `on_damage: skip`, damaged frames are left out: `frame` [1, V] holds the
            numbers of the frames that are present.
    """

    index: int
    name: str
    frames: int
    read: Callable[[Sequence[int]], Batch]


class Prior(nn.Module, ABC):
    """A training objective on the features of one backbone pass.

    Subclass it, take `backbone` and typed keyword options in the constructor (they define the schema of the recipe's
    section), and write `forward`. A prior owns its heads, memory banks and teachers. It does not control its weight,
    its schedule, the optimizer, logging, devices, or how much of the backbone trains.

    Attributes:
        contract: version of this contract. A plugin that sets the number it was written for is refused, in one line, by
            a prior3d with another number.
        encodes: image fields whose features it needs; the union over all priors is encoded in one pass.
        reads: the kinds of features it reads, a subset of encoder, dense, pooled, reference, ema. The teachers
            `reference` and `ema` give the same kinds as the trained backbone.
        needs: batch fields it reads each step; "depth|pseudo_depth" means that either one is enough.
        views: the minimum number of views per sample.
        prepares: fields its offline stage reads, from all frames of all scenes; empty if it has no offline stage.
        refresh_steps: optimizer steps before which the offline stage runs again, with the moving average of the
            backbone as its teacher. If empty, the stage runs once, before training, with the initial backbone.
        capturable: whether `forward` launches the same kernels on the same shapes at every step, reads no value on the
            host, keeps no state outside of buffers and draws only from torch's global generators. On one GPU it is then
            replayed as a CUDA graph, and its Python code no longer runs.
        prepared_version: version of the output of `prepare`; raise it whenever `prepare` writes something else for the
            same options.
        prepared_options: names of the options that affect the output of `prepare`; None for all options.
    """

    contract: ClassVar[int] = 1
    encodes: tuple[str, ...] = ("image",)
    reads: frozenset[str] = frozenset({"dense"})
    needs: tuple[str, ...] = ()
    views: int = 1
    prepares: tuple[str, ...] = ()
    refresh_steps: tuple[int, ...] = ()
    capturable: bool = False
    prepared_version: ClassVar[int] = 0
    prepared_options: ClassVar[tuple[str, ...] | None] = None

    def __init__(self, backbone: BackboneSpec) -> None:
        super().__init__()
        self.backbone = backbone

    def prepare(self, scene: Scene, teacher: Teacher, folder: Path) -> None:
        """Write the data that this prior needs for one scene: the offline stage of a prior that `prepares` fields.

        Processes and runs divide the scenes among themselves. The output may therefore depend on the arguments and on
        the `prepared_options`, but not on other scenes or on this prior's parameters. A process that is killed leaves
        no output, and another process starts the scene again.

        Args:
            scene: the scene.
            teacher: encodes its images; see `refresh_steps`.
            folder: an empty folder, which gets its final name when everything is written.
        """
        raise NotImplementedError(f"{type(self).__name__} prepares {self.prepares} and has no prepare()")

    def attach(self, folders: Sequence[Path]) -> None:
        """Load the prepared data, written by this process or another; before this call the loss is 0 (`zero`).

        Called before training. With `refresh_steps`, it is called at each of these steps and on resume after one.

        Args:
            folders: the folders that `prepare` filled; scene i of the batch field `scene` is in `folders[i]`.
        """

    def prepare_batch(self, batch: Batch) -> Batch:
        """Return the batch with any fields that this prior makes and wants encoded; called before the backbone pass."""
        return batch

    @abstractmethod
    def forward(self, batch: Batch, features: Mapping[str, Features]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss (a scalar connected to the features) and scalars to log.

        Args:
            batch: the fields of `needs`, on the device, images as float32 0..1.
            features: features by image field, as named in `encodes`. The next step may write over their memory: clone
                what is kept for longer.
        """

    def plot(self, batch: Batch, features: Mapping[str, Features]) -> "dict[str, Figure]":
        """Return images for TensorBoard, by name; none by default."""
        return {}

    def zero(self, features: Mapping[str, Features]) -> Tensor:
        """Return a loss of exactly 0 that is connected to all features and to this prior's parameters.

        Use it for batches with nothing to learn from: a detached zero would hang DistributedDataParallel, and
        `x.sum() * 0` is NaN if x holds inf. Added to a loss on some of the maps, it connects the others.
        """
        tensors = [tensor for name in self.encodes for tensor in features[name].maps()]
        tensors += [parameter for parameter in self.parameters() if parameter.requires_grad]
        return sum(tensor.flatten()[:0].sum() for tensor in tensors)
