"""Sampling of at most one match per cell on CUDA, in three Triton kernels per round.

The smallest priority of a cell is found with atomic minima, which give the same in any order.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 256
LAST = torch.iinfo(torch.int64).max
"""Priority of what is not taken."""


def picked_priorities(
    cells_a: Tensor,  # [B, N] int64
    cells_b: Tensor,  # [B, N] int64
    valid: Tensor,  # [B, N] bool
    priority: Tensor,  # [B, N] int64, all different within a row
    num_cells_a: int,
    num_cells_b: int,
    rounds: int,
) -> Tensor:
    """Return the priorities [B, N] of the matches that are picked, and `LAST` for all others."""
    batch, slots = valid.shape
    cells_a, cells_b, valid = cells_a.contiguous(), cells_b.contiguous(), valid.contiguous()
    cells = num_cells_a + num_cells_b
    least = torch.full((rounds, batch, cells), LAST, dtype=torch.int64, device=valid.device)
    used = torch.zeros(batch, cells, dtype=torch.int32, device=valid.device)
    picked = torch.full_like(priority, LAST)
    grid = triton.cdiv(slots, _BLOCK), batch
    for number in range(rounds):
        given = cells_a, cells_b, valid, priority, least[number], used, picked, slots, num_cells_a, cells
        for kernel in (_first_in_a, _first_in_b, _pick):
            kernel[grid](*given, BLOCK=_BLOCK)
    return picked


@triton.jit
def _load(
    cells_a: tl.tensor,
    cells_b: tl.tensor,
    valid: tl.tensor,
    priority: tl.tensor,
    used: tl.tensor,
    slots: tl.tensor,
    cells_of_a: tl.tensor,
    cells: tl.tensor,
    BLOCK: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """Return place, cells in both views, priority, and whether both cells are free, of a block of matches."""
    pair = tl.program_id(1).to(tl.int64)
    slot = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    at = pair * slots + slot
    free = (slot < slots) & (tl.load(valid + at, mask=slot < slots, other=0) != 0)
    a = pair * cells + tl.load(cells_a + at, mask=free, other=0)
    b = pair * cells + cells_of_a + tl.load(cells_b + at, mask=free, other=0)
    free = free & (tl.load(used + a, mask=free, other=1) == 0) & (tl.load(used + b, mask=free, other=1) == 0)
    return at, a, b, tl.load(priority + at, mask=free, other=0), free


@triton.jit
def _first_in_a(
    cells_a: tl.tensor,  # [B, N]
    cells_b: tl.tensor,  # [B, N]
    valid: tl.tensor,  # [B, N]
    priority: tl.tensor,  # [B, N]
    least: tl.tensor,  # [B, cells] smallest priority of each cell of a, then of b
    used: tl.tensor,  # [B, cells] whether a picked match has this cell
    picked: tl.tensor,  # [B, N]
    slots: tl.tensor,  # N
    cells_of_a: tl.tensor,
    cells: tl.tensor,  # of both views
    BLOCK: tl.constexpr,
) -> None:
    """Find the first free match of each cell of a."""
    _, a, _, mine, free = _load(cells_a, cells_b, valid, priority, used, slots, cells_of_a, cells, BLOCK)
    tl.atomic_min(least + a, mine, mask=free, sem="relaxed")


@triton.jit
def _first_in_b(
    cells_a: tl.tensor,
    cells_b: tl.tensor,
    valid: tl.tensor,
    priority: tl.tensor,
    least: tl.tensor,
    used: tl.tensor,
    picked: tl.tensor,
    slots: tl.tensor,
    cells_of_a: tl.tensor,
    cells: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """Find, of these, the first of each cell of b."""
    _, a, b, mine, free = _load(cells_a, cells_b, valid, priority, used, slots, cells_of_a, cells, BLOCK)
    first = free & (tl.load(least + a, mask=free, other=-1) == mine)
    tl.atomic_min(least + b, mine, mask=first, sem="relaxed")


@triton.jit
def _pick(
    cells_a: tl.tensor,
    cells_b: tl.tensor,
    valid: tl.tensor,
    priority: tl.tensor,
    least: tl.tensor,
    used: tl.tensor,
    picked: tl.tensor,
    slots: tl.tensor,
    cells_of_a: tl.tensor,
    cells: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """Pick these; their cells are used from the next round on.

    A cell has one match that is first in it, so no program reads what another one writes here for its own match.
    """
    at, a, b, mine, free = _load(cells_a, cells_b, valid, priority, used, slots, cells_of_a, cells, BLOCK)
    first = free & (tl.load(least + a, mask=free, other=-1) == mine) & (tl.load(least + b, mask=free, other=-1) == mine)
    tl.store(picked + at, mine, mask=first)
    tl.store(used + a, 1, mask=first)
    tl.store(used + b, 1, mask=first)
