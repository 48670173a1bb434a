"""PointInfoNCE on CUDA in fused Triton kernels: the logits of a tile never leave the chip.

Four launches: rows are normalized, padded to whole tiles and rounded (the logits read each row many times, so once
before is cheaper than inside); a pass over all tiles sums the exponentials of negatives along rows and columns at once;
two passes make the tiles again for the gradients of queries and of keys, through the normalization. No atomics, so
results repeat bit by bit. Memory: O(N).
"""

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from prior3d.losses.exclusion import Exclusion
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

    block: int
    warps: int
    stages: int


def tiling(channels: int, rounded: bool) -> Tiling:
    """Return the tiles for rows of a padded length; they fit 100 KiB of shared memory up to 128 channels.

    >>> tiling(128, rounded=True)
    Tiling(block=128, warps=8, stages=2)
    """
    if rounded:
        return Tiling(128, 8, 2) if channels <= 128 else Tiling(64, 4, 2)
    return Tiling(64, 4, 2) if channels <= 64 else Tiling(32, 4, 2)


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


class _Rows(NamedTuple):
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
            "BLOCK": tiles.block,
            "BOUNDED": self.bounded,
            "NEAR": self.points is not None,
            "SCENES": self.scene is not None,
            "num_warps": tiles.warps,
            "num_stages": tiles.stages,
        }

    def log_sums(self, rows: _Rows) -> Tensor:
        """Return the log-sum-exps of negatives, [1, G, size] of rows or [2, G, size] with those of columns."""
        groups, size, channels = rows.units[0].shape
        options = self.options(channels)
        parts = _parts(groups, size // options["BLOCK"], rows.counts.device)
        of_rows = torch.empty_like(rows.counts)
        start = 0.0 if self.bounded else -torch.inf
        of_columns = rows.counts.new_full((groups, parts if self.symmetric else 0, size), start)
        _sum_negatives[parts, groups](
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
        self, given: Tensor, rows: _Rows, side: int, factors: Tensor, logs: Tensor, of_positive: Tensor
    ) -> Tensor:
        """Return the gradient of the given queries (side 0) or keys (side 1)."""
        groups, size, channels = rows.units[0].shape
        options = self.options(channels)
        found = torch.empty(given.shape, dtype=given.dtype, device=given.device)
        _gradient_of_rows[size // options["BLOCK"], groups](
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
) -> _Rows:
    groups, length, width = queries.shape
    size, channels = triton.cdiv(length, PADDED) * PADDED, max(triton.next_power_of_2(width), 16)
    units = tuple(
        torch.empty(groups, size, channels, dtype=rounded or torch.float32, device=valid.device) for _ in range(2)
    )
    query_inverse, key_inverse, positive, counts = torch.empty(4, groups, size, device=valid.device).unbind()
    block = 16
    _normalize_pairs[size // block, groups](
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
    return _Rows(units, (query_inverse, key_inverse), positive, counts)


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


@triton.jit
def _normalize_pairs(
    queries,
    keys,
    query_group,
    query_row,
    query_channel,
    key_group,
    key_row,
    key_channel,
    valid,
    query_units,
    key_units,
    query_inverse,
    key_inverse,
    positive,
    counts,
    length,
    size,
    inverse_temperature,
    min_squared,
    WIDTH: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write unit rows, the factors that made them, the logits of matching rows and which rows count."""
    group = tl.program_id(1).to(tl.int64)
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    channel = tl.arange(0, CHANNELS)
    counted = tl.load(valid + group * length + rows, mask=rows < length, other=0) != 0
    inside = counted[:, None] & (channel < WIDTH)[None, :]
    at = group * size + rows
    given = queries + group * query_group + rows.to(tl.int64)[:, None] * query_row + channel[None, :] * query_channel
    query, inverse = _unit(tl.load(given, mask=inside, other=0.0).to(tl.float32), min_squared)
    tl.store(query_inverse + at, inverse)
    given = keys + group * key_group + rows.to(tl.int64)[:, None] * key_row + channel[None, :] * key_channel
    key, inverse = _unit(tl.load(given, mask=inside, other=0.0).to(tl.float32), min_squared)
    tl.store(key_inverse + at, inverse)
    query, key = query.to(query_units.dtype.element_ty), key.to(key_units.dtype.element_ty)
    tl.store(query_units + at[:, None] * CHANNELS + channel[None, :], query)
    tl.store(key_units + at[:, None] * CHANNELS + channel[None, :], key)
    product = tl.sum(query.to(tl.float32) * key.to(tl.float32), 1)
    tl.store(positive + at, product * inverse_temperature)
    tl.store(counts + at, counted.to(tl.float32))


@triton.jit
def _unit(rows, min_squared):
    squared = tl.sum(rows * rows, 1)
    inverse = 1.0 / tl.sqrt(tl.where(squared > min_squared, squared, 1.0))
    return rows * inverse[:, None], inverse


@triton.jit
def _sum_negatives(
    queries,
    keys,
    counts,
    points,
    scene,
    of_rows,
    of_columns,
    size,
    scale,
    radius_squared,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
    SYMMETRIC: tl.constexpr,
    BOUNDED: tl.constexpr,
    NEAR: tl.constexpr,
    SCENES: tl.constexpr,
):
    """Sum the exponentials of negatives along rows and, in this program's own slice, along columns.

    The sums are of exponentials if BOUNDED, else their logarithms to base 2.
    """
    part, parts, group = tl.program_id(0), tl.num_programs(0), tl.program_id(1).to(tl.int64)
    queries += group * size * CHANNELS
    keys += group * size * CHANNELS
    counts += group * size
    of_rows += group * size
    of_columns += (group * parts + part) * size
    if NEAR:
        points += group * size * 3
    if SCENES:
        scene += group * size
    within, channel = tl.arange(0, BLOCK), tl.arange(0, CHANNELS)
    blocks = size // BLOCK
    for block in range(part, blocks, parts):
        rows = block * BLOCK + within
        query = tl.load(queries + rows[:, None] * CHANNELS + channel[None, :])
        row_counts = tl.load(counts + rows)
        if BOUNDED:
            total = tl.zeros([BLOCK], tl.float32)
        else:
            total = tl.full([BLOCK], float("-inf"), tl.float32)
        for step in range(0, blocks):
            columns = step * BLOCK + within
            column_counts = tl.load(counts + columns)
            key = tl.load(keys + columns[:, None] * CHANNELS + channel[None, :])
            logits = _logits(query, key, rows, columns, points, scene, size, scale, radius_squared, NEAR, SCENES)
            logits = tl.where(rows[:, None] == columns[None, :], float("-inf"), logits)
            if BOUNDED:
                exponentials = tl.exp2(logits)
                total += tl.sum(exponentials * column_counts[None, :], 1)
                if SYMMETRIC:
                    before = tl.load(of_columns + columns)
                    tl.store(of_columns + columns, before + tl.sum(exponentials * row_counts[:, None], 0))
            else:
                logits = tl.where((row_counts[:, None] * column_counts[None, :]) > 0, logits, float("-inf"))
                total = _add_exponents(total, _log_sum(logits, 1))
                if SYMMETRIC:
                    before = tl.load(of_columns + columns)
                    tl.store(of_columns + columns, _add_exponents(before, _log_sum(logits, 0)))
        tl.store(of_rows + rows, total)
        # The next block of rows adds to the slice; another thread may have written what a thread then reads.
        tl.debug_barrier()


@triton.jit
def _gradient_of_rows(
    own,
    other,
    counts,
    points,
    scene,
    own_factor,
    other_factor,
    own_log,
    other_log,
    of_positive,
    given,
    given_group,
    given_row,
    given_channel,
    inverse,
    found,
    length,
    size,
    inverse_temperature,
    scale,
    radius_squared,
    WIDTH: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
    BOUNDED: tl.constexpr,
    NEAR: tl.constexpr,
    SCENES: tl.constexpr,
):
    """Write the gradient of a block of rows before their normalization; `other` are the rows that they meet."""
    block, group = tl.program_id(0), tl.program_id(1).to(tl.int64)
    own += group * size * CHANNELS
    other += group * size * CHANNELS
    counts += group * size
    own_factor += group * size
    other_factor += group * size
    own_log += group * size
    other_log += group * size
    if NEAR:
        points += group * size * 3
    if SCENES:
        scene += group * size
    within, channel = tl.arange(0, BLOCK), tl.arange(0, CHANNELS)
    rows = block * BLOCK + within
    row = tl.load(own + rows[:, None] * CHANNELS + channel[None, :])
    row_factor, row_log, row_counts = tl.load(own_factor + rows), tl.load(own_log + rows), tl.load(counts + rows)
    positive = tl.load(of_positive + group * size + rows)
    total = tl.zeros([BLOCK, CHANNELS], tl.float32)
    for step in range(0, size // BLOCK):
        columns = step * BLOCK + within
        column_factor = tl.load(other_factor + columns)
        column = tl.load(other + columns[:, None] * CHANNELS + channel[None, :])
        logits = _logits(row, column, rows, columns, points, scene, size, scale, radius_squared, NEAR, SCENES)
        if BOUNDED:
            weights = tl.exp2(logits) * (row_factor[:, None] + column_factor[None, :])
        else:
            column_log, column_counts = tl.load(other_log + columns), tl.load(counts + columns)
            logits = tl.where((row_counts[:, None] * column_counts[None, :]) > 0, logits, float("-inf"))
            weights = tl.exp2(logits - row_log[:, None]) * row_factor[:, None]
            weights += tl.exp2(logits - column_log[None, :]) * column_factor[None, :]
        # Before the product: rounding a weight near 1 would hide how far it is from 1.
        weights = tl.where(rows[:, None] == columns[None, :], positive[:, None], weights)
        total = _multiply(weights.to(column.dtype), column, total)
    total *= inverse_temperature

    counted = row_counts > 0
    inside = counted[:, None] & (channel < WIDTH)[None, :]
    at = given + group * given_group + rows.to(tl.int64)[:, None] * given_row + channel[None, :] * given_channel
    factor = tl.load(inverse + group * size + rows)
    unit = tl.load(at, mask=inside, other=0.0).to(tl.float32) * factor[:, None]
    total = (total - tl.sum(total * unit, 1)[:, None] * unit) * factor[:, None]
    total = tl.where(counted[:, None], total, 0.0)
    at = found + (group * length + rows)[:, None] * WIDTH + channel[None, :]
    tl.store(at, total.to(found.dtype.element_ty), mask=(rows < length)[:, None] & (channel < WIDTH)[None, :])


@triton.jit
def _logits(
    row, column, rows, columns, points, scene, size, scale, radius_squared, NEAR: tl.constexpr, SCENES: tl.constexpr
):
    """Return logits to base 2 of a tile, -inf where two points of a scene are near each other."""
    logits = _multiply(row, tl.trans(column), None) * scale
    if NEAR:
        squared = tl.zeros(logits.shape, tl.float32)
        for axis in tl.static_range(3):
            difference = tl.load(points + axis * size + rows)[:, None] - tl.load(points + axis * size + columns)[None, :]
            squared += difference * difference
        near = squared < radius_squared
        if SCENES:
            near &= tl.load(scene + rows)[:, None] == tl.load(scene + columns)[None, :]
        logits = tl.where(near, float("-inf"), logits)
    return logits


@triton.jit
def _multiply(one, other, total):
    if one.dtype == tl.float32:
        return tl.dot(one, other, total, input_precision="tf32x3")
    return tl.dot(one, other, total)


@triton.jit
def _log_sum(logits, axis: tl.constexpr):
    """Return the logarithms to base 2 of sums of powers of 2; -inf where there is nothing."""
    largest = tl.max(logits, axis)
    shift = tl.where(largest == float("-inf"), 0.0, largest)
    return shift + tl.log2(tl.sum(tl.exp2(logits - tl.expand_dims(shift, axis)), axis))


@triton.jit
def _add_exponents(one, other):
    largest = tl.maximum(one, other)
    shift = tl.where(largest == float("-inf"), 0.0, largest)
    return shift + tl.log2(tl.exp2(one - shift) + tl.exp2(other - shift))
