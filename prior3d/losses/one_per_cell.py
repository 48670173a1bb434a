"""Random matches of which no two share a feature cell, so that no true match counts as a negative."""

import importlib

import torch
from torch import Tensor
from torch.nn import functional as F

from prior3d.geometry.triton_support import triton_runs_on


@torch.no_grad()
def sample_one_per_cell(
    cells_a: Tensor,
    cells_b: Tensor,
    valid: Tensor,
    count: int,
    *,
    num_cells_a: int,
    num_cells_b: int,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Pick random matches, no feature cell of either view twice; fixed shapes, no wait for the device.

    Two matches that share a cell would be each other's negative although they have the same feature. In each of three
    rounds, a match is taken if it is the first, in random order, of its cell in a and then of its cell in b. Few cells
    then remain that another match could still have used.

    Args:
        cells_a: [B, N] int64 cell of each match in view a.
        cells_b: [B, N] int64 cell of each match in view b.
        valid: [B, N] bool, slots that hold a match.
        count: maximum number of matches per batch entry.
        num_cells_a: cells of a feature map of view a (h * w).
        num_cells_b: cells of a feature map of view b.
        generator: generator on the tensors' device; the global one if None.

    Returns:
        [B, count] int64 index into the N matches and [B, count] bool valid; valid ones first, in random order.

    Reference:
        Hou et al., Pri3D, 2021, arXiv 2104.11225. Its code samples pixels first and maps them to cells after, so
        samples of one cell become false negatives; here no cell occurs twice.

    >>> cells_a, cells_b = torch.tensor([[0, 0, 1]]), torch.tensor([[0, 1, 2]])  # the first two share a cell of a
    >>> valid = torch.ones(1, 3, dtype=torch.bool)
    >>> _, picked = sample_one_per_cell(cells_a, cells_b, valid, 3, num_cells_a=2, num_cells_b=3)
    >>> picked
    tensor([[ True,  True, False]])
    """
    if cells_a.dim() != 2 or not cells_a.shape == cells_b.shape == valid.shape:
        shapes = [list(tensor.shape) for tensor in (cells_a, cells_b, valid)]
        raise ValueError(f"expected cells_a, cells_b and valid of one shape [B, N], got {shapes}")
    if count < 0:
        raise ValueError(f"expected count >= 0, got {count}")
    slots = cells_a.shape[1]
    if triton_runs_on(valid.device) and 0 not in (valid.numel(), num_cells_a, num_cells_b):
        kernels = importlib.import_module("prior3d.losses.one_per_cell_triton")
        order = kernels.picked_priorities(cells_a, cells_b, valid, count, num_cells_a, num_cells_b, generator)
        index, picked = order % slots, order < kernels.LAST
        padding = (0, count - order.shape[1])
        return (F.pad(index, padding), F.pad(picked, padding)) if padding[1] else (index, picked)
    taken_last = torch.iinfo(torch.int64).max
    # The slot number makes every priority unique: equal priorities would let two matches into one cell.
    high = 2**62 // max(slots, 1)
    priority = torch.randint(high, cells_a.shape, device=cells_a.device, generator=generator) * slots
    priority = priority + torch.arange(slots, device=cells_a.device)
    cells = [(torch.where(valid, cells_a, 0), num_cells_a), (torch.where(valid, cells_b, 0), num_cells_b)]

    picked = torch.zeros_like(valid)
    free = valid
    for _ in range(3):
        first = free
        for cell, num_cells in cells:
            candidate = torch.where(first, priority, taken_last)
            best = candidate.new_full((len(cell), num_cells), taken_last).scatter_reduce(1, cell, candidate, "amin")
            first = first & (best.gather(1, cell) == priority)
        picked = picked | first
        for cell, num_cells in cells:
            used = torch.zeros(len(cell), num_cells, dtype=torch.int64, device=cell.device)
            free = free & (used.scatter_reduce(1, cell, first.long(), "amax").gather(1, cell) == 0)
    order, index = torch.where(picked, priority, taken_last).topk(min(count, slots), dim=1, largest=False)
    padding = (0, count - min(count, slots))
    return tuple(F.pad(tensor, padding) for tensor in (index, order < taken_last))
