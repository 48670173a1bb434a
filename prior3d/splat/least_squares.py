"""Ridge least squares on the views of Gaussians, by conjugate gradients, with two ways to store the views.

Both minimize, over the cells of all views, sum m |sum(w x) / m - f|^2 + ridge * sum over Gaussians of
(d + median d) |x - average|^2, where m is the sum of weights of a cell and d that of a Gaussian. Divided by the roots
of both, the weights have singular values in [0, 1].

Reference:
    Hestenes and Stiefel 1952: on the residual (CGLS) or on the normal equations (CGNR), all channels side by side.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prior3d.contracts.splatting import SplatOperator
from prior3d.splat.weights import maps_of_rows, rows_of_maps

SEEN = 0.1  # minimum weight, in pixels, from which a view counts as having seen a Gaussian
PATIENCE = 2  # conjugate gradients stop after this many iterations without a better held-out error


class LeastSquares(ABC):
    """All views of a scene as a least-squares problem, with cells held out to choose the number of iterations.

    Attributes:
        mass: [N] sum of weights over all views
        views: [N] number of views that saw each Gaussian
    """

    mass: Tensor
    views: Tensor

    @abstractmethod
    def steps(self, ridge: float, iterations: int, everything: bool) -> Iterator[Tensor]:
        """The average [N, C], then the features after each iteration, on all cells or without the held-out ones."""

    @abstractmethod
    def _held_out_error(self, features: Tensor) -> Tensor:
        """Squared error on the held-out cells over the squared length of the features there, a scalar."""

    def held_out_errors(self, ridge: float, iterations: int) -> tuple[float, ...]:
        """Relative squared error on the held-out cells, for the average and after each iteration until it rises."""
        errors: list[float] = []
        for features in self.steps(ridge, iterations, everything=False):
            errors.append(self._held_out_error(features).item())
            if len(errors) - 1 - errors.index(min(errors)) >= PATIENCE:
                break
        return tuple(errors)


class HeldViews(LeastSquares):
    """All views in memory, stacked into one operator: CGLS.

    Args:
        whole: operator over all views; it has `scaled`.
        operators: operators of single views, to count the views that saw a Gaussian.
        maps: [V, C, h, w] features for each operator.
        held_out: fraction of cells to hold out.
        seed: seed of the choice of these cells.
    """

    def __init__(
        self,
        whole: SplatOperator,
        operators: Sequence[SplatOperator],
        maps: Sequence[Tensor],
        held_out: float,
        seed: int,
    ) -> None:
        self._whole = whole
        self._targets = torch.cat([rows_of_maps(part).to(whole.areas) for part in maps])  # [R, C] of R cells
        seen = torch.cat([operator.seen() for operator in operators])
        self.mass, self.views = seen.sum(0), (seen >= SEEN).sum(0)
        out = torch.rand(len(self._targets), generator=torch.Generator().manual_seed(seed)) < held_out
        self._out = out.to(self._targets.device)

    def steps(self, ridge: float, iterations: int, everything: bool) -> Iterator[Tensor]:
        """See `LeastSquares.steps`."""
        system = self._scaled(torch.ones_like(self._out) if everything else ~self._out)
        targets = self._targets * system.cells
        average = system.gather(targets) * system.gaussians / system.mass.clamp(min=_tiny(system.mass))
        yield average
        residual = targets - system.render(average * system.gaussians)
        change = torch.zeros_like(average)
        gradient = system.gather(residual)
        direction, size = gradient, gradient.square().sum(0)
        for _ in range(iterations):
            image = system.render(direction)
            curvature = image.square().sum(0) + ridge * direction.square().sum(0)
            step = size / curvature.clamp(min=_tiny(size))  # 0 / 0 in channels that are already solved
            change = change + step * direction
            residual = residual - step * image
            gradient = system.gather(residual) - ridge * change
            size, previous = gradient.square().sum(0), size
            direction = gradient + size / previous.clamp(min=_tiny(size)) * direction
            yield average + change / system.gaussians.clamp(min=_tiny(size))

    def held_out_errors(self, ridge: float, iterations: int) -> tuple[float, ...]:
        """See `LeastSquares.held_out_errors`."""
        self._system_held_out = self._scaled(self._out)
        return super().held_out_errors(ridge, iterations)

    def _held_out_error(self, features: Tensor) -> Tensor:
        system = self._system_held_out
        targets = self._targets * system.cells
        total = targets.square().sum().clamp(min=_tiny(targets))
        return (system.render(features * system.gaussians) - targets).square().sum() / total

    def _scaled(self, kept: Tensor) -> "_Rows":
        scaled = self._whole.scaled(kept.view(self._whole.views, *self._whole.size))
        return _Rows(scaled.operator, scaled.cells.flatten()[:, None], scaled.gaussians[:, None], scaled.mass[:, None])


@dataclass(frozen=True, eq=False)
class _Rows:
    """A scaled operator on rows of cells [R, C] instead of maps, its scales [R, 1] and [N, 1], and the mass [N, 1]."""

    operator: SplatOperator
    cells: Tensor
    gaussians: Tensor
    mass: Tensor

    def render(self, values: Tensor) -> Tensor:
        return rows_of_maps(self.operator.render(values))

    def gather(self, rows: Tensor) -> Tensor:
        return self.operator.gather(maps_of_rows(rows, self.operator))


class StreamedViews(LeastSquares):
    """Views processed one by one in each iteration; features are read once and not kept: CGNR.

    It keeps the operators, each cell's sum of weights and whether it is held out, and some tensors of the size of the
    Gaussians' features. It equals `HeldViews` within rounding, except for the choice of held-out cells.

    Args:
        views: operators with feature maps [V, C, h, w]; read once.
        held_out: fraction of cells to hold out.
        seed: seed of the choice of these cells.
    """

    def __init__(self, views: Iterable[tuple[SplatOperator, Tensor]], held_out: float, seed: int) -> None:
        draws = torch.Generator().manual_seed(seed)
        self._blocks: list[tuple[SplatOperator, Tensor, Tensor]] = []  # operator, mass [V, 1, h, w], held out
        sums: list[Tensor] | None = None
        for operator, maps in views:
            mass = operator.mass()[:, None]
            out = (torch.rand(mass.shape, generator=draws) < held_out).to(mass.device)
            self._blocks.append((operator, mass, out))
            maps = torch.cat([maps.to(mass), torch.ones_like(mass)], 1)  # the last channel collects the Gaussians' mass
            seen = operator.seen()
            squared = (mass * maps[:, :-1].square() * out).double().sum()
            parts = [operator.gather(maps), operator.gather(maps * ~out)]
            parts += [seen.sum(0), (seen >= SEEN).sum(0), squared]
            sums = parts if sums is None else [total + part for total, part in zip(sums, parts, strict=True)]
        everything, kept, self.mass, self.views, self._squared = sums
        self._sums = {True: everything, False: kept}

    def steps(self, ridge: float, iterations: int, everything: bool) -> Iterator[Tensor]:
        """See `LeastSquares.steps`."""
        sums, mass = self._sums[everything][:, :-1], self._sums[everything][:, -1:]
        seen = mass > 0
        scale = torch.where(seen, mass + mass[seen].median(), 0.0).sqrt()
        unscale = torch.where(seen, 1 / scale, 0.0)
        average = torch.where(seen, sums / mass, 0.0)
        yield average
        change = torch.zeros_like(average)
        gradient = unscale * (sums - self._there_and_back(average, everything))
        direction, size = gradient, gradient.square().sum(0)
        for _ in range(iterations):
            image = unscale * self._there_and_back(unscale * direction, everything) + ridge * direction
            step = size / (direction * image).sum(0).clamp(min=_tiny(size))  # 0 / 0 in channels that are already solved
            change = change + step * direction
            gradient = gradient - step * image
            size, previous = gradient.square().sum(0), size
            direction = gradient + size / previous.clamp(min=_tiny(size)) * direction
            yield average + unscale * change

    def _there_and_back(self, features: Tensor, everything: bool) -> Tensor:
        """Gather the rendered features, averaged over each cell, back to the Gaussians."""
        total = torch.zeros_like(features)
        for operator, mass, out in self._blocks:
            shown = operator.render(features) / mass.clamp(min=_tiny(mass))
            total += operator.gather(shown if everything else shown * ~out)
        return total

    def _held_out_error(self, features: Tensor) -> Tensor:
        held_out = (self._sums[True] - self._sums[False])[:, :-1]
        error = self._squared - 2 * (features * held_out).double().sum()
        for operator, mass, out in self._blocks:
            error = error + (operator.render(features).square() / mass.clamp(min=_tiny(mass)) * out).double().sum()
        return error / self._squared.clamp(min=_tiny(self._squared))


def _tiny(tensor: Tensor) -> float:
    return torch.finfo(tensor.dtype).tiny
