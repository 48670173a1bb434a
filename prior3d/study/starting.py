"""Changes to a backbone's initial weights at the request of a study: `start:`."""

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
    """Section `start:` of a matrix, in `base:` or overridden by rows, trials and stages.

    Attributes:
        noise: Spread of Gaussian noise added to every kernel and matrix of the encoder, as a share of the spread of its
            numbers; each seed has different noise. A control for the effect of damage alone.
        batch_norm: Initial statistics of BatchNorm layers in training. `weights`: those of the weights. `training
            images`: those of the row's own images, so the teacher (in evaluation mode) and the student (with the
            statistics of each batch) are one network at the first step; probes re-estimate them in any case.
    """

    noise: Annotated[float, Ge(0)] = 0.0
    batch_norm: Literal["weights", "training images"] = "weights"


@torch.no_grad()
def add_noise(backbone: Backbone, relative: float, seed: int) -> None:
    """Add Gaussian noise to the kernels and matrices of the encoder; norms and biases stay as they are.

    Args:
        backbone: Backbone, changed in place.
        relative: Spread of the noise as a share of the spread of the numbers it is added to.
        seed: Seed of the noise.
    """
    draws = generator("study noise", seed)
    for parameter in backbone.encoder.parameters():
        if relative and parameter.ndim > 1:
            noise = torch.randn(parameter.shape, generator=draws).to(parameter)
            parameter.add_(noise, alpha=relative * float(parameter.std()))


def take_statistics(backbone: Backbone, dataset: Dataset) -> int:
    """Give BatchNorm layers the statistics of a dataset's images, as probes do; return the number of these layers.

    It runs on the CPU, where every process gets the same numbers: teachers are looked up by them.

    Args:
        backbone: Backbone on the CPU, changed in place; its mode stays.
        dataset: Verified and prepared dataset; never augmented here.
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
        for first in range(batches):  # strided, so no batch is from one corner of the data only
            yield images.take(torch.arange(first, len(images), batches)).float() / 255
    finally:
        data.close()
