"""Features of Gaussians from 2D feature maps of posed views: weighted average, or ridge least squares."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from prior3d.contracts.splatting import SplatOperator
from prior3d.geometry import full_precision
from prior3d.splat.least_squares import SEEN, HeldViews, LeastSquares, StreamedViews

Views = Iterable[tuple[SplatOperator, Tensor]]
HELD_VALUES = 1 << 28
"""Numbers in the feature maps of a scene up to which least squares hold all of them; beyond, views are streamed."""


@dataclass(frozen=True, eq=False)
class Lifted:
    """Features on N Gaussians.

    Attributes:
        features: zero where no view saw the Gaussian  # [N, C]
        mass: sum of weights over all views, in pixels  # [N]
        views: how many views saw the Gaussian  # [N]
        iterations: of conjugate gradients; 0 = the average.
        held_out_error: relative squared error on the pixels held out, before each iteration and after the last tried;
            empty for the average.
    """

    features: Tensor
    mass: Tensor
    views: Tensor
    iterations: int = 0
    held_out_error: tuple[float, ...] = ()


@torch.no_grad()
def lift_average(views: Views) -> Lifted:
    """Give each Gaussian the average of the features it helped to draw: sum of w f / sum of w.

    Args:
        views: operators (see `view_operator`) with feature maps [V, C, h, w], or [C, h, w] for one view, of the same
            size; read once, not kept.

    Returns:
        The features.

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
def lift_cg(views: Views, *, ridge: float = 0.1, iterations: int = 20, held_out: float = 0.1, seed: int = 0) -> Lifted:
    """Find the features whose rendering is closest to the maps, not straying from the average without evidence.

    Minimises, over the cells of all views, sum m |sum(w x) / m - f|^2 + ridge * sum over Gaussians of
    (d + median d) |x - average|^2, where m is a cell's and d a Gaussian's sum of weights: the pull is in proportion to
    what was seen of a Gaussian, and keeps those almost hidden where they are. The weights, scaled by the roots of both,
    have singular values in [0, 1], so that `ridge` and `iterations` mean the same in every scene. The number of
    iterations is chosen on cells held out, then run on all cells; noise (moving things, wrong depth, views that
    contradict each other) makes it small, down to 0: the average.

    Views whose engine holds entries (`torch`) are solved all at once, as long as their maps have no more than 2^28
    numbers. Otherwise they are streamed: the maps are read once and not kept, and every iteration goes through the
    operators one by one, so that scenes of thousands of views fit.

    Args:
        views: operators (see `view_operator`) with feature maps [V, C, h, w], or [C, h, w] for one view, of the same
            size; operators are kept until the end.
        ridge: pull to the average; singular values below its root are damped. Without it renderings fit as well, with
            features of single Gaussians far from the truth that cancel in the sum.
        iterations: at most.
        held_out: fraction of cells to decide the number of iterations on; 0 runs all `iterations`.
        seed: of the choice of these cells.

    Returns:
        The features.

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
            last = features  # all of them at once would not fit in memory
    return Lifted(last, system.mass, system.views, chosen, errors)


def _system(views: Iterator[tuple[SplatOperator, Tensor]], held_out: float, seed: int) -> LeastSquares:
    """Hold the views if their engine and their size allow it, else stream them."""
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


def _checked(views: Views) -> Iterator[tuple[SplatOperator, Tensor]]:
    """Yield operators and maps [V, C, h, w].

    Raises:
        ValueError: for no view, a map of another size than its operator's, or a view unlike the first.
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
