"""Terms of the loss beside rendering's own, and figures of how well the rendering fits."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from prior3d.geometry import full_precision

Distance = Literal["cosine", "l2", "both"]
"""How features are compared: `both` is the sum of the other two."""


def distillation(trained: Tensor, reference: Tensor, distance: Distance) -> Tensor:
    """Measure how far features have moved from the reference's.

    `cosine` is the mean of 1 - cosine and lets the length of features go; `l2` is the mean squared difference in units
    of the reference's mean square, so that it means the same for normalised tokens and for raw maps.

    Args:
        trained: [B, V, C, ...].
        reference: the same of the frozen initial encoder.
        distance: cosine, l2 or both.

    Returns:
        Scalar, float32.

    Reference:
        Cosine with smooth L1 is the pair of DUNE, Sariyildiz et al. 2025, arXiv 2503.14405; L2 and its unit are ours.
    """
    with full_precision(trained.device):
        trained, reference = trained.float(), reference.detach().float()
        cosine = (1 - F.cosine_similarity(trained, reference, dim=2)).mean()
        l2 = (trained - reference).square().mean() / reference.square().mean().clamp_min(1e-12)
    return {"cosine": cosine, "l2": l2, "both": cosine + l2}[distance]


@torch.no_grad()
def peak_signal_to_noise(rgb: Tensor, target: Tensor) -> Tensor:
    """Give 10 log10(1 / mean squared error) in decibels of colours in 0..1."""
    return -10 * torch.log10((rgb - target).square().mean().clamp_min(1e-10))


@torch.no_grad()
def depth_correlation(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Give Pearson's correlation over the valid pixels of each image, its mean over images that have any.

    Args:
        prediction: [N, R].
        target: [N, R]; may hold anything where not valid.
        mask: valid pixels, [N, R] bool.
    """
    count = mask.sum(dim=1, keepdim=True)

    def centered(values: Tensor) -> Tensor:
        values = torch.where(mask, values, 0)
        return torch.where(mask, values - values.sum(dim=1, keepdim=True) / count.clamp_min(1), 0)

    a, b = centered(prediction), centered(target)
    scale = (a.square().sum(dim=1) * b.square().sum(dim=1)).sqrt().clamp_min(1e-12)
    return ((a * b).sum(dim=1) / scale).sum() / (count > 0).sum().clamp_min(1)
