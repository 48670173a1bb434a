"""What is done to a backbone's initial weights before anything else, where a study asks for it: `start:`."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

import torch
from annotated_types import Ge
from torch import Tensor

from prior3d.backbone import Backbone
from prior3d.backbone.batch_norm import reestimate_batch_norm
from prior3d.contracts.dataset import Dataset
from prior3d.probes.probe_data import ProbeData
from prior3d.randomness import generator

_IMAGES, _BATCH = 64, 32


@dataclass(frozen=True)
class Start:
    """`start:` of a matrix, in `base:` or laid over it by rows, trials and stages.

    Attributes:
        noise: spread of Gaussian noise that is added to every kernel and matrix of the encoder, as a share of the
            spread of its own numbers; another noise for every seed. A control: what harm alone does.
        batch_norm: whose statistics BatchNorm layers begin training with. `weights`: those that came with the weights.
            `training images`: those of the row's own images, so that what teaches (in evaluation mode) and what learns
            (with the statistics of each batch) are one network at the first step; probes re-estimate them anyway.
    """

    noise: Annotated[float, Ge(0)] = 0.0
    batch_norm: Literal["weights", "training images"] = "weights"


@torch.no_grad()
def add_noise(backbone: Backbone, relative: float, seed: int) -> None:
    """Add Gaussian noise to the kernels and matrices of the encoder; norms and biases stay as they are.

    Args:
        backbone: changed in place.
        relative: spread of the noise as a share of that of the numbers it is added to.
        seed: another one, another noise.
    """
    draws = generator("study noise", seed)
    for parameter in backbone.encoder.parameters():
        if relative and parameter.ndim > 1:
            noise = torch.randn(parameter.shape, generator=draws).to(parameter)
            parameter.add_(noise, alpha=relative * float(parameter.std()))


def take_statistics(backbone: Backbone, dataset: Dataset) -> int:
    """Give BatchNorm layers the statistics of a dataset's images, as probes do; returns how many layers have them.

    It runs on the CPU, where every process gets the same numbers: teachers are looked up by them.

    Args:
        backbone: on the CPU; changed in place, its mode stays.
        dataset: verified and prepared; never augmented here.
    """
    was_training = backbone.training
    try:
        return reestimate_batch_norm(backbone, partial(backbone, reads=("dense", "pooled")), _images(dataset))
    finally:
        backbone.train(was_training)


def _images(dataset: Dataset) -> Iterator[Tensor]:
    data = ProbeData({"held_out": dataset}, most=_IMAGES)
    try:
        images = data.field("held_out", "image")
        batches = max(1, len(images) // _BATCH)
        for first in range(batches):  # every other image, so that no batch is of one corner only
            yield images.take(torch.arange(first, len(images), batches)).float() / 255
    finally:
        data.close()
