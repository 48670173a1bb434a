"""Launching the kernels: products over tiles of rows, and gradients of a weight over pieces of pairs."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from prior3d.launching import blocks
from prior3d_plugins.engines.sparse_triton import kernels
from prior3d_plugins.engines.sparse_triton.forms import Pairs, Tiles, multiprocessors, pieces_of
from prior3d_plugins.engines.sparse_triton.tuning import Config, Table, pair_candidates, tile_candidates

_CACHE = Path("~/.cache/prior3d/sparse_triton")
_ALIGNED = 16
"""Channels are filled up to a multiple of this: the least that is summed over at once, and whole loads of 16 bytes."""

_MOST_PARTS = 8


def gather(features: Tensor, weight: Tensor, tiles: Tiles, flip: bool, precision: str) -> Tensor:
    """Sum features[table[k]] @ weight[k] over the offsets k.

    Args:
        features: [N_in, R].
        weight: [K, R, C], of any strides.
        tiles: of the map from rows of `features` to rows of the result.
        flip: whether offset K-1-k of the weight meets row k of the table.
        precision: of products of float32: `ieee` or `tf32`.

    Returns:
        [N_out, C] of the features' dtype.
    """
    if _must_widen(features):
        return gather(features.float(), weight.float(), tiles, flip, "ieee").to(features.dtype)
    rows, (size, _, columns) = tiles.order.shape[0], weight.shape
    out = features.new_empty(rows, columns)
    if out.numel() == 0 or features.numel() == 0:
        return out.zero_()
    features, weight = _aligned(features), _filled(weight)
    if precision == "tf32" and features.dtype == torch.float32 and weight.stride(1) != 1:
        # Matrix units read tf32 along the summed axis alone.
        weight = weight.transpose(1, 2).contiguous().transpose(1, 2)
    summed, width = features.shape[1], weight.shape[2]
    parts = _parts(rows, columns, size, features.device)
    target = out if parts == 1 else features.new_empty(parts, rows, columns, dtype=torch.float32)

    def launch(config: Config, compile_only: bool = False) -> None:
        offsets, by_work = tiles.of(config.rows)
        grid = (offsets.shape[0] * blocks(columns, config.columns), parts)
        _runner(kernels.multiply_tiles, grid, compile_only)(
            features,
            weight,
            target,
            tiles.table,
            tiles.order,
            offsets,
            by_work,
            rows,
            tiles.table.shape[1],
            size,
            summed,
            columns,
            width,
            *weight.stride(),
            FLIP=flip,
            EVEN=width % config.columns == 0,
            PARTS=parts,
            TILE=config.rows,
            BLOCK_C=config.columns,
            BLOCK_R=config.depth,
            PRECISION=precision,
            num_warps=config.warps,
            num_stages=config.stages,
        )

    exact = precision == "ieee" and features.dtype == torch.float32
    key = ("tiles", summed, width, size, rows.bit_length(), str(features.dtype), precision, parts, flip)
    candidates = functools.partial(tile_candidates, rows, summed, width, features.element_size(), exact)
    launch(_table(features.device).choose(key, candidates, launch))
    if parts > 1:
        grid = (blocks(out.numel(), 1024),)
        kernels.add_few[grid](target, out, out.numel(), PARTS=parts, BLOCK=1024)
    return out


def weight_gradient(features: Tensor, gradient: Tensor, pairs: Pairs, precision: str) -> Tensor:
    """Sum features[in]^T gradient[out] over the pairs of each offset.

    Args:
        features: [N_in, C_in].
        gradient: [N_out, C_out] of the features' dtype.
        pairs: of the map.
        precision: of products of float32: `ieee` or `tf32`.

    Returns:
        [K, C_in, C_out] of the features' dtype.
    """
    if _must_widen(features):
        return weight_gradient(features.float(), gradient.float(), pairs, "ieee").to(features.dtype)
    channels, size = (features.shape[1], gradient.shape[1]), pairs.counts.shape[0]
    features, gradient = _aligned(features), _aligned(gradient)
    inputs, outputs = features.shape[1], gradient.shape[1]
    out = features.new_empty(size, inputs, outputs)
    if pairs.in_rows.shape[0] == 0 or out.numel() == 0:
        return out.zero_()[:, : channels[0], : channels[1]]
    # A size of blocks that no timing changes: it decides how pairs are cut.
    pieces = pieces_of(pairs.counts, features.device, blocks(inputs, 128) * blocks(outputs, 128))
    parts = features.new_empty(pieces.limits.shape[0], inputs, outputs, dtype=torch.float32)

    def launch(config: Config, compile_only: bool = False) -> None:
        shared = blocks(inputs, config.rows) * blocks(outputs, config.columns)
        grid = (pieces.limits.shape[0] * shared,)
        _runner(kernels.multiply_pairs, grid, compile_only)(
            features,
            gradient,
            parts,
            pairs.in_rows,
            pairs.out_rows,
            pieces.limits,
            inputs,
            outputs,
            EVEN=inputs % config.rows == 0 and outputs % config.columns == 0,
            BLOCK_IN=config.rows,
            BLOCK_OUT=config.columns,
            BLOCK_P=config.depth,
            PRECISION=precision,
            num_warps=config.warps,
            num_stages=config.stages,
        )

    exact = precision == "ieee" and features.dtype == torch.float32
    key = ("pairs", inputs, outputs, size, pairs.in_rows.shape[0].bit_length(), str(features.dtype), precision)
    candidates = functools.partial(pair_candidates, inputs, outputs, features.element_size(), exact)
    launch(_table(features.device).choose(key, candidates, launch))
    width = inputs * outputs
    kernels.add_parts[(blocks(width, 512), size)](parts, pieces.ends, out, width, BLOCK=512)
    return out[:, : channels[0], : channels[1]]


def _runner(kernel: Any, grid: tuple[int, ...], compile_only: bool) -> Callable[..., object]:
    """Return the function that launches a kernel, or only compiles it."""
    return functools.partial(kernel.warmup, grid=grid) if compile_only else kernel[grid]


def _must_widen(features: Tensor) -> bool:
    """Whether to compute in float32, which gives the same: Triton's interpreter has no products of bfloat16."""
    return features.dtype == torch.bfloat16 and kernels.interpreted()


def _aligned(rows: Tensor) -> Tensor:
    """Return contiguous rows, with channels of zeros up to a multiple of `_ALIGNED`."""
    missing = -rows.shape[1] % _ALIGNED
    return F.pad(rows, (0, missing)) if missing else rows.contiguous()


def _filled(weight: Tensor) -> Tensor:
    """Return a weight with zeros up to multiples of `_ALIGNED` along both axes of channels."""
    rows, columns = (-size % _ALIGNED for size in weight.shape[1:])
    return F.pad(weight, (0, columns, 0, rows)) if rows or columns else weight


def _parts(rows: int, columns: int, size: int, device: torch.device) -> int:
    """Return how many programs share the offsets of one tile: more than one where tiles are too few for the device."""
    programs = blocks(rows, 128) * blocks(columns, 128)
    parts = 1
    while parts < min(_MOST_PARTS, size) and 2 * parts * programs <= 2 * multiprocessors(device):
        parts *= 2
    return parts


@functools.cache
def _table(device: torch.device) -> Table:
    return Table(_CACHE.expanduser(), None if device.type == "cpu" else device)
