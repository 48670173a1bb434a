"""Emission-absorption rendering along rays: weights, composited values, expected depth and inverse depth."""

from typing import NamedTuple

import torch
from torch import Tensor

from prior3d.geometry import in_full_precision


class Rendered(NamedTuple):
    """Rendering of rays: N images, R rays, S samples, C channels.

    Attributes:
        weights: [N, R, S] share of the ray that ends in each sample's interval.
        values: [N, R, C] composited values.
        depth: [N, R] expected depth E[t], in the unit of the sample depths.
        inverse_depth: [N, R] expected inverse depth E[1/t] (not 1 / E[t]).
        opacity: [N, R] share of the ray that ends before its far end.
    """

    weights: Tensor
    values: Tensor
    depth: Tensor
    inverse_depth: Tensor
    opacity: Tensor


@in_full_precision
def ray_weights(density: Tensor, deltas: Tensor) -> tuple[Tensor, Tensor]:
    """Return the share of each ray that ends in each interval, and the share that passes all intervals.

    Density is constant within an interval, for which these shares are exact:
    w_i = exp(-sum_{j<i} density_j delta_j) (1 - exp(-density_i delta_i)).

    Args:
        density: [..., S] non-negative density per unit of length.
        deltas: [..., S] lengths of the intervals, same unit.

    Returns:
        [..., S] weights and [...] leftover share; together they sum to one.

    >>> weights, left = ray_weights(torch.tensor([0.0, 1e9]), torch.tensor([1.0, 1.0]))
    >>> weights.tolist(), left.item()
    ([0.0, 1.0], 0.0)
    """
    optical_depth = density * deltas
    # The exclusive sum comes from a shift: subtracting the own term from the inclusive sum would lose it to rounding
    # behind an opaque sample (and turn inf - inf into NaN).
    before = torch.cumsum(optical_depth[..., :-1], dim=-1)
    before = torch.cat([torch.zeros_like(optical_depth[..., :1]), before], dim=-1)
    weights = torch.exp(-before) * -torch.expm1(-optical_depth)
    return weights, torch.exp(-optical_depth.sum(dim=-1))


@in_full_precision
def render_rays(
    density: Tensor,
    values: Tensor,
    deltas: Tensor,
    depth: Tensor,
    far: Tensor,
    background: Tensor | None = None,
) -> Rendered:
    """Composite samples along rays.

    The share that passes all samples ends at the ray's far depth, so E[t] and E[1/t] stay defined and smooth for an
    empty ray, and no ray depends on another one.

    Args:
        density: [N, R, S] non-negative density per unit of length.
        values: [N, R, S, C] values that the samples emit.
        deltas: [N, R, S] or broadcastable, length of each sample's interval.
        depth: [N, R, S] or broadcastable, positive depth of each sample; its unit may differ from that of `deltas`.
        far: [N, R] or broadcastable, depth at which the leftover share of each ray ends.
        background: broadcastable to [N, R, C], values of the leftover share; None adds nothing (values stay
            premultiplied by opacity).

    Returns:
        The rendered rays, in float32 (float64 for float64 inputs) even under autocast.

    Raises:
        ValueError: if density and values do not agree in shape.

    Reference:
        Mildenhall et al. 2020, arXiv 2003.08934, equation 3. Here the leftover share goes to the far depth of the ray.
        EG3D's code (Chan et al. 2022, arXiv 2112.07945) instead divides by the sum of weights and clamps to the
        extremes of all depths in the batch.

    >>> depth = torch.tensor([[[1.0, 2.0]]])
    >>> density = torch.tensor([[[0.0, 1e9]]])
    >>> rendered = render_rays(density, torch.ones(1, 1, 2, 3), torch.ones(1, 1, 2), depth, torch.full((1, 1), 4.0))
    >>> rendered.depth.item(), rendered.opacity.item()
    (2.0, 1.0)
    """
    if density.ndim != 3 or values.ndim != 4 or values.shape[:3] != density.shape:
        expected = f"expected density [N, R, S] and values [N, R, S, C], got {list(density.shape)}"
        raise ValueError(f"{expected} and {list(values.shape)}")
    weights, leftover = ray_weights(density, deltas)
    composited = (weights.unsqueeze(-1) * values).sum(dim=-2)
    if background is not None:
        composited = composited + leftover.unsqueeze(-1) * background
    return Rendered(
        weights=weights,
        values=composited,
        depth=(weights * depth).sum(dim=-1) + leftover * far,
        inverse_depth=(weights / depth).sum(dim=-1) + leftover / far,
        opacity=1 - leftover,
    )
