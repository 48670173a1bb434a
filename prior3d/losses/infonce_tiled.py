"""PointInfoNCE in memory O(N), on any device: logits are made in tiles, reduced, and made again for the gradients."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from prior3d.geometry import full_precision, working_dtype
from prior3d.losses.exclusion import Exclusion

EDGE = 512
"""Rows and columns of a tile of logits on a CPU; 1 MiB of float32, which a core's cache holds."""

EDGE_ON_DEVICE = 4096
"""Rows and columns of a tile on any other device: large enough to fill it, 64 MiB of float32."""

MIN_NORM = 1e-12
"""Vectors shorter than this count as zero: they stay zero and pass gradients on unscaled."""

LARGEST_LOGIT = 64.0
"""Cosines divided by a temperature stay below this in most recipes; their exponentials and sums of them fit float32."""


def tiled_row_losses(
    queries: Tensor,
    keys: Tensor,
    valid: Tensor,
    temperature: float,
    symmetric: bool,
    exclude: Exclusion | Tensor | None,
    rounded: torch.dtype | None = None,
) -> Tensor:
    """Return the PointInfoNCE of each row, with gradient, without a tensor of N x N elements.

    A tile of logits serves both directions. Its exponentials are summed along rows and columns in the forward pass and
    made again in the backward pass, which adds three matrix products to the one of the forward pass. The tiles' size
    changes the result by rounding only.

    Args:
        queries: [G, N, C] float32 or float64, of length 1, or 0 in slots that are not valid.
        keys: [G, N, C], likewise.
        valid: [G, N] bool; other slots get a loss of 0 and are no negatives.
        temperature: divisor of the cosines.
        symmetric: average with the loss from keys to queries.
        exclude: rows or [G, N, N] mask of pairs that are no negatives.
        rounded: type to which the factors of matrix products are rounded; sums stay in the type of the queries.

    Returns:
        [G, N].

    >>> rows = torch.eye(4)[None]
    >>> tiled_row_losses(rows, rows, torch.ones(1, 4, dtype=torch.bool), 1.0, True, None)
    tensor([[0.7437, 0.7437, 0.7437, 0.7437]])
    """
    return _TiledLosses.apply(queries, keys, _LossOptions(valid, temperature, symmetric, exclude, rounded))


class _LossOptions(NamedTuple):
    """Everything but the features; `tiles` and `exponentials` are the same in both passes."""

    valid: Tensor
    temperature: float
    symmetric: bool
    exclude: Exclusion | Tensor | None
    rounded: torch.dtype | None

    @property
    def bounded(self) -> bool:
        """Whether exponentials of logits need no shift, so that one serves both directions."""
        return 1 / self.temperature <= LARGEST_LOGIT

    def tiles(self) -> Iterator[tuple[slice, slice, slice]]:
        groups, size = self.valid.shape
        limit = EDGE if self.valid.device.type == "cpu" else EDGE_ON_DEVICE
        edge = min(limit, size)
        together = limit**2 // edge**2
        for group in range(0, groups, together):
            for row in range(0, size, edge):
                for column in range(0, size, edge):
                    yield slice(group, group + together), slice(row, row + edge), slice(column, column + edge)

    def logits(self, queries: Tensor, keys: Tensor, tile: tuple[slice, slice, slice]) -> Tensor:
        """Return the logits of a tile; -inf where a pair is no negative, except for invalid slots if `bounded`."""
        groups, rows, columns = tile
        one, other = queries[groups, rows], keys[groups, columns]
        shape = (*one.shape[:2], other.shape[1])
        logits = torch.baddbmm(one.new_zeros(()).expand(shape), one, other.mT, beta=0, alpha=1 / self.temperature)
        dropped = self._excluded(tile)
        if not self.bounded:
            counted = self.valid[groups, rows, None] & self.valid[groups, None, columns]
            dropped = ~counted if dropped is None else dropped | ~counted
        if dropped is not None:
            logits.masked_fill_(dropped, -torch.inf)
        if rows == columns:
            logits.diagonal(dim1=1, dim2=2).fill_(-torch.inf)
        return logits

    def _excluded(self, tile: tuple[slice, slice, slice]) -> Tensor | None:
        if self.exclude is None:
            return None
        return self.exclude.mask(*tile) if isinstance(self.exclude, Exclusion) else self.exclude[tile]


class _TiledLosses(torch.autograd.Function):
    """Losses [G, N] of rows; nothing of N x N elements is kept or made."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, queries: Tensor, keys: Tensor, problem: _LossOptions
    ) -> Tensor:
        queries, keys = (_round(rows, problem.rounded) for rows in (queries, keys))
        start = 0.0 if problem.bounded else -torch.inf
        negatives = [queries.new_full(problem.valid.shape, start) for _ in range(2 if problem.symmetric else 1)]
        counts = problem.valid.to(queries.dtype)
        with full_precision(queries.device):
            for tile in problem.tiles():
                groups, rows, columns = tile
                logits = problem.logits(queries, keys, tile)
                if problem.bounded:
                    logits.exp_()
                    negatives[0][groups, rows] += (logits @ counts[groups, columns, None])[..., 0]
                    if problem.symmetric:
                        negatives[1][groups, columns] += (counts[groups, None, rows] @ logits)[:, 0]
                else:
                    for total, part, dim in zip(negatives, (rows, columns), (2, 1), strict=False):
                        total[groups, part] = total[groups, part].logaddexp(logits.logsumexp(dim))
        positive = (queries * keys).sum(-1) / problem.temperature
        logs = torch.stack([total.log() if problem.bounded else total for total in negatives])
        # The positive is not in the sums: a loss near 0 keeps all its digits.
        losses = torch.where(problem.valid, (logs - positive).logaddexp(torch.zeros_like(positive)), 0.0)
        ctx.save_for_backward(queries, keys, positive, losses)
        ctx.problem = problem
        return losses.mean(0)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        refuse_second_derivative()
        queries, keys, positive, losses = ctx.saved_tensors
        problem = ctx.problem
        share = torch.where(problem.valid, gradient, 0.0) / len(losses)
        logs = losses + positive
        of_positive = (share * torch.expm1(-losses)).sum(0)
        for_queries, for_keys = torch.zeros_like(queries), torch.zeros_like(keys)
        with full_precision(queries.device):
            for tile in problem.tiles():
                groups, rows, columns = tile
                weights = _weights(problem.logits(queries, keys, tile), problem.bounded, share, logs, tile)
                if rows == columns:
                    weights.diagonal(dim1=1, dim2=2).copy_(of_positive[groups, rows])
                weights = _round(weights, problem.rounded)
                scale = {"alpha": 1 / problem.temperature}
                if ctx.needs_input_grad[0]:
                    for_queries[groups, rows].baddbmm_(weights, keys[groups, columns], **scale)
                if ctx.needs_input_grad[1]:
                    for_keys[groups, columns].baddbmm_(weights.mT, queries[groups, rows], **scale)
        return for_queries, for_keys, None


def unit_rows(rows: Tensor) -> Tensor:
    """Return rows [..., C] of length 1, in float32 or float64; vectors shorter than `MIN_NORM` stay as they are.

    >>> unit_rows(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
    tensor([[0.6000, 0.8000],
            [0.0000, 0.0000]])
    """
    rows = rows.to(working_dtype(rows))
    squared_norm = rows.square().sum(-1, keepdim=True)
    return rows * torch.where(squared_norm > MIN_NORM**2, squared_norm, 1.0).rsqrt()


def refuse_second_derivative() -> None:
    """Raise an error if the gradients of a backward pass shall have gradients themselves.

    Raises:
        RuntimeError: within a backward pass with `create_graph=True`.

    >>> with torch.no_grad():
    ...     refuse_second_derivative()
    """
    if torch.is_grad_enabled():
        raise RuntimeError(
            "PointInfoNCE of so many rows has no second derivative; take fewer rows, or gradients without create_graph"
        )


def _weights(logits: Tensor, bounded: bool, share: Tensor, logs: Tensor, tile: tuple[slice, slice, slice]) -> Tensor:
    """Return the gradients of the log-sum-exps with respect to a tile of logits, which it overwrites."""
    groups, rows, columns = tile
    sides = [(share[groups, rows, None], logs[0, groups, rows, None])]
    if len(logs) == 2:
        sides.append((share[groups, None, columns], logs[1, groups, None, columns]))
    if bounded:
        factors = [weight * torch.exp(-log) for weight, log in sides]
        return logits.exp_().mul_(sum(factors[1:], factors[0]))
    return sum(weight * torch.exp(logits - log) for weight, log in sides)


def _round(values: Tensor, dtype: torch.dtype | None) -> Tensor:
    return values if dtype is None else values.to(dtype).to(values.dtype)
