"""From matched pixels to matched feature cells: map to the grid, keep one match per cell, gather features."""

import importlib
from typing import NamedTuple

import torch
from torch import Tensor

from prior3d.geometry.triton_support import triton_runs_on
from prior3d.losses.one_per_cell import sample_one_per_cell


class CellMatches(NamedTuple):
    """Sampled matches between the feature grids of G pairs of views; fixed shapes, invalid slots are padding.

    Attributes:
        pixels_a, pixels_b: [G, N, 2] pixel coordinates x, y; centers at +0.5.
        cells_a, cells_b: [G, N] int64 row-major cell of the feature grid that each pixel lies in.
        index: [G, N] int64 match that each slot was taken from.
        valid: [G, N] bool.
    """

    pixels_a: Tensor
    pixels_b: Tensor
    cells_a: Tensor
    cells_b: Tensor
    index: Tensor
    valid: Tensor


@torch.no_grad()
def sample_cell_matches(
    pixels_a: Tensor,  # [G, M, 2]
    pixels_b: Tensor,  # [G, M, 2]
    valid: Tensor,  # [G, M]
    grid: tuple[int, int],
    stride: int,
    count: int,
) -> CellMatches:
    """Sample at most `count` matches per pair of views, no two in one cell of either grid.

    The pixels are mapped to the grid before sampling. Pri3D's code samples first, so several matches share a cell and
    become each other's (false) negatives.

    Args:
        pixels_a: [G, M, 2] matched pixels x, y in the first views; centers at +0.5.
        pixels_b: [G, M, 2] matched pixels in the second views.
        valid: [G, M] bool, slots that hold a match.
        grid: rows and columns of the feature maps.
        stride: image pixels per cell.
        count: maximum number of matches per pair, N.

    >>> pixels = torch.tensor([[[1.5, 0.5], [2.5, 0.5], [9.5, 6.5]]])  # the first two fall into one cell
    >>> matches = sample_cell_matches(pixels, pixels, torch.ones(1, 3, dtype=torch.bool), (2, 3), stride=4, count=3)
    >>> matches.valid, sorted(matches.cells_a[matches.valid].tolist())
    (tensor([[ True,  True, False]]), [0, 5])
    """
    rows, columns = grid
    if valid.numel() and pixels_a.dtype == pixels_b.dtype == torch.float32 and triton_runs_on(valid.device):
        kernels = importlib.import_module("prior3d.losses.matches_triton")
        return CellMatches(*kernels.sample(pixels_a, pixels_b, valid, grid, stride, count))

    def cells(pixels: Tensor) -> Tensor:
        column, row = (pixels / stride).floor().long().unbind(-1)
        return row.clamp(0, rows - 1) * columns + column.clamp(0, columns - 1)

    cells_a, cells_b = cells(pixels_a), cells(pixels_b)
    total = rows * columns
    index, chosen = sample_one_per_cell(cells_a, cells_b, valid, count, num_cells_a=total, num_cells_b=total)

    def take(values: Tensor) -> Tensor:
        if values.ndim == 3:
            return values.gather(1, index[..., None].expand(-1, -1, values.shape[2]))
        return values.gather(1, index)

    return CellMatches(take(pixels_a), take(pixels_b), take(cells_a), take(cells_b), index, chosen)


def gather_cells(features: Tensor, cells: Tensor) -> Tensor:
    """Return the features [G, N, C] of maps [G, C, h, w] at row-major cells [G, N].

    >>> gather_cells(torch.arange(6.0).view(1, 1, 2, 3), torch.tensor([[5, 0]])).tolist()
    [[[5.0], [0.0]]]
    """
    flat = features.flatten(2).transpose(1, 2)
    return flat.gather(1, cells[..., None].expand(-1, -1, flat.shape[2]))


def gather_pairs(dense: Tensor, cells_a: Tensor, cells_b: Tensor) -> tuple[Tensor, Tensor]:
    """Return the features of matched cells of the first view and of every other view, one group per pair of views.

    Args:
        dense: [B, V, C, h, w] feature maps, V > 1.
        cells_a: [(V - 1) * B, N] int64 row-major cells of the first views; the groups of an other view lie together.
        cells_b: [(V - 1) * B, N] cells of the other views.

    Returns:
        Two [(V - 1) * B, N, C], of the first and of the other views.

    >>> dense, cells = torch.arange(12.0).view(1, 2, 1, 2, 3), torch.tensor([[5, 0]])
    >>> queries, keys = gather_pairs(dense, cells, cells)
    >>> queries.flatten().tolist(), keys.flatten().tolist()
    ([5.0, 0.0], [11.0, 6.0])
    """
    batch, views = dense.shape[:2]
    if views < 2 or not cells_a.shape == cells_b.shape == ((views - 1) * batch, cells_a.shape[-1]):
        shapes = [list(tensor.shape) for tensor in (dense, cells_a, cells_b)]
        raise ValueError(f"expected dense [B, V, C, h, w] and cells [(V - 1) * B, N], got {shapes}")
    by_sample = (cells.unflatten(0, (views - 1, batch)).transpose(0, 1) for cells in (cells_a, cells_b))
    gathered = _GatherPairs.apply(dense, *by_sample)
    return tuple(rows.transpose(0, 1).flatten(0, 1) for rows in gathered)


class _GatherPairs(torch.autograd.Function):
    """Gather from [B, V, C, h, w] at cells [B, V - 1, N] of the first and of the other views.

    The gradient is one map that both sides are added to. Indexing view by view would fill a map per view and add them.
    """

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, dense: Tensor, cells_a: Tensor, cells_b: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(cells_a, cells_b)
        # A backbone on a GPU gives maps with the channels last and is fastest if it gets such gradients back.
        ctx.shape, ctx.channels_last = dense.shape, dense.is_cuda and dense.stride(2) == 1
        rows = dense.flatten(3).transpose(2, 3)  # [B, V, h w, C]
        queries = rows[:, :1].gather(2, _rows_of(cells_a.flatten(1)[:, None], rows))
        return queries.view(*cells_a.shape, rows.shape[3]), rows[:, 1:].gather(2, _rows_of(cells_b, rows))

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor) -> tuple[Tensor, None, None]:
        cells_a, cells_b = ctx.saved_tensors
        batch, views, channels, height, width = ctx.shape
        if ctx.channels_last:
            rows = gradients[0].new_zeros(batch, views, height * width, channels)
        else:
            rows = gradients[0].new_zeros(batch, views, channels, height * width).transpose(2, 3)
        of_queries, of_keys = gradients
        rows[:, :1].scatter_add_(2, _rows_of(cells_a.flatten(1)[:, None], rows), of_queries.flatten(1, 2)[:, None])
        rows[:, 1:].scatter_add_(2, _rows_of(cells_b, rows), of_keys)
        return rows.transpose(2, 3).unflatten(3, (height, width)), None, None


def _rows_of(cells: Tensor, rows: Tensor) -> Tensor:
    """Return the index of whole rows [B, V, h w, C] at cells [B, ..., N]."""
    return cells[..., None].expand(*cells.shape, rows.shape[-1])


def kept_fraction(valid: Tensor) -> Tensor:
    """Return the share of slots that hold a match, as a scalar to log.

    >>> kept_fraction(torch.tensor([[True, False]])).item()
    0.5
    """
    return valid.float().mean()


def compact(pixels: Tensor, valid: Tensor) -> Tensor:
    """Return the valid rows [K, 2] of one pair's pixels [N, 2]; synchronizes, so for figures only.

    >>> compact(torch.tensor([[0.5, 0.5], [1.5, 0.5]]), torch.tensor([False, True])).tolist()
    [[1.5, 0.5]]
    """
    return torch.masked_select(pixels, valid[:, None]).view(-1, 2)
