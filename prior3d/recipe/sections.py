"""The fixed keys of all recipe sections: types, bounds, defaults and meaning."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt

from prior3d.errors import UserError
from prior3d.registry.kinds import Kind

_MOST = 10**9  # steps, images: far more than any run has; rejects typing errors before they fill the memory
Count = Annotated[int, Ge(1), Le(_MOST)]
Steps = Annotated[int, Ge(0), Le(_MOST)]
# Far above any real use, and low enough that a typing error cannot use up the memory.
Side = Annotated[int, Ge(1), Le(8192)]
Width = Annotated[int, Ge(1), Le(4096)]
Stride = Annotated[int, Ge(1), Le(1024)]
BatchSize = Annotated[int, Ge(1), Le(65536)]
ViewCount = Annotated[int, Ge(1), Le(1024)]
ProcessCount = Annotated[int, Ge(0), Le(1024)]
Positive = Annotated[float, Gt(0)]
NotNegative = Annotated[float, Ge(0)]
Share = Annotated[float, Ge(0), Lt(1)]
Channels = tuple[float, float, float]
TimmOption = bool | int | float | str | tuple[bool | int | float | str, ...] | None


@dataclass(frozen=True)
class TopLevel:
    """Top-level keys of a recipe that are not sections.

    Attributes:
        seed: seed of everything random; the same recipe with the same seed gives the same weights on the same machine.
        plugins: Python files with your own plugins.
    """

    seed: Annotated[int, Ge(0), Lt(2**63)] = 0
    plugins: tuple[str, ...] = ()


@dataclass(frozen=True)
class BackboneSection:
    """`backbone:`, the model that trains.

    Attributes:
        name: name of a timm model.
        pretrained: start from timm's pretrained weights, which are downloaded if they are not in the cache.
        weights: start instead from this checkpoint or safetensors file, or from the trained encoder of this run folder;
            its decoder is loaded too if the shapes match.
        decoder_stride: image pixels per cell of the decoder's map; null for no decoder (the encoder's last map is used;
            for a ViT, its patch tokens).
        channels: channels of the decoder's map.
        train: which part of the encoder is trained; a decoder is always trained.
        last_n: number of the encoder's last stages or blocks that are trained with `train: last_n`.
        ema: decay per step of the moving average of the backbone that priors may read; null for none.
        timm_options: additional arguments of `timm.create_model`, such as drop_path_rate.
        mean: mean of red, green and blue, 0..1, that is subtracted from images; null for the model's own mean.
        std: standard deviation of red, green and blue, by which images are then divided; null for the model's own.
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
    """`data.augment`, augmentation of the training images.

    The defaults are the color changes of Pri3D and SimCLR plus crops of the whole view; each view gets its own random
    draws. `augment: null` turns augmentation off and uses the largest centered crop with the run's aspect ratio.

    Reference: Hou et al., Pri3D, 2021, arXiv:2104.11225 (color changes only, no crops).

    Args:
        crop: smallest and largest side of the crop, as a fraction of the largest crop with the run's aspect ratio.
        brightness: the brightness factor is drawn between 1 - brightness and 1 + brightness.
        contrast: the contrast factor is drawn likewise; contrast changes about the image's mean brightness.
        saturation: the saturation factor is drawn likewise; saturation changes about each pixel's brightness.
        hue: largest rotation of the hue, as a fraction of the full circle.
        jitter: probability that brightness, contrast, saturation and hue are changed at all.
        grayscale: probability that an image is converted to gray.
        blur: probability of a Gaussian blur.
        blur_sigma: smallest and largest standard deviation of the blur, in pixels of an image 240 pixels high; it
            scales with the run's image height, so a recipe blurs equally at every size.
        flip: probability of a left-right flip; only for data without poses.
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
    """`data:`, the training data; all other keys are options of the dataset.

    Attributes:
        name: name of the dataset; `prior3d-train --list` shows all datasets.
        size: height and width of the training images, in pixels.
        batch_size: samples per batch and device; each sample has `views` images.
        views: views per sample.
        workers: number of data-loading processes per device; 0 loads in the main process.
        cache: folder for results that are computed once, such as rendered rooms and pair tables; runs share it.
        on_damage: what to do with a file that cannot be decoded: end the run, or skip, count and name the file.
        augment: random crops and color changes; null for none.
        control: control experiment for posed data: all views of a sample are copies of the first (self), or images get
            the depth and pose of other frames (permuted); null for none.
    """

    name: str
    size: tuple[Side, Side]
    batch_size: BatchSize
    views: ViewCount = 2
    workers: ProcessCount = 2
    cache: Path = Path("~/.cache/prior3d")
    on_damage: Literal["refuse", "skip"] = "refuse"
    augment: AugmentOptions | None = field(default_factory=AugmentOptions)
    control: Literal["self", "permuted"] | None = None
    options: Mapping[str, object] = field(default_factory=dict)
    """The dataset's own options, checked and complete, in YAML form."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "cache", self.cache.expanduser())


@dataclass(frozen=True)
class PriorSection:
    """One entry of `priors:`; all other keys are options of the prior.

    Attributes:
        prior: name of the prior, if it differs from the label of the entry; `prior3d-train --list` shows all priors.
        weight: factor of its loss in the sum that is minimized.
        warmup: steps over which the weight rises linearly from 0.
    """

    prior: str
    weight: NotNegative = 1.0
    warmup: Steps = 0
    options: Mapping[str, object] = field(default_factory=dict)
    """The prior's own options, checked and complete, in YAML form."""


@dataclass(frozen=True)
class ProbeDataSection:
    """`data:` of a probe that is not measured on the training data; all other keys are options of the dataset.

    Attributes:
        name: name of the dataset; `prior3d-train --list` shows all datasets.
        size: height and width of the images, in pixels; null for the size in the top-level `data:`.
    """

    name: str
    size: tuple[Side, Side] | None = None
    options: Mapping[str, object] = field(default_factory=dict)
    """The dataset's own options, checked and complete, in YAML form."""


@dataclass(frozen=True)
class ProbeSection:
    """One entry of `probes:`; all other keys are options of the probe.

    Attributes:
        probe: name of the probe, if it differs from the label of the entry; `prior3d-train --list` shows all probes.
        split: the part of the data that it is measured on: validation to select settings, test to report results.
        seeds: number of measurements, each with a different probe seed; the mean is reported.
        max_images: maximum number of images per split, evenly spaced; null for all images.
        data: the probe's own dataset, instead of the top-level `data:`.
    """

    probe: str
    split: Literal["validation", "test"] = "test"
    seeds: Annotated[int, Ge(1), Le(1000)] = 1
    max_images: Count | None = None
    data: ProbeDataSection | None = None
    options: Mapping[str, object] = field(default_factory=dict)
    """The probe's own options, checked and complete, in YAML form."""


@dataclass(frozen=True)
class OptimSection:
    """`optim:`, optimizer and learning rate.

    Attributes:
        name: name of the optimizer.
        lr: the highest learning rate, after the warm-up.
        weight_decay: weight decay of matrices and kernels; norms and biases do not decay.
        momentum: momentum of sgd.
        warmup: steps over which the learning rate rises linearly from 0.
        schedule: how the learning rate falls to 0 by the last step.
        poly_power: exponent of the schedule poly.
        encoder_lr_scale: factor on the encoder's learning rate; below 1 for an encoder that starts from good weights.
        clip: largest norm of the gradient, larger gradients are scaled down; null for no limit.
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
    """`trainer:`, length of the training, devices, checkpoints and logs.

    Attributes:
        max_steps: number of optimizer steps of the run.
        precision: 32 for full precision, or bf16 for the backbone. Geometry and losses stay in 32 bits, except that
            PointInfoNCE over more than 4.2 million pairs of rows multiplies in bf16; its sums stay in 32 bits.
        devices: number of GPUs per node, or of processes on a CPU; each has its own batches.
        num_nodes: number of machines; with more than one, torchrun or srun starts the processes.
        accelerator: type of device; auto uses a GPU if there is one.
        cuda_graphs: on one GPU, record what launches the same kernels at every step (backbone, teachers, priors of
            fixed shape) and replay it, which costs the host one launch per pass; elsewhere without effect. New: compare
            the first losses with a plain run.
        accumulate: number of batches whose gradients are accumulated for one optimizer step.
        checkpoint_every: optimizer steps between two checkpoints; the last step and an interruption always write one.
        keep_every: optimizer steps between two checkpoints that are kept permanently (`step-N.ckpt`); 0 for none.
        loggers: destinations of the curves: tensorboard, csv (metrics.csv in the run folder), wandb, mlflow.
        log_every: optimizer steps between two points of each curve.
        gradients_every: optimizer steps between two measurements of how well the priors' gradients agree; 0 for never.
        draw_every: optimizer steps between two sets of images in the log; 0 for never.
        probe_before: run the probes on the backbone before training.
        probe_after: run the probes on the backbone after training.
    """

    max_steps: Count
    precision: Literal[32, "bf16"] = 32
    devices: Annotated[int, Ge(1), Le(1024)] = 1
    num_nodes: Annotated[int, Ge(1), Le(4096)] = 1
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    cuda_graphs: bool = False
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
    """`prepare:`, the runner that computes rooms, pairs, surfaces and priors' data; other keys are its options.

    Attributes:
        runner: name of the runner; local computes in this process; `prior3d-train --list` shows all runners.
    """

    runner: str = "local"
    options: Mapping[str, object] = field(default_factory=dict)
    """The runner's own options, checked and complete, in YAML form."""


ONLY_WITH = {
    "backbone.last_n": ("train", "last_n"),
    "optim.momentum": ("name", "sgd"),
    "optim.poly_power": ("schedule", "poly"),
}
"""Keys that apply only with a certain value of another key of their section."""

PLAIN: dict[str, type] = {"backbone": BackboneSection, "optim": OptimSection, "trainer": TrainerSection}
"""Sections that have fixed keys only."""

PLUGGED: dict[Kind, tuple[type, str]] = {
    "datasets": (DataSection, "name"),
    "priors": (PriorSection, "prior"),
    "probes": (ProbeSection, "probe"),
    "runners": (PrepareSection, "runner"),
}
"""Kinds of plugins that recipe sections use: the section, and its key that names the plugin."""
