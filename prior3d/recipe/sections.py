"""The sections of a recipe that are the same in every recipe: keys, types, bounds, defaults, and what they mean."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt

from prior3d.errors import UserError
from prior3d.registry.kinds import Kind

_MOST = 10**9  # steps, images: far more than any run has; a slip of the hand is refused before it fills the memory
Count = Annotated[int, Ge(1), Le(_MOST)]
Steps = Annotated[int, Ge(0), Le(_MOST)]
# Far above what anybody needs, and low enough that a typing error cannot take all memory.
Side = Annotated[int, Ge(1), Le(8192)]
Width = Annotated[int, Ge(1), Le(4096)]
Stride = Annotated[int, Ge(1), Le(1024)]
Batch = Annotated[int, Ge(1), Le(65536)]
Views = Annotated[int, Ge(1), Le(1024)]
Processes = Annotated[int, Ge(0), Le(1024)]
Positive = Annotated[float, Gt(0)]
NotNegative = Annotated[float, Ge(0)]
Share = Annotated[float, Ge(0), Lt(1)]
Channels = tuple[float, float, float]
TimmOption = bool | int | float | str | tuple[bool | int | float | str, ...] | None


@dataclass(frozen=True)
class TopLevel:
    """Keys of a recipe that are no sections.

    Attributes:
        seed: of everything random.
        plugins: Python files with plugins of yours.
    """

    seed: Annotated[int, Ge(0), Lt(2**63)] = 0
    plugins: tuple[str, ...] = ()


@dataclass(frozen=True)
class BackboneSection:
    """`backbone:`, the model that trains.

    Attributes:
        name: a model of timm.
        pretrained: start from timm's weights, downloaded when they are not in its cache.
        weights: start from this file instead, a checkpoint or safetensors, or from the trained encoder of this run
            folder, and its decoder where that is of the same shape.
        decoder_stride: image pixels per cell of the decoder's map; null for none (a ViT's patch tokens are used).
        channels: channels of the decoder's map.
        train: which part of the encoder trains; a decoder always does.
        last_n: how many of its last stages or blocks train with `train: last_n`.
        ema: decay per step of a moving average of the backbone, which priors may read; null for none.
        timm_options: further arguments of `timm.create_model`, such as drop_path_rate.
        mean: of red, green and blue, 0..1, subtracted from images; null for what the model was made with.
        std: of red, green and blue, by which images are then divided; null for what the model was made with.
    """

    name: str
    pretrained: bool = False
    weights: Path | None = None
    decoder_stride: Stride | None = None
    channels: Width = 64
    train: Literal["full", "last_n", "frozen"] = "full"
    last_n: Count = 1
    ema: Share | None = None
    timm_options: Mapping[str, TimmOption] = field(default_factory=dict)
    mean: Channels | None = None
    std: tuple[Positive, Positive, Positive] | None = None

    def __post_init__(self) -> None:
        if self.pretrained and self.weights is not None:
            raise UserError("start from timm's weights (pretrained) or from this file, not both", "weights")


@dataclass(frozen=True)
class AugmentOptions:
    """Augmentation of a run's images: `data.augment`.

    The defaults are the color changes of Pri3D and SimCLR plus crops of the whole view; everything is drawn for each
    view on its own. `augment: null` switches all of it off: the largest centered crop of the run's aspect.

    Reference: Hou et al., Pri3D, 2021, arXiv:2104.11225 (color changes only, no crops).

    Args:
        crop: least and greatest side of the crop, as a share of the largest crop that has the run's aspect.
        brightness: factors are drawn from 1 - brightness to 1 + brightness.
        contrast: likewise, about the image's mean brightness.
        saturation: likewise, about each pixel's brightness.
        hue: greatest turn of the hue, as a share of the full circle.
        jitter: probability that brightness, contrast, saturation and hue change at all.
        grayscale: probability that an image loses its colors.
        blur: probability of a Gaussian blur.
        blur_sigma: least and greatest standard deviation of the blur, in pixels of an image 240 pixels high; it grows
            with the run's height, so that a recipe blurs alike at every size.
        flip: probability of mirroring left and right; only for data without poses.
    """

    crop: tuple[float, float] = (0.6, 1.0)
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    jitter: float = 0.8
    grayscale: float = 0.2
    blur: float = 0.5
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    flip: float = 0.0

    def __post_init__(self) -> None:
        low, high = self.crop
        if not 0 < low <= high <= 1:
            raise ValueError(f"expected crop: [least, greatest] with 0 < least <= greatest <= 1, got {list(self.crop)}")
        if not 0 <= self.blur_sigma[0] <= self.blur_sigma[1] <= 100:
            raise ValueError(f"expected blur_sigma: [least, greatest] from 0 to 100, got {list(self.blur_sigma)}")
        for name in ("brightness", "contrast", "saturation", "jitter", "grayscale", "blur", "flip"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"expected {name} from 0 to 1, got {getattr(self, name)}")
        if not 0 <= self.hue <= 0.5:
            raise ValueError(f"expected hue from 0 to 0.5, got {self.hue}")


@dataclass(frozen=True)
class DataSection:
    """`data:`, what is trained on; every further key is an option of the dataset.

    Attributes:
        name: a dataset; `prior3d-train --list` names them.
        size: height and width of the images that are trained on, in pixels.
        batch_size: samples per step and device, of `views` images each.
        views: views per sample.
        workers: processes that load data, per device; 0 loads in the main process.
        cache: folder for what is computed once: rendered rooms, pair tables; shared between runs.
        on_damage: a file that cannot be decoded ends the run, or is skipped, counted and named.
        augment: crops and color changes; null for none.
        control: of a study, for posed data: samples whose views are all the first (self), or whose images have the
            depth and pose of other frames (permuted); null for none.
    """

    name: str
    size: tuple[Side, Side]
    batch_size: Batch
    views: Views = 2
    workers: Processes = 2
    cache: Path = Path("~/.cache/prior3d")
    on_damage: Literal["refuse", "skip"] = "refuse"
    augment: AugmentOptions | None = field(default_factory=AugmentOptions)
    control: Literal["self", "permuted"] | None = None
    options: Mapping[str, object] = field(default_factory=dict)
    """The dataset's own options, checked and complete, as YAML writes them."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "cache", self.cache.expanduser())


@dataclass(frozen=True)
class PriorSection:
    """One entry of `priors:`; every further key is an option of the prior.

    Attributes:
        prior: the prior's name, where it is not the entry's own; `prior3d-train --list` names them.
        weight: factor on its loss in the sum that is minimized.
        warmup: steps over which the weight rises linearly from 0.
    """

    prior: str
    weight: NotNegative = 1.0
    warmup: Steps = 0
    options: Mapping[str, object] = field(default_factory=dict)
    """The prior's own options, checked and complete, as YAML writes them."""


@dataclass(frozen=True)
class ProbeDataSection:
    """`data:` of one probe, where it is not measured on what is trained on; every further key is the dataset's.

    Attributes:
        name: a dataset; `prior3d-train --list` names them.
        size: height and width of the images, in pixels; null for those of `data:`.
    """

    name: str
    size: tuple[Side, Side] | None = None
    options: Mapping[str, object] = field(default_factory=dict)
    """The dataset's own options, checked and complete, as YAML writes them."""


@dataclass(frozen=True)
class ProbeSection:
    """One entry of `probes:`; every further key is an option of the probe.

    Attributes:
        probe: the probe's name, where it is not the entry's own; `prior3d-train --list` names them.
        split: the part that it is measured on: validation to choose by, test to report.
        seeds: number of measurements, each with a different probe seed; the mean is reported.
        max_images: images per split that are read at most, evenly spaced; null for all.
        data: a dataset of its own, in place of `data:`.
    """

    probe: str
    split: Literal["validation", "test"] = "test"
    seeds: Annotated[int, Ge(1), Le(1000)] = 1
    max_images: Count | None = None
    data: ProbeDataSection | None = None
    options: Mapping[str, object] = field(default_factory=dict)
    """The probe's own options, checked and complete, as YAML writes them."""


@dataclass(frozen=True)
class OptimSection:
    """`optim:`, optimizer and learning rate.

    Attributes:
        name: the optimizer.
        lr: the highest learning rate, after the warm-up.
        weight_decay: pull toward 0 of matrices and kernels, not of norms and biases.
        momentum: of sgd.
        warmup: steps over which the learning rate rises linearly from 0.
        schedule: how the learning rate falls to 0 by the last step.
        poly_power: exponent of the poly schedule.
        encoder_lr_scale: factor on the learning rate of the encoder, for one that starts from good weights.
        clip: greatest norm of the gradient, longer ones are scaled down; null for no limit.
    """

    name: Literal["adamw", "sgd"] = "adamw"
    lr: Positive = 1e-3
    weight_decay: NotNegative = 0.05
    momentum: Share = 0.9
    warmup: Steps = 0
    schedule: Literal["cosine", "poly", "constant"] = "cosine"
    poly_power: Positive = 0.9
    encoder_lr_scale: NotNegative = 1.0
    clip: Positive | None = 1.0


@dataclass(frozen=True)
class TrainerSection:
    """`trainer:`, how long, on what, and what is written along the way.

    Attributes:
        max_steps: optimizer steps of the run.
        precision: 32, or bf16 for the backbone (geometry and losses stay in 32 bits).
        devices: GPUs, or processes on a CPU, each with its own batches.
        accelerator: auto takes a GPU where there is one.
        accumulate: batches whose gradients make one optimizer step.
        checkpoint_every: optimizer steps between two checkpoints; the last step and an interruption always make one.
        keep_every: optimizer steps between two checkpoints that are kept for good (`step-N.ckpt`); 0 for none.
        loggers: what receives the curves: tensorboard, csv (metrics.csv in the run folder), wandb, mlflow.
        log_every: optimizer steps between two points of each curve.
        gradients_every: optimizer steps between two looks at how the priors' gradients agree; 0 for never.
        draw_every: optimizer steps between two sets of pictures; 0 for never.
        probe_before: run the probes on the initial backbone too.
        probe_after: run the probes on the trained backbone.
    """

    max_steps: Count
    precision: Literal[32, "bf16"] = 32
    devices: Annotated[int, Ge(1), Le(1024)] = 1
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    accumulate: Annotated[int, Ge(1), Le(10**6)] = 1
    checkpoint_every: Count = 500
    keep_every: Steps = 0
    loggers: tuple[Literal["tensorboard", "csv", "wandb", "mlflow"], ...] = ("tensorboard",)
    log_every: Count = 10
    gradients_every: Steps = 100
    draw_every: Steps = 500
    probe_before: bool = True
    probe_after: bool = True


@dataclass(frozen=True)
class PrepareSection:
    """`prepare:`, where rooms, pairs, surfaces and what priors prepare are made; every further key is the runner's.

    Attributes:
        runner: local makes them in this process; `prior3d-train --list` names others.
    """

    runner: str = "local"
    options: Mapping[str, object] = field(default_factory=dict)
    """The runner's own options, checked and complete, as YAML writes them."""


ONLY_WITH = {
    "backbone.last_n": ("train", "last_n"),
    "optim.momentum": ("name", "sgd"),
    "optim.poly_power": ("schedule", "poly"),
}
"""Keys that mean something only with a certain value of another key of their section."""

PLAIN: dict[str, type] = {"backbone": BackboneSection, "optim": OptimSection, "trainer": TrainerSection}
"""Sections of fixed keys alone."""

PLUGGED: dict[Kind, tuple[type, str]] = {
    "datasets": (DataSection, "name"),
    "priors": (PriorSection, "prior"),
    "probes": (ProbeSection, "probe"),
    "runners": (PrepareSection, "runner"),
}
"""Kinds of plugin that a section of a recipe uses: that section, and its key that names the plugin."""
