"""Features of Gaussians from 2D feature maps of posed views: weighted average, or ridge least squares."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from prior3d.geometry import full_precision
from prior3d.splat.weights import CompositingWeights, csr_matrix

SEEN = 0.1  # pixels' worth of weight from which on a view counts as having seen a Gaussian
PATIENCE = 2  # iterations without a better held-out error before conjugate gradients stop
Views = Iterable[tuple[CompositingWeights, Tensor]]


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
        views: compositing weights with feature maps [C, h, w] of the same size; read once, not kept.

    Returns:
        The features.

    Raises:
        ValueError: if there is no view, or sizes or channel counts differ.
    """
    total = mass = seen_by = None
    for weights, features in views:
        _check_view(weights, features, None if total is None else total.shape)
        if total is None:
            total = weights.weights.new_zeros(weights.count, len(features))
            mass, seen_by = total.new_zeros(weights.count), torch.zeros_like(total[:, 0], dtype=torch.long)
        with full_precision(total.device):
            total += weights.matrix(transposed=True) @ features.flatten(1).T.to(total)
        seen = weights.seen()
        mass += seen
        seen_by += seen >= SEEN
    if total is None:
        raise ValueError("expected at least one view to lift from, got none")
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

    Args:
        views: compositing weights with feature maps [C, h, w] of the same size; weights are kept until the end.
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
    """
    if ridge < 0 or iterations < 0 or not 0 <= held_out < 1:
        found = f"ridge {ridge}, iterations {iterations}, held_out {held_out}"
        raise ValueError(f"expected ridge >= 0, iterations >= 0 and 0 <= held_out < 1, got {found}")
    system = _System.of(views)
    with full_precision(system.targets.device):
        errors, chosen = (), iterations
        if held_out > 0:
            out = torch.rand(len(system.targets), generator=torch.Generator().manual_seed(seed)) < held_out
            errors = system.held_out_errors(out.to(system.targets.device), ridge, iterations)
            chosen = min(range(len(errors)), key=errors.__getitem__)
        everything = torch.ones_like(system.targets[:, 0], dtype=torch.bool)
        for features in system.steps(everything, ridge, chosen):
            last = features  # all of them at once would not fit in memory
    return Lifted(last, system.mass, system.views, chosen, errors)


def _check_view(weights: CompositingWeights, features: Tensor, expected: tuple[int, int] | None) -> None:
    """Refuse a feature map of another size than the weights, or a view unlike the ones before it (N, C)."""
    if features.ndim != 3 or features.shape[1:] != weights.size:
        raise ValueError(f"expected features [C, {weights.size[0]}, {weights.size[1]}], got {list(features.shape)}")
    if expected is not None and (weights.count, len(features)) != tuple(expected):
        found = f"{weights.count} and {len(features)}"
        raise ValueError(f"expected {expected[0]} Gaussians and {expected[1]} channels in every view, got {found}")


@dataclass(frozen=True, eq=False)
class _System:
    """All views, one below the other, as a least-squares problem."""

    rows: Tensor  # [M] cells, of R over all views
    columns: Tensor  # [M] Gaussians
    weights: Tensor  # [M]
    targets: Tensor  # [R, C] features of the cells
    mass: Tensor  # [N]
    views: Tensor  # [N]

    @classmethod
    def of(cls, views: Views) -> "_System":
        rows, columns, entries, targets, seen, cells, expected = [], [], [], [], [], 0, None
        for weights, features in views:
            _check_view(weights, features, expected)
            expected = (weights.count, len(features))
            rows.append(weights.pixels + cells)
            columns.append(weights.gaussians)
            entries.append(weights.weights)
            targets.append(features.flatten(1).T.to(weights.weights))
            seen.append(weights.seen())
            cells += len(weights.areas)
        if not targets:
            raise ValueError("expected at least one view to lift from, got none")
        masses = torch.stack(seen)
        return cls(*map(torch.cat, (rows, columns, entries, targets)), masses.sum(0), (masses >= SEEN).sum(0))

    def steps(self, kept: Tensor, ridge: float, iterations: int) -> Iterator[Tensor]:
        """The average over the kept cells, then the features after each iteration of CGLS on them."""  # [N, C] each
        matrix, transposed, cells, gaussians, mass = self._scaled(kept)
        targets = self.targets * cells
        average = transposed @ targets * gaussians / mass.clamp(min=torch.finfo(mass.dtype).tiny)
        yield average
        residual = targets - matrix @ (average * gaussians)
        change = torch.zeros_like(average)
        gradient = transposed @ residual
        direction, size = gradient, gradient.square().sum(0)
        for _ in range(iterations):
            image = matrix @ direction
            curvature = image.square().sum(0) + ridge * direction.square().sum(0)
            step = size / curvature.clamp(min=torch.finfo(size.dtype).tiny)  # 0 / 0 in channels already solved
            change = change + step * direction
            residual = residual - step * image
            gradient = transposed @ residual - ridge * change
            size, previous = gradient.square().sum(0), size
            direction = gradient + size / previous.clamp(min=torch.finfo(size.dtype).tiny) * direction
            yield average + change / gaussians.clamp(min=torch.finfo(size.dtype).tiny)

    def held_out_errors(self, out: Tensor, ridge: float, iterations: int) -> tuple[float, ...]:
        """Relative squared error on the cells held out, of the average and after each iteration until it rises."""
        matrix, _, cells, gaussians, _ = self._scaled(out)
        targets = self.targets * cells
        total = targets.square().sum().clamp(min=torch.finfo(targets.dtype).tiny)
        errors: list[float] = []
        for features in self.steps(~out, ridge, iterations):
            errors.append(((matrix @ (features * gaussians) - targets).square().sum() / total).item())
            if len(errors) - 1 - errors.index(min(errors)) >= PATIENCE:
                break
        return tuple(errors)

    def _scaled(self, kept: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Weights of the kept cells divided by both scales, their transpose, the scales [R, 1], [N, 1], mass [N, 1].

        A cell's scale is the root of its mass, so that rows are means times it; a Gaussian's that of mass + median.
        """
        chosen = kept[self.rows]
        rows, columns, weights = self.rows[chosen], self.columns[chosen], self.weights[chosen]
        cells = weights.new_zeros(len(self.targets)).index_add_(0, rows, weights).sqrt()
        mass = weights.new_zeros(len(self.mass)).index_add_(0, columns, weights)
        gaussians = torch.where(mass > 0, mass + mass[mass > 0].median(), 0.0).sqrt()
        entries = weights / (cells[rows] * gaussians[columns])
        shape = (len(cells), len(mass))
        matrices = (csr_matrix(rows, columns, entries, shape, transposed) for transposed in (False, True))
        return *matrices, cells[:, None], gaussians[:, None], mass[:, None]
