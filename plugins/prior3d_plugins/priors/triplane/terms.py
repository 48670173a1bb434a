"""Loss terms besides those of rendering, and measures of the quality of the rendering."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from prior3d.geometry import full_precision

Distance = Literal["cosine", "l2", "both"]
"""Distance between features: `both` is the sum of the other two."""


def distillation(trained: Tensor, reference: Tensor, distance: Distance) -> Tensor:
    """Measure how far features have moved from the reference's.

    `cosine` is the mean of 1 - cosine and ignores the length of features. `l2` is the mean squared difference in units
    of the reference's mean square, so it means the same for normalized tokens and for raw maps.

    Args:
        trained: [B, V, C, ...] features of the trained encoder.
        reference: [B, V, C, ...] features of the frozen initial encoder.
        distance: `cosine`, `l2` or `both`.

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
    """Return 10 log10(1 / mean squared error) in decibels, for colors in 0..1."""
    return -10 * torch.log10((rgb - target).square().mean().clamp_min(1e-10))


@torch.no_grad()
def depth_correlation(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Return Pearson's correlation over the valid pixels of each image, averaged over images that have any.

    Args:
        prediction: [N, R].
        target: [N, R]; pixels that are not valid may hold anything.
        mask: [N, R] bool valid pixels.
    """
    count = mask.sum(dim=1, keepdim=True)

    def centered(values: Tensor) -> Tensor:
        values = torch.where(mask, values, 0)
        return torch.where(mask, values - values.sum(dim=1, keepdim=True) / count.clamp_min(1), 0)

    a, b = centered(prediction), centered(target)
    scale = (a.square().sum(dim=1) * b.square().sum(dim=1)).sqrt().clamp_min(1e-12)
    return ((a * b).sum(dim=1) / scale).sum() / (count > 0).sum().clamp_min(1)
