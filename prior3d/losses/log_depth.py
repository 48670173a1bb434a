"""Losses on the logarithm of predicted over true depth, at pixels with known depth."""

import torch
from torch import Tensor

_FORGIVEN = 0.85
"""Share of the squared mean error that the scale-invariant loss leaves out."""


def scale_invariant_loss(log_ratio: Tensor, known: Tensor) -> Tensor:
    """Return the scale-invariant logarithmic loss over the known pixels of a batch; 0 without known pixels.

    Args:
        log_ratio: [n, H, W] logarithm of predicted over true depth.
        known: [n, H, W] bool; other pixels may hold anything.

    Reference:
        Eigen et al., 2014, arXiv 1406.2283, in the form of Bhat et al., 2020, arXiv 2011.14141, without its factor 10.

    >>> log_ratio = torch.tensor([[[0.0, 2.0]]])
    >>> scale_invariant_loss(log_ratio, torch.tensor([[[True, False]]])).item() < 1e-6
    True
    """
    count = known.sum().clamp_min(1)
    mean = torch.where(known, log_ratio, 0).sum() / count
    variance = torch.where(known, log_ratio - mean, 0).square().sum() / count
    squared = variance + (1 - _FORGIVEN) * mean.square()
    floor = 1e-8  # the square root has an infinite slope at 0
    return (squared + floor).sqrt() - floor**0.5


def gradient_loss(log_ratio: Tensor, known: Tensor, scales: int = 4) -> Tensor:
    """Return the difference between the slopes of predicted and true log depth, over several scales.

    It is the mean absolute difference of the ratio between horizontal neighbors, plus that between vertical ones,
    summed over scales that keep every pixel, every second, every fourth and so on. Pairs count if both pixels are
    known. The loss is 0 exactly where the prediction is the truth times a constant in each connected region.

    Args:
        log_ratio: [n, H, W] logarithm of predicted over true depth.
        known: [n, H, W] bool; other pixels may hold anything.
        scales: number of scales.

    Reference:
        Li and Snavely, 2018, arXiv 1804.00607 (MegaDepth), as intended in DINOv2 and FiT3D. The code of FiT3D takes
        differences along the axes of images and channels instead of rows and columns, which makes it 0.

    >>> gradient_loss(torch.full((1, 8, 8), 0.7), torch.ones(1, 8, 8, dtype=torch.bool)).item()
    0.0
    """
    error = torch.where(known, log_ratio, 0)
    total = error.flatten()[:0].sum()
    for step in (2**scale for scale in range(scales)):
        coarse, valid = error[:, ::step, ::step], known[:, ::step, ::step]
        for axis in (1, 2):
            rest = coarse.shape[axis] - 1
            both = valid.narrow(axis, 1, rest) & valid.narrow(axis, 0, rest)
            total = total + (coarse.diff(dim=axis).abs() * both).sum() / both.sum().clamp_min(1)
    return total
