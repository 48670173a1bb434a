"""Sampling of one match per cell on CUDA: two Triton kernels per round, which take minima with atomics.

Minima do not depend on the order of the atomics, so results repeat bit by bit, and they equal those of plain torch for
the same draws. Little is stored: the match that comes first in each cell of a, per round, and the picked match of each
cell of b. The rest follows from them. A cell of b is used if it has a picked match. A cell of a is used if its first
match was picked.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from prior3d.launching import relaunched

ROUNDS = 3

LAST = torch.iinfo(torch.int64).max
"""Priority of nothing."""

BLOCK = 512


def picked_priorities(
    cells_a: Tensor,
    cells_b: Tensor,
    valid: Tensor,
    count: int,
    num_cells_a: int,
    num_cells_b: int,
    generator: torch.Generator | None,
) -> Tensor:
    """Return the priorities of the picked matches, lowest first: see `sample_one_per_cell`.

    Args:
        cells_a: [B, N] integer cell of each match in view a, any strides, N > 0.
        cells_b: [B, N] likewise in view b.
        valid: [B, N] bool.
        count: maximum number of matches per batch entry.
        num_cells_a: cells of a feature map of view a, > 0.
        num_cells_b: cells of a feature map of view b, > 0.
        generator: generator on the tensors' device; the global one if None.

    Returns:
        [B, min(count, num_cells_b)] int64; the number of the match is the remainder by N, `LAST` is none.
    """
    batch, slots = valid.shape
    draws = torch.randint(2**62 // slots, valid.shape, device=valid.device, generator=generator)
    memory = torch.full((batch * (ROUNDS * num_cells_a + num_cells_b),), LAST, device=valid.device)
    first_in_a, picked_in_b = memory.split([batch * ROUNDS * num_cells_a, batch * num_cells_b])
    matches = (cells_a, *cells_a.stride(), cells_b, *cells_b.stride())
    sizes = (slots, num_cells_a, num_cells_b)
    with torch.cuda.device_of(valid):
        for done in range(ROUNDS):
            find_first_in_a[triton.cdiv(slots, BLOCK), batch](
                *matches,
                valid.view(torch.uint8),
                *valid.stride(),
                draws,
                first_in_a,
                picked_in_b,
                *sizes,
                DONE=done,
                ROUNDS=ROUNDS,
                LAST=LAST,
                BLOCK=BLOCK,
            )
            pick_first_in_b[triton.cdiv(num_cells_a, BLOCK), batch](
                *matches[3:],
                first_in_a,
                picked_in_b,
                *sizes,
                DONE=done,
                ROUNDS=ROUNDS,
                LAST=LAST,
                BLOCK=BLOCK,
            )
    return picked_in_b.view(batch, num_cells_b).topk(min(count, num_cells_b), dim=1, largest=False).values


@relaunched
@triton.jit
def find_first_in_a(
    cells_a: tl.tensor,
    batch_stride_a: tl.tensor,
    stride_a: tl.tensor,
    cells_b: tl.tensor,
    batch_stride_b: tl.tensor,
    stride_b: tl.tensor,
    valid: tl.tensor,
    batch_stride_valid: tl.tensor,
    stride_valid: tl.tensor,
    draws: tl.tensor,
    first_in_a: tl.tensor,
    picked_in_b: tl.tensor,
    slots: tl.tensor,
    num_cells_a: tl.tensor,
    num_cells_b: tl.tensor,
    DONE: tl.constexpr,
    ROUNDS: tl.constexpr,
    LAST: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Find the first match of each cell of a among those of which neither cell is used; `DONE` rounds are over."""
    entry = tl.program_id(1).to(tl.int64)
    cells_a += entry * batch_stride_a
    cells_b += entry * batch_stride_b
    first_in_a += entry * ROUNDS * num_cells_a
    picked_in_b += entry * num_cells_b
    slot = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    own = tl.minimum(slot, slots - 1).to(tl.int64)
    free = (tl.load(valid + entry * batch_stride_valid + own * stride_valid) != 0) & (slot < slots)
    # Slots that are not free may hold anything: they look at cell 0 instead.
    in_a = tl.where(free, tl.load(cells_a + own * stride_a), 0).to(tl.int64)
    if DONE > 0:
        in_b = tl.where(free, tl.load(cells_b + own * stride_b), 0).to(tl.int64)
        free &= tl.load(picked_in_b + in_b) == LAST
    for earlier in tl.static_range(DONE):
        before = tl.load(first_in_a + earlier * num_cells_a + in_a)
        free &= _is_not_picked(before, cells_b, stride_b, picked_in_b, slots, LAST)
    # The slot number makes every priority unique: equal priorities would let two matches into one cell.
    priority = tl.load(draws + entry * slots + own) * slots + own
    tl.atomic_min(first_in_a + DONE * num_cells_a + in_a, priority, mask=free, sem="relaxed")


@triton.jit
def _is_not_picked(
    priority: tl.tensor,
    cells_b: tl.tensor,
    stride_b: tl.tensor,
    picked_in_b: tl.tensor,
    slots: tl.tensor,
    LAST: tl.constexpr,
) -> tl.tensor:
    """Return whether matches of given priorities, the first of their cells of a, are not picked; true for `LAST`."""
    some = priority != LAST
    match = tl.where(some, priority % slots, 0)
    in_b = tl.where(some, tl.load(cells_b + match * stride_b), 0).to(tl.int64)
    return (tl.load(picked_in_b + in_b) != priority) | (priority == LAST)


@relaunched
@triton.jit
def pick_first_in_b(
    cells_b: tl.tensor,
    batch_stride_b: tl.tensor,
    stride_b: tl.tensor,
    first_in_a: tl.tensor,
    picked_in_b: tl.tensor,
    slots: tl.tensor,
    num_cells_a: tl.tensor,
    num_cells_b: tl.tensor,
    DONE: tl.constexpr,
    ROUNDS: tl.constexpr,
    LAST: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Pick, for each cell of b, the first of the matches that are the first of their cells of a in this round."""
    entry = tl.program_id(1).to(tl.int64)
    cells_b += entry * batch_stride_b
    cell = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    own = tl.minimum(cell, num_cells_a - 1)
    priority = tl.load(first_in_a + (entry * ROUNDS + DONE) * num_cells_a + own)
    some = (priority != LAST) & (cell < num_cells_a)
    match = tl.where(some, priority % slots, 0)
    in_b = tl.where(some, tl.load(cells_b + match * stride_b), 0).to(tl.int64)
    tl.atomic_min(picked_in_b + entry * num_cells_b + in_b, priority, mask=some, sem="relaxed")
