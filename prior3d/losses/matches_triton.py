"""From matched pixels to matched feature cells on CUDA: two Triton kernels around the sampling."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from prior3d.launching import relaunched
from prior3d.losses.one_per_cell_triton import LAST, picked_priorities

BLOCK = 512


def sample(
    pixels_a: Tensor, pixels_b: Tensor, valid: Tensor, grid: tuple[int, int], stride: int, count: int
) -> tuple[Tensor, ...]:
    """Return the fields of `CellMatches`: see `sample_cell_matches`.

    Args:
        pixels_a: [G, M, 2] float32 pixels x, y on CUDA, any strides, M > 0.
        pixels_b: [G, M, 2] likewise.
        valid: [G, M] bool.
        grid: rows and columns of the feature maps.
        stride: image pixels per cell.
        count: maximum number of matches per pair, N.
    """
    rows, columns = grid
    groups, slots = valid.shape
    pixels = (pixels_a, *pixels_a.stride(), pixels_b, *pixels_b.stride())
    cells = torch.empty(2, groups, slots, dtype=torch.int32, device=valid.device)
    with torch.cuda.device_of(valid):
        find_cells[triton.cdiv(slots, BLOCK), groups](
            *pixels, cells, slots, groups * slots, rows, columns, float(stride), BLOCK=BLOCK
        )
        priorities = picked_priorities(*cells, valid, count, rows * columns, rows * columns, None)
        chosen = priorities.shape[1]
        new = valid.new_empty
        taken_pixels = new((2, groups, count, 2), dtype=pixels_a.dtype)
        taken_cells, index = new((2, groups, count), dtype=torch.int64), new((groups, count), dtype=torch.int64)
        picked = new((groups, count))
        if count:
            take_matches[triton.cdiv(count, BLOCK), groups](
                *pixels,
                cells,
                priorities,
                taken_pixels,
                taken_cells,
                index,
                picked.view(torch.uint8),
                slots,
                groups * slots,
                count,
                groups * count,
                chosen,
                LAST=LAST,
                BLOCK=BLOCK,
            )
    return (*taken_pixels, *taken_cells, index, picked)


@relaunched
@triton.jit
def find_cells(
    pixels_a: tl.tensor,
    group_stride_a: tl.tensor,
    slot_stride_a: tl.tensor,
    axis_stride_a: tl.tensor,
    pixels_b: tl.tensor,
    group_stride_b: tl.tensor,
    slot_stride_b: tl.tensor,
    axis_stride_b: tl.tensor,
    cells: tl.tensor,
    slots: tl.tensor,
    side: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    stride: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """Write the row-major cells of the pixels of both views; `side` is the number of cells written per view."""
    group = tl.program_id(1).to(tl.int64)
    slot = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    stored = slot < slots
    own = tl.minimum(slot, slots - 1).to(tl.int64)
    at = cells + group * slots + slot
    pixel = pixels_a + group * group_stride_a + own * slot_stride_a
    tl.store(at, _cell(pixel, axis_stride_a, rows, columns, stride), mask=stored)
    pixel = pixels_b + group * group_stride_b + own * slot_stride_b
    tl.store(at + side, _cell(pixel, axis_stride_b, rows, columns, stride), mask=stored)


@triton.jit
def _cell(
    pixel: tl.tensor, axis_stride: tl.tensor, rows: tl.tensor, columns: tl.tensor, stride: tl.tensor
) -> tl.tensor:
    column = _along(tl.load(pixel), stride, columns)
    return _along(tl.load(pixel + axis_stride), stride, rows) * columns + column


@triton.jit
def _along(pixel: tl.tensor, stride: tl.tensor, cells: tl.tensor) -> tl.tensor:
    """Return the row or column of cells; it is limited before it becomes an integer, so huge pixels cannot overflow."""
    cell = tl.floor(tl.div_rn(pixel, stride))
    return tl.where(cell > 0, tl.minimum(cell, cells - 1.0), 0.0).to(tl.int32)


@relaunched
@triton.jit
def take_matches(
    pixels_a: tl.tensor,
    group_stride_a: tl.tensor,
    slot_stride_a: tl.tensor,
    axis_stride_a: tl.tensor,
    pixels_b: tl.tensor,
    group_stride_b: tl.tensor,
    slot_stride_b: tl.tensor,
    axis_stride_b: tl.tensor,
    cells: tl.tensor,
    priorities: tl.tensor,
    taken_pixels: tl.tensor,
    taken_cells: tl.tensor,
    index: tl.tensor,
    picked: tl.tensor,
    slots: tl.tensor,
    side: tl.tensor,
    count: tl.tensor,
    taken_side: tl.tensor,
    chosen: tl.tensor,
    LAST: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Write the picked matches; where there are fewer than `count`, match 0 fills the rest."""
    group = tl.program_id(1).to(tl.int64)
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    stored = place < count
    priority = tl.load(priorities + group * chosen + tl.minimum(place, chosen - 1))
    some = (priority != LAST) & (place < chosen)
    match = tl.where(some, priority % slots, 0)
    at = group * count + place
    tl.store(index + at, match, mask=stored)
    tl.store(picked + at, some.to(tl.uint8), mask=stored)
    tl.store(taken_cells + at, tl.load(cells + group * slots + match).to(tl.int64), mask=stored)
    tl.store(taken_cells + taken_side + at, tl.load(cells + side + group * slots + match).to(tl.int64), mask=stored)
    pixel = pixels_a + group * group_stride_a + match * slot_stride_a
    tl.store(taken_pixels + 2 * at, tl.load(pixel), mask=stored)
    tl.store(taken_pixels + 2 * at + 1, tl.load(pixel + axis_stride_a), mask=stored)
    pixel = pixels_b + group * group_stride_b + match * slot_stride_b
    at += taken_side
    tl.store(taken_pixels + 2 * at, tl.load(pixel), mask=stored)
    tl.store(taken_pixels + 2 * at + 1, tl.load(pixel + axis_stride_b), mask=stored)
