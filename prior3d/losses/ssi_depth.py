"""Loss on depth of unknown scale and shift, in the space of its file."""

import torch
from torch import Tensor

from prior3d.geometry import in_full_precision

MINIMUM_VALID = 16  # pixels: the fit has two unknowns per image, and fewer pixels give little information beyond them


@in_full_precision
def in_file_space(depth: Tensor, inverse_depth: Tensor, pseudo_kind: Tensor) -> Tensor:
    """Select per image the quantity that compares with its pseudo-depth file.

    Depth and disparity are not affine in each other, so neither can replace the other up to scale and shift.

    Args:
        depth: [N, ...] expected depth E[t].
        inverse_depth: [N, ...] expected inverse depth E[1/t].
        pseudo_kind: [N] 0 for a depth file, 1 for a disparity file.

    Returns:
        [N, ...] E[t] or E[1/t].

    >>> in_file_space(torch.tensor([[2.0], [2.0]]), torch.tensor([[0.5], [0.5]]), torch.tensor([0, 1])).tolist()
    [[2.0], [0.5]]
    """
    disparity = (pseudo_kind == 1).view(-1, *[1] * (depth.ndim - 1))
    return torch.where(disparity, inverse_depth, depth)


@in_full_precision
def fit_scale_and_shift(
    prediction: Tensor, target: Tensor, mask: Tensor, *, minimum_correlation: float = 0.1
) -> tuple[Tensor, Tensor]:
    """Fit per image the scale and shift that bring the prediction closest to the target by least squares.

    The scale is positive: it is at least `minimum_correlation` times the ratio of the standard deviations.
    Unconstrained least squares would mirror a prediction of inverted depth into a good one and, at scale zero, give it
    no gradient. With this floor, the squared error falls smoothly with growing correlation over its whole range.

    Args:
        prediction: [N, M].
        target: [N, M].
        mask: [N, M] bool pixels that count.
        minimum_correlation: correlation below which the floor applies; -1 gives plain least squares.

    Returns:
        [N] scale and [N] shift; pixels outside the mask may hold anything, NaN included.

    >>> prediction, mask = torch.arange(4.0)[None], torch.ones(1, 4, dtype=torch.bool)
    >>> scale, shift = fit_scale_and_shift(prediction, 2 * prediction + 1, mask)
    >>> round(scale.item(), 3), round(shift.item(), 3)
    (2.0, 1.0)
    """
    counted = mask.to(prediction.dtype)
    count = counted.sum(dim=1).clamp_min(1)
    prediction, target = torch.where(mask, prediction, 0), torch.where(mask, target, 0)
    mean_p, mean_t = prediction.sum(dim=1) / count, target.sum(dim=1) / count
    centered_p = (prediction - mean_p.unsqueeze(1)) * counted
    centered_t = (target - mean_t.unsqueeze(1)) * counted
    # a prediction whose spread is below 1e-4 of its size counts as rounding: the scale stays bounded
    noise = (1e-4 * prediction.abs().sum(dim=1) / count).square() + 1e-12
    variance_p = centered_p.square().sum(dim=1) / count + noise
    variance_t = centered_t.square().sum(dim=1) / count
    scale = (centered_p * centered_t).sum(dim=1) / count / variance_p
    # two roots, not the root of the quotient, whose gradient is inf * 0 where the target does not vary
    scale = scale.maximum(minimum_correlation * variance_t.sqrt() / variance_p.sqrt())
    return scale, mean_t - scale * mean_p


@in_full_precision
def scale_and_shift_invariant_loss(
    prediction: Tensor,
    target: Tensor,
    mask: Tensor,
    *,
    trim: float = 0.0,
    gradient_weight: float = 0.0,
    gradient_scales: int = 4,
) -> Tensor:
    """Compare predictions with targets known up to a positive scale and a shift per image.

    The prediction is aligned to the target by least squares. The loss is the mean absolute residual in units of the
    target's mean absolute deviation, so it does not depend on the scale or shift of either side. Images with fewer than
    16 valid pixels or a constant target contribute exactly zero, connected to the graph.

    Args:
        prediction: [N, R] (rays) or [N, H, W] (maps), in the file's space (see `in_file_space`).
        target: pseudo-depth or disparity, same shape; values that are not finite do not count.
        mask: pixels that count, same shape, bool.
        trim: share of the pixels of each image to leave out, those with the largest residuals; also left out of the
            second fit.
        gradient_weight: weight of the multi-scale gradient term, for maps only; the paper uses 0.5.
        gradient_scales: number of scales of that term, each at half the resolution of the previous one.

    Returns:
        Scalar: the mean over the images that count.

    Raises:
        ValueError: if shapes differ, `trim` is outside [0, 1), or a gradient term is requested for rays.

    Reference:
        Ranftl et al. 2020, arXiv 1907.01341 (MiDaS), equations 5, 8 and 11. Differences: the scale is positive;
        residuals are in units of the target's deviation; trimming comes before a second fit (the paper trims after a
        fit by median and deviation); means are over the kept pixels instead of half the mean over all.

    >>> depth = torch.arange(32.0)[None]
    >>> mask = torch.ones(1, 32, dtype=torch.bool)
    >>> scale_and_shift_invariant_loss(depth, 3 * depth + 5, mask).item() < 1e-5
    True
    """
    _check(prediction, target, mask, trim, gradient_weight)
    shape = prediction.shape
    mask = mask & target.isfinite()
    flat_p, flat_t, flat_mask = (x.flatten(1) for x in (prediction, torch.where(mask, target.detach(), 0), mask))
    says_something, deviation = _deviation(flat_t, flat_mask)
    flat_mask = flat_mask & says_something.unsqueeze(1)

    kept = flat_mask
    if trim > 0:
        with torch.no_grad():
            kept = _without_largest(_residual(flat_p, flat_t, flat_mask, kept, deviation).abs(), flat_mask, trim)
    residual = _residual(flat_p, flat_t, flat_mask, kept, deviation)
    per_image = (residual.abs() * kept).sum(dim=1) / kept.sum(dim=1).clamp_min(1)
    if gradient_weight > 0:
        maps = residual.unflatten(1, shape[1:])
        per_image = per_image + gradient_weight * _gradient_term(maps, flat_mask.view(shape), gradient_scales)
    return per_image.sum() / says_something.sum().clamp_min(1)


def _check(prediction: Tensor, target: Tensor, mask: Tensor, trim: float, gradient_weight: float) -> None:
    if not (prediction.shape == target.shape == mask.shape) or prediction.ndim not in (2, 3):
        shapes = ", ".join(str(list(x.shape)) for x in (prediction, target, mask))
        raise ValueError(f"expected prediction, target and mask all [N, R] or all [N, H, W], got {shapes}")
    if mask.dtype != torch.bool:
        raise ValueError(f"expected a bool mask, got {mask.dtype}")
    if not 0 <= trim < 1:
        raise ValueError(f"expected trim in [0, 1), got {trim}")
    if gradient_weight > 0 and prediction.ndim != 3:
        raise ValueError(f"expected maps [N, H, W] for the gradient term, got {list(prediction.shape)}")


def _deviation(target: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return the images that count, [N] bool, and the mean absolute deviation of their targets, [N]."""
    count = mask.sum(dim=1)
    mean = target.sum(dim=1) / count.clamp_min(1)
    deviation = ((target - mean.unsqueeze(1)).abs() * mask).sum(dim=1) / count.clamp_min(1)
    says_something = (count >= MINIMUM_VALID) & (deviation > 1e-5 * mean.abs())
    return says_something, torch.where(says_something, deviation, 1)


def _residual(prediction: Tensor, target: Tensor, mask: Tensor, fit_mask: Tensor, deviation: Tensor) -> Tensor:
    scale, shift = fit_scale_and_shift(prediction, target, fit_mask)
    aligned = scale.unsqueeze(1) * torch.where(mask, prediction, 0) + shift.unsqueeze(1)
    return torch.where(mask, aligned - target, 0) / deviation.unsqueeze(1)


def _without_largest(residual: Tensor, mask: Tensor, trim: float) -> Tensor:
    ordered = torch.where(mask, residual, torch.inf).sort(dim=1).values
    last_kept = ((1 - trim) * mask.sum(dim=1, keepdim=True)).ceil().long().clamp_min(1) - 1
    return mask & (residual <= ordered.gather(1, last_kept))


def _gradient_term(residual: Tensor, mask: Tensor, scales: int) -> Tensor:
    total = residual.new_zeros(len(residual))
    for step in (2**scale for scale in range(scales)):
        coarse, valid = residual[:, ::step, ::step], mask[:, ::step, ::step]
        for axis in (1, 2):
            last = coarse.shape[axis] - 1
            both = valid.narrow(axis, 1, last) & valid.narrow(axis, 0, last)
            change = coarse.diff(dim=axis).abs() * both
            total = total + change.sum(dim=(1, 2)) / both.sum(dim=(1, 2)).clamp_min(1)
    return total
