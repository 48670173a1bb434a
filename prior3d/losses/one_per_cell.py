"""Random matches of which no two share a feature cell, so that no true match counts as a negative."""

import functools
import importlib
import importlib.util
from types import ModuleType

import torch
from torch import Tensor

_ROUNDS = 3
_LAST = torch.iinfo(torch.int64).max
"""Priority of a match that is not taken."""


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
    # The slot number makes every priority unique: equal priorities would let two matches into one cell.
    high = 2**62 // max(slots, 1)
    priority = torch.randint(high, cells_a.shape, device=cells_a.device, generator=generator) * slots
    priority = priority + torch.arange(slots, device=cells_a.device)
    if kernels := _kernels_for(valid):
        found = kernels.picked_priorities(cells_a, cells_b, valid, priority, num_cells_a, num_cells_b, _ROUNDS)
    else:
        found = _picked_priorities(cells_a, cells_b, valid, priority, num_cells_a, num_cells_b)
    order, index = found.topk(min(count, slots), dim=1, largest=False)
    padding = (0, count - min(count, slots))
    if not padding[1]:
        return index, order < _LAST
    return tuple(torch.nn.functional.pad(tensor, padding) for tensor in (index, order < _LAST))


def _picked_priorities(
    cells_a: Tensor, cells_b: Tensor, valid: Tensor, priority: Tensor, num_cells_a: int, num_cells_b: int
) -> Tensor:
    """Return the priorities [B, N] of the matches that are picked, and `_LAST` for all others."""
    cells = [(torch.where(valid, cells_a, 0), num_cells_a), (torch.where(valid, cells_b, 0), num_cells_b)]
    picked = torch.zeros_like(valid)
    free = valid
    for _ in range(_ROUNDS):
        first = free
        for cell, num_cells in cells:
            candidate = torch.where(first, priority, _LAST)
            best = candidate.new_full((len(cell), num_cells), _LAST).scatter_reduce(1, cell, candidate, "amin")
            first = first & (best.gather(1, cell) == priority)
        picked = picked | first
        for cell, num_cells in cells:
            used = torch.zeros(len(cell), num_cells, dtype=torch.int64, device=cell.device)
            free = free & (used.scatter_reduce(1, cell, first.long(), "amax").gather(1, cell) == 0)
    return torch.where(picked, priority, _LAST)


def _kernels_for(valid: Tensor) -> ModuleType | None:
    """Return the module of Triton kernels if it serves these tensors."""
    return _triton() if valid.device.type == "cuda" and not torch.version.hip and valid.numel() else None


@functools.cache
def _triton() -> ModuleType | None:
    if importlib.util.find_spec("triton") is None:
        return None
    return importlib.import_module("prior3d.losses.one_per_cell_triton")
