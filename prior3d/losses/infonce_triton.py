"""PointInfoNCE on CUDA in fused Triton kernels: the logits of a tile never leave the chip.

Four launches: rows are normalized, padded to whole tiles and rounded (the logits read each row many times, so once
before is cheaper than inside); a pass over all tiles sums the exponentials of negatives along rows and columns at once;
two passes make the tiles again for the gradients of queries and of keys, through the normalization. No atomics, so
results repeat bit by bit. Memory: O(N).

After the tiles of Dao et al., FlashAttention-2, 2023, arXiv 2307.08691. Two things differ: cosines are bounded, so that
one exponential without a running maximum serves both directions unless the temperature is very low, and each program
keeps its own sums of columns, which are added at the end.
"""

import math
from typing import NamedTuple

import torch
import triton
from torch import Tensor
from torch.nn import functional as F

from prior3d.losses.exclusion import Exclusion
from prior3d.losses.infonce_kernels import gradient_of_rows, normalize_pairs, sum_negatives
from prior3d.losses.infonce_tiled import LARGEST_LOGIT, MIN_NORM, refuse_second_derivative

MAX_CHANNELS = 256
"""Longer rows do not fit into a block's registers."""

PADDED = 128
"""Rows are padded to a multiple of this, which all tiles divide."""


def fused_row_losses(
    queries: Tensor,
    keys: Tensor,
    valid: Tensor,
    temperature: float,
    symmetric: bool,
    exclude: Exclusion | None,
    rounded: torch.dtype | None = None,
) -> Tensor:
    """Return the PointInfoNCE of each row, with gradient; as `tiled_row_losses`, but rows are normalized here.

    Args:
        queries: [G, N, C] floating point, at most `MAX_CHANNELS` channels, on CUDA.
        keys: [G, N, C] of the same type.
        valid: [G, N] bool; other slots get a loss of 0 and are no negatives, whatever they hold.
        temperature: divisor of the cosines.
        symmetric: average with the loss from keys to queries.
        exclude: rows of which no pair is a negative.
        rounded: bfloat16 for products of bfloat16; None for products of float32, each from three of tf32. Sums are
            float32 in both.

    Returns:
        [G, N] float32.
    """
    return _FusedLosses.apply(queries, keys, valid, temperature, symmetric, exclude, rounded)


class Tiling(NamedTuple):
    """Rows and columns of a tile, and how its program is compiled."""

    rows: int
    columns: int
    warps: int
    stages: int


def tiling(channels: int, rounded: bool) -> Tiling:
    """Return the tiles for rows of a padded length: about as large as the registers of a Hopper GPU hold."""
    if rounded:
        return Tiling(128, 64, 8, 3) if channels <= 128 else Tiling(64, 64, 8, 2)
    # Each float32 becomes two tf32, so fewer fit.
    if channels <= 128:
        return Tiling(64, 32, 4 if channels <= 64 else 8, 2)
    return Tiling(32, 32, 4, 2)


class _FusedLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        queries: Tensor,
        keys: Tensor,
        valid: Tensor,
        temperature: float,
        symmetric: bool,
        exclude: Exclusion | None,
        rounded: torch.dtype | None,
    ) -> Tensor:
        with torch.cuda.device_of(queries):
            rows = _prepare(queries, keys, valid, temperature, rounded)
            call = _Call(temperature, symmetric, *_padded_points(exclude, rows.size), rows.units[0].dtype)
            logs = call.log_sums(rows)
        losses = torch.where(rows.counts > 0, F.softplus(logs - rows.positive), 0.0)
        ctx.save_for_backward(queries, keys, losses)
        ctx.rows, ctx.call = rows, call
        return losses.mean(0)[:, : valid.shape[1]]

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        queries, keys, losses = ctx.saved_tensors
        rows, call = ctx.rows, ctx.call
        share = F.pad(gradient, (0, rows.size - gradient.shape[1])) / len(losses)
        share = torch.where(rows.counts > 0, share, 0.0)
        logs = losses + rows.positive
        of_positive = (share * torch.expm1(-losses)).sum(0)
        factors = share * torch.exp(-logs) if call.bounded else share.expand_as(logs).contiguous()
        logs = logs / math.log(2)
        if not call.symmetric:
            factors = torch.cat([factors, torch.zeros_like(factors)])
            logs = torch.cat([logs, torch.full_like(logs, torch.inf)])
        with torch.cuda.device_of(queries):
            found = [
                call.gradient(given, rows, side, factors, logs, of_positive) if ctx.needs_input_grad[side] else None
                for side, given in enumerate((queries, keys))
            ]
        return *found, None, None, None, None, None


class _UnitRows(NamedTuple):
    """Queries and keys as the tiles read them; everything padded with 0 to `size` rows per group."""

    units: tuple[Tensor, Tensor]  # [G, size, channels] of length 1, or 0 where not valid; a power of two of channels
    inverses: tuple[Tensor, Tensor]  # [G, size] by which the given rows were multiplied
    positive: Tensor  # [G, size] logits of a row and its own key
    counts: Tensor  # [G, size] 1 where valid, else 0

    @property
    def size(self) -> int:
        return self.counts.shape[1]


class _Call(NamedTuple):
    """What both passes over the tiles share."""

    temperature: float
    symmetric: bool
    points: Tensor | None  # [G, 3, size]
    scene: Tensor | None  # [G, size]
    radius: float
    products: torch.dtype

    @property
    def bounded(self) -> bool:
        return 1 / self.temperature <= LARGEST_LOGIT

    def options(self, channels: int) -> dict[str, object]:
        tiles = tiling(channels, self.products == torch.bfloat16)
        return {
            "scale": 1 / (self.temperature * math.log(2)),
            "radius_squared": self.radius**2,
            "CHANNELS": channels,
            "ROWS": tiles.rows,
            "COLUMNS": tiles.columns,
            "BOUNDED": self.bounded,
            "NEAR": self.points is not None,
            "SCENES": self.scene is not None,
            "num_warps": tiles.warps,
            "num_stages": tiles.stages,
        }

    def log_sums(self, rows: _UnitRows) -> Tensor:
        """Return the log-sum-exps of negatives, [1, G, size] of rows or [2, G, size] with those of columns."""
        groups, size, channels = rows.units[0].shape
        options = self.options(channels)
        parts = _parts(groups, size // options["ROWS"], rows.counts.device)
        of_rows = torch.empty_like(rows.counts)
        start = 0.0 if self.bounded else -torch.inf
        of_columns = rows.counts.new_full((groups, parts if self.symmetric else 0, size), start)
        sum_negatives[parts, groups](
            *rows.units,
            rows.counts,
            self.points,
            self.scene,
            of_rows,
            of_columns,
            size,
            SYMMETRIC=self.symmetric,
            **options,
        )
        if self.bounded:
            return torch.stack([of_rows, of_columns.sum(1)] if self.symmetric else [of_rows]).log()
        of_rows, of_columns = of_rows * math.log(2), of_columns * math.log(2)
        return torch.stack([of_rows, of_columns.logsumexp(1)] if self.symmetric else [of_rows])

    def gradient(
        self, given: Tensor, rows: _UnitRows, side: int, factors: Tensor, logs: Tensor, of_positive: Tensor
    ) -> Tensor:
        """Return the gradient of the given queries (side 0) or keys (side 1)."""
        groups, size, channels = rows.units[0].shape
        options = self.options(channels)
        found = torch.empty(given.shape, dtype=given.dtype, device=given.device)
        gradient_of_rows[size // options["ROWS"], groups](
            rows.units[side],
            rows.units[1 - side],
            rows.counts,
            self.points,
            self.scene,
            factors[side],
            factors[1 - side],
            logs[side],
            logs[1 - side],
            of_positive,
            given,
            *given.stride(),
            rows.inverses[side],
            found,
            given.shape[1],
            size,
            1 / self.temperature,
            WIDTH=given.shape[2],
            **options,
        )
        return found


def _prepare(
    queries: Tensor, keys: Tensor, valid: Tensor, temperature: float, rounded: torch.dtype | None
) -> _UnitRows:
    groups, length, width = queries.shape
    size, channels = triton.cdiv(length, PADDED) * PADDED, max(triton.next_power_of_2(width), 16)
    units = tuple(
        torch.empty(groups, size, channels, dtype=rounded or torch.float32, device=valid.device) for _ in range(2)
    )
    query_inverse, key_inverse, positive, counts = torch.empty(4, groups, size, device=valid.device).unbind()
    block = 32
    normalize_pairs[size // block, groups](
        queries,
        keys,
        *queries.stride(),
        *keys.stride(),
        valid.contiguous().view(torch.uint8),
        *units,
        query_inverse,
        key_inverse,
        positive,
        counts,
        length,
        size,
        1 / temperature,
        MIN_NORM**2,
        WIDTH=width,
        CHANNELS=channels,
        BLOCK=block,
    )
    return _UnitRows(units, (query_inverse, key_inverse), positive, counts)


def _padded_points(exclude: Exclusion | None, size: int) -> tuple[Tensor | None, Tensor | None, float]:
    if exclude is None:
        return None, None, 0.0
    padding = (0, size - exclude.points.shape[1])
    points = F.pad(exclude.points.float().mT, padding).contiguous()
    scene = None if exclude.scene is None else F.pad(exclude.scene, padding).contiguous()
    return points, scene, exclude.radius


def _parts(groups: int, blocks: int, device: torch.device) -> int:
    """Return how many programs share the blocks of a group: two per processor, with equal work."""
    processors = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
    rounds = triton.cdiv(blocks * groups, 2 * processors)
    return triton.cdiv(blocks, rounds)
