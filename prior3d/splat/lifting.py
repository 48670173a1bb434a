"""Lift features from 2D maps of posed views to Gaussians: weighted average, or ridge least squares."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from prior3d.contracts.splatting import SplatOperator
from prior3d.geometry import full_precision
from prior3d.splat.least_squares import SEEN, HeldViews, LeastSquares, StreamedViews

ViewMaps = Iterable[tuple[SplatOperator, Tensor]]
HELD_VALUES = 1 << 28
"""Maximum number of values in a scene's feature maps for least squares in memory; beyond it, views are streamed."""


@dataclass(frozen=True, eq=False)
class Lifted:
    """Features of N Gaussians.

    Attributes:
        features: [N, C] features, zero if no view saw the Gaussian
        mass: [N] sum of weights over all views, in pixels
        views: [N] number of views that saw the Gaussian
        iterations: number of iterations of conjugate gradients; 0 is the average.
        held_out_error: relative squared error on the held-out pixels, before each iteration and after the last one
            tried; empty for the average.
    """

    features: Tensor
    mass: Tensor
    views: Tensor
    iterations: int = 0
    held_out_error: tuple[float, ...] = ()


@torch.no_grad()
def lift_average(views: ViewMaps) -> Lifted:
    """Give each Gaussian the average of the features that it contributes to: sum of w f / sum of w.

    Args:
        views: operators (see `view_operator`) with feature maps [V, C, h, w], or [C, h, w] for one view, all of the
            same size; read once, not kept.

    Returns:
        The lifted features.

    Raises:
        ValueError: if there is no view, or sizes or channel counts differ.

    >>> from prior3d.splat import gaussians_from_depth, view_operator
    >>> intrinsics = torch.tensor([[20.0, 0, 8], [0, 20, 6], [0, 0, 1]])
    >>> pose = torch.eye(4)
    >>> depth = torch.full((1, 12, 16), 2.0)
    >>> gaussians = gaussians_from_depth(depth, intrinsics, pose[None])
    >>> operator = view_operator(gaussians, intrinsics, pose, (12, 16), grid=(3, 4))
    >>> lifted = lift_average([(operator, torch.ones(5, 3, 4))])
    >>> lifted.features.shape == (len(gaussians), 5), round(lifted.features.max().item(), 3)
    (True, 1.0)
    """
    total = mass = seen_by = None
    for operator, maps in _checked(views):
        if total is None:
            total = operator.areas.new_zeros(operator.count, maps.shape[1])
            mass, seen_by = total.new_zeros(operator.count), torch.zeros_like(total[:, 0], dtype=torch.long)
        total += operator.gather(maps)
        seen = operator.seen()
        mass += seen.sum(0)
        seen_by += (seen >= SEEN).sum(0)
    return Lifted(total / mass.clamp(min=torch.finfo(mass.dtype).tiny)[:, None], mass, seen_by)


@torch.no_grad()
def lift_cg(
    views: ViewMaps, *, ridge: float = 0.1, iterations: int = 20, held_out: float = 0.1, seed: int = 0
) -> Lifted:
    """Find the features whose rendering is closest to the maps, close to the average without evidence against it.

    Minimizes, over the cells of all views, sum m |sum(w x) / m - f|^2 + ridge * sum over Gaussians of
    (d + median d) |x - average|^2, where m is the sum of weights of a cell and d that of a Gaussian. The pull to the
    average is in proportion to how much was seen of a Gaussian, and keeps almost hidden Gaussians in place. Scaled by
    the roots of both, the weights have singular values in [0, 1], so `ridge` and `iterations` mean the same in every
    scene. The number of iterations is chosen on held-out cells; the solution then uses all cells. Noise (moving
    objects, wrong depth, contradictory views) makes this number small, down to 0: the average.

    If the views' engine holds entries (`torch`), all views are solved together, up to 2^28 numbers in their maps.
    Otherwise views are streamed: the maps are read once and not kept, and every iteration goes through the operators
    one by one, so scenes with thousands of views fit.

    Args:
        views: operators (see `view_operator`) with feature maps [V, C, h, w], or [C, h, w] for one view, all of the
            same size; operators are kept until the end.
        ridge: strength of the pull to the average; singular values below its root are damped. Without it, renderings
            fit as well, but single Gaussians get features far from the truth that cancel in the sum.
        iterations: maximum number of iterations.
        held_out: fraction of cells used to choose the number of iterations; 0 runs all `iterations`.
        seed: seed of the choice of these cells.

    Returns:
        The lifted features.

    Raises:
        ValueError: if there is no view, sizes or channel counts differ, or options are out of range.

    Reference:
        Hestenes and Stiefel 1952, on the normal equations (CGLS), all channels side by side.

    >>> from prior3d.splat import gaussians_from_depth, view_operator
    >>> intrinsics = torch.tensor([[20.0, 0, 8], [0, 20, 6], [0, 0, 1]])
    >>> pose = torch.eye(4)
    >>> depth = torch.full((1, 12, 16), 2.0)
    >>> gaussians = gaussians_from_depth(depth, intrinsics, pose[None])
    >>> operator = view_operator(gaussians, intrinsics, pose, (12, 16), grid=(3, 4))
    >>> lift_cg([(operator, torch.ones(5, 3, 4))], held_out=0, iterations=2).iterations
    2
    """
    if ridge < 0 or iterations < 0 or not 0 <= held_out < 1:
        found = f"ridge {ridge}, iterations {iterations}, held_out {held_out}"
        raise ValueError(f"expected ridge >= 0, iterations >= 0 and 0 <= held_out < 1, got {found}")
    system = _system(_checked(views), held_out, seed)
    with full_precision(system.mass.device):
        errors, chosen = (), iterations
        if held_out > 0:
            errors = system.held_out_errors(ridge, iterations)
            chosen = min(range(len(errors)), key=errors.__getitem__)
        for features in system.steps(ridge, chosen, everything=True):
            last = features  # all iterations at once would not fit in memory
    return Lifted(last, system.mass, system.views, chosen, errors)


def _system(views: Iterator[tuple[SplatOperator, Tensor]], held_out: float, seed: int) -> LeastSquares:
    """Hold the views in memory if their engine and size allow it, else stream them."""
    held: list[tuple[SplatOperator, Tensor]] = []
    values = 0
    for operator, maps in views:
        held.append((operator, maps))
        values += maps.numel()
        if values > HELD_VALUES or operator.joined(()) is None:
            return StreamedViews(chain(held, views), held_out, seed)
    operators, maps = zip(*held, strict=True)
    whole = operators[0].joined(operators[1:])
    return StreamedViews(held, held_out, seed) if whole is None else HeldViews(whole, operators, maps, held_out, seed)


def _checked(views: ViewMaps) -> Iterator[tuple[SplatOperator, Tensor]]:
    """Yield operators and maps [V, C, h, w].

    Raises:
        ValueError: if there is no view, a map and its operator differ in size, or a view is unlike the first.
    """
    expected = None
    for operator, features in views:
        maps = features[None] if features.ndim == 3 and operator.views == 1 else features
        if maps.ndim != 4 or len(maps) != operator.views or maps.shape[2:] != operator.size:
            leading = "" if operator.views == 1 else f"{operator.views}, "
            wanted = f"[{leading}C, {operator.size[0]}, {operator.size[1]}]"
            raise ValueError(f"expected features {wanted}, got {list(features.shape)}")
        found = (operator.count, maps.shape[1])
        if found != (expected := expected or found):
            wanted = f"{expected[0]} Gaussians and {expected[1]} channels in every view"
            raise ValueError(f"expected {wanted}, got {found[0]} and {found[1]}")
        yield operator, maps
    if expected is None:
        raise ValueError("expected at least one view to lift from, got none")
