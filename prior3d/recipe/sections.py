"""The sections of a recipe that are the same in every recipe: keys, types, bounds, defaults, and what they mean."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import Ge, Gt, Lt

from prior3d.errors import UserError

if TYPE_CHECKING:
    from prior3d.data.sample.augmentation import AugmentOptions

Count = Annotated[int, Ge(1)]
Steps = Annotated[int, Ge(0)]
Positive = Annotated[float, Gt(0)]
NotNegative = Annotated[float, Ge(0)]
Share = Annotated[float, Ge(0), Lt(1)]
Channels = tuple[float, float, float]
TimmOption = bool | int | float | str | tuple[bool | int | float | str, ...] | None


@dataclass(frozen=True)
class BackboneSection:
    """`backbone:`, the model that trains.

    Attributes:
        name: a model of timm.
        pretrained: start from timm's weights, downloaded when they are not in its cache.
        weights: start from this file instead, a checkpoint or safetensors.
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
    decoder_stride: Count | None = None
    channels: Count = 64
    train: Literal["full", "last_n", "frozen"] = "full"
    last_n: Count = 1
    ema: Share | None = None
    timm_options: Mapping[str, TimmOption] = field(default_factory=dict)
    mean: Channels | None = None
    std: tuple[Positive, Positive, Positive] | None = None

    def __post_init__(self) -> None:
        if self.pretrained and self.weights is not None:
            raise UserError("start from timm's weights (pretrained) or from this file, not both", "backbone.weights")


def _standard_augmentation() -> "AugmentOptions":
    from prior3d.data.sample.augmentation import AugmentOptions

    return AugmentOptions()


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
        augment: crops and colour changes; null for none.
    """

    name: str
    size: tuple[Count, Count]
    batch_size: Count
    views: Count = 2
    workers: Annotated[int, Ge(0)] = 2
    cache: Path = Path("~/.cache/prior3d")
    on_damage: Literal["refuse", "skip"] = "refuse"
    augment: "AugmentOptions | None" = field(default_factory=_standard_augmentation)
    options: Mapping[str, object] = field(default_factory=dict)
    """The dataset's own options, checked and complete, as YAML writes them."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "cache", self.cache.expanduser())


@dataclass(frozen=True)
class PriorSection:
    """One entry of `priors:`; every further key is an option of the prior.

    Attributes:
        prior: the prior's name, where it is not the entry's own; `prior3d-train --list` names them.
        weight: factor on its loss in the sum that is minimised.
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
    size: tuple[Count, Count] | None = None
    options: Mapping[str, object] = field(default_factory=dict)
    """The dataset's own options, checked and complete, as YAML writes them."""


@dataclass(frozen=True)
class ProbeSection:
    """One entry of `probes:`; every further key is an option of the probe.

    Attributes:
        probe: the probe's name, where it is not the entry's own; `prior3d-train --list` names them.
        split: the part that it is measured on: validation to choose by, test to report.
        seeds: how often it is measured, with other draws of its own each time; the mean is told.
        max_images: images per split that are read at most, evenly spaced; null for all.
        data: a dataset of its own, in place of `data:`.
    """

    probe: str
    split: Literal["validation", "test"] = "test"
    seeds: Count = 1
    max_images: Count | None = None
    data: ProbeDataSection | None = None
    options: Mapping[str, object] = field(default_factory=dict)
    """The probe's own options, checked and complete, as YAML writes them."""


@dataclass(frozen=True)
class OptimSection:
    """`optim:`, optimiser and learning rate.

    Attributes:
        name: the optimiser.
        lr: the highest learning rate, after the warm-up.
        weight_decay: pull towards 0 of matrices and kernels, not of norms and biases.
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
        max_steps: optimiser steps of the run.
        precision: 32, or bf16 for the backbone (geometry and losses stay in 32 bits).
        devices: GPUs, or processes on a CPU, each with its own batches.
        accelerator: auto takes a GPU where there is one.
        accumulate: batches whose gradients make one optimiser step.
        checkpoint_every: optimiser steps between two checkpoints; the last step and an interruption always make one.
        keep_every: optimiser steps between two checkpoints that are kept for good (`step-N.ckpt`); 0 for none.
        loggers: what receives the curves: tensorboard, csv (metrics.csv in the run folder), wandb, mlflow.
        log_every: optimiser steps between two points of each curve.
        gradients_every: optimiser steps between two looks at how the priors' gradients agree; 0 for never.
        draw_every: optimiser steps between two sets of pictures; 0 for never.
        probe_before: run the probes on the initial backbone too.
        probe_after: run the probes on the trained backbone.
    """

    max_steps: Count
    precision: Literal[32, "bf16"] = 32
    devices: Count = 1
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    accumulate: Count = 1
    checkpoint_every: Count = 500
    keep_every: Steps = 0
    loggers: tuple[Literal["tensorboard", "csv", "wandb", "mlflow"], ...] = ("tensorboard",)
    log_every: Count = 10
    gradients_every: Steps = 100
    draw_every: Steps = 500
    probe_before: bool = True
    probe_after: bool = True


ONLY_WITH = {
    "backbone.last_n": ("train", "last_n"),
    "optim.momentum": ("name", "sgd"),
    "optim.poly_power": ("schedule", "poly"),
}
"""Keys that mean something only beside a certain value of another key of their section."""
