"""From matched pixels to matched feature cells: map to the grid, keep one match per cell, gather features."""

from typing import NamedTuple

import torch
from torch import Tensor

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
