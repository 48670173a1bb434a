"""Triton kernels of sparse convolution: rows in tiles of equal neighborhoods, products over tiles, sums of parts."""

import triton
import triton.language as tl

from prior3d.launching import is_interpreted, relaunched


def interpreted() -> bool:
    """Return whether Triton runs its kernels in Python, on tensors of the CPU, as with TRITON_INTERPRET=1 for tests."""
    return is_interpreted(add_few)


@relaunched
@triton.jit
def row_codes(
    neighbors: tl.tensor,  # [K, N] input row of each output row, -1 for none
    bits: tl.tensor,  # [K] bit of each offset, the rarest offset highest
    near: tl.tensor,  # [N] output rows, near ones together
    codes: tl.tensor,  # [N] int64
    rows: tl.tensor,  # N
    size: tl.tensor,  # K
    HAS_NEAR: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Write for each row the place of its set of occupied offsets in the order of a Gray code.

    Sets that follow each other in a Gray code differ in one offset, so that rows sorted by it share most offsets.
    """
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = place < rows
    row = place
    if HAS_NEAR:
        row = tl.load(near + place, mask=inside, other=0)
    code = tl.zeros((BLOCK,), dtype=tl.int64)
    for k in range(0, size):
        neighbor = tl.load(neighbors + tl.cast(k, tl.int64) * rows + row, mask=inside, other=-1)
        code = code | ((neighbor >= 0).to(tl.int64) << tl.load(bits + k))
    code = code ^ (code >> 1)
    code = code ^ (code >> 2)
    code = code ^ (code >> 4)
    code = code ^ (code >> 8)
    code = code ^ (code >> 16)
    code = code ^ (code >> 32)
    tl.store(codes + place, code, mask=inside)


@relaunched
@triton.jit
def fill_table(
    neighbors: tl.tensor,  # [K, N]
    order: tl.tensor,  # [N] row at each place
    table: tl.tensor,  # [K, padded] neighbors of the row at each place, -1 past the last
    rows: tl.tensor,  # N
    padded: tl.tensor,  # columns of the table, a multiple of BLOCK
    size: tl.tensor,  # K
    BLOCK: tl.constexpr,
) -> None:
    """Bring the neighbors into the order of the tiles."""
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = place < rows
    row = tl.load(order + place, mask=inside, other=0)
    for k in range(0, size):
        wide = tl.cast(k, tl.int64)
        neighbor = tl.load(neighbors + wide * rows + row, mask=inside, other=-1)
        tl.store(table + wide * padded + place, neighbor)


@relaunched
@triton.jit
def list_offsets(
    table: tl.tensor,  # [K, padded]
    offsets: tl.tensor,  # [tiles, 1 + K] number of occupied offsets of each tile, then the offsets
    padded: tl.tensor,
    size: tl.tensor,  # K
    TILE: tl.constexpr,
) -> None:
    """List the offsets that occur in each tile of the table."""
    tile = tl.program_id(0)
    place = tile * TILE + tl.arange(0, TILE)
    listed = offsets + tile * (size + 1)
    count = tile * 0
    for k in range(0, size):
        neighbor = tl.load(table + tl.cast(k, tl.int64) * padded + place)
        occupied = (tl.max(neighbor, axis=0) >= 0).to(tl.int32)
        tl.store(listed + 1 + count, k, mask=occupied > 0)
        count += occupied
    tl.store(listed, count)


@relaunched
@triton.jit(do_not_specialize=["out_rows"])
def multiply_tiles(
    features: tl.tensor,  # [N_in, R], R channels are summed over, a multiple of BLOCK_R
    weight: tl.tensor,  # [K, R, at least C], of any strides
    out: tl.tensor,  # [PARTS, N_out, C]
    table: tl.tensor,  # [K, padded] input row of the output row at each place, -1 for none
    order: tl.tensor,  # [N_out] output row at each place
    offsets: tl.tensor,  # [tiles, 1 + K] number of occupied offsets of each tile, then the offsets
    tiles_by_work: tl.tensor,  # [tiles] tiles with most offsets first
    out_rows: tl.tensor,  # N_out
    padded: tl.tensor,  # columns of the table
    size: tl.tensor,  # K
    summed: tl.tensor,  # R
    columns: tl.tensor,  # C
    width: tl.tensor,  # columns of the weight
    stride_k: tl.tensor,
    stride_r: tl.tensor,
    stride_c: tl.tensor,
    FLIP: tl.constexpr,  # offset K-1-k of the weight meets row k of the table
    EVEN: tl.constexpr,  # the weight's columns are a multiple of BLOCK_C
    PARTS: tl.constexpr,  # programs that share the sum of one tile
    TILE: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_R: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    """Sum features[table[k]] @ weight[k] over the occupied offsets of a tile of output rows; write each row once."""
    blocks_c = tl.cdiv(columns, BLOCK_C)
    tile = tl.load(tiles_by_work + tl.program_id(0) // blocks_c)
    column = (tl.program_id(0) % blocks_c) * BLOCK_C + tl.arange(0, BLOCK_C)
    part = tl.program_id(1)
    place = tile * TILE + tl.arange(0, TILE)
    listed = offsets + tile * (size + 1)
    blocks_r = tl.cdiv(summed, BLOCK_R)
    offsets_here = tl.load(listed)
    # Parts split the offsets, never the channels of one: the sums of a part do not depend on the block sizes.
    first = (offsets_here * part // PARTS) * blocks_r
    last = (offsets_here * (part + 1) // PARTS) * blocks_r
    total = tl.zeros((TILE, BLOCK_C), dtype=tl.float32)
    for step in range(first, last):
        k = tl.load(listed + 1 + step // blocks_r).to(tl.int64)
        channel = (step % blocks_r) * BLOCK_R + tl.arange(0, BLOCK_R)
        row = tl.load(table + k * padded + place)
        if FLIP:
            k = size - 1 - k
        from_row = features + row.to(tl.int64)[:, None] * summed + channel[None, :]
        from_weight = weight + k * stride_k + channel[:, None] * stride_r + column[None, :] * stride_c
        # No mask along the axis that is summed over: masked entries of the weight were not always 0 on a GPU, and
        # garbage times 0 may be NaN. Masked columns are never written.
        a = tl.load(from_row, mask=(row >= 0)[:, None], other=0.0)
        b = tl.load(from_weight) if EVEN else tl.load(from_weight, mask=(column < width)[None, :], other=0.0)
        total = tl.dot(a, b, total, input_precision=PRECISION)
    inside = place < out_rows
    to_row = tl.load(order + place, mask=inside, other=0).to(tl.int64) + part.to(tl.int64) * out_rows
    to = out + to_row[:, None] * columns + column[None, :]
    tl.store(to, total.to(out.dtype.element_ty), mask=inside[:, None] & (column < columns)[None, :])


@relaunched
@triton.jit
def multiply_pairs(
    features: tl.tensor,  # [N_in, C_in]
    gradient: tl.tensor,  # [N_out, C_out]
    parts: tl.tensor,  # [pieces, C_in, C_out] float32
    in_rows: tl.tensor,  # [P] int32
    out_rows: tl.tensor,  # [P] int32
    pieces: tl.tensor,  # [pieces, 3] int32 first pair and one past the last, all of one offset; where the sum goes
    inputs: tl.tensor,  # C_in
    outputs: tl.tensor,  # C_out
    EVEN: tl.constexpr,  # C_in and C_out are multiples of their blocks
    BLOCK_IN: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    BLOCK_P: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    """Sum features[in]^T gradient[out] over one piece of the pairs of one offset.

    Pairs past the last read row 0 of both, and the features' row is masked to 0; channels past the last are never
    written.
    """
    blocks_out = tl.cdiv(outputs, BLOCK_OUT)
    blocks = tl.cdiv(inputs, BLOCK_IN) * blocks_out
    piece = tl.program_id(0) // blocks
    block = tl.program_id(0) % blocks
    row = (block // blocks_out) * BLOCK_IN + tl.arange(0, BLOCK_IN)
    column = (block % blocks_out) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    first = tl.load(pieces + 3 * piece)
    last = tl.load(pieces + 3 * piece + 1)
    part = tl.load(pieces + 3 * piece + 2).to(tl.int64)
    total = tl.zeros((BLOCK_IN, BLOCK_OUT), dtype=tl.float32)
    for start in range(first, last, BLOCK_P):
        pair = start + tl.arange(0, BLOCK_P)
        inside = pair < last
        i = tl.load(in_rows + pair, mask=inside, other=0).to(tl.int64)
        o = tl.load(out_rows + pair, mask=inside, other=0).to(tl.int64)
        from_features = features + i[None, :] * inputs + row[:, None]
        from_gradient = gradient + o[:, None] * outputs + column[None, :]
        if EVEN:
            a = tl.load(from_features, mask=inside[None, :], other=0.0)
            b = tl.load(from_gradient)
        else:
            a = tl.load(from_features, mask=inside[None, :] & (row < inputs)[:, None], other=0.0)
            b = tl.load(from_gradient, mask=(column < outputs)[None, :], other=0.0)
        total = tl.dot(a, b, total, input_precision=PRECISION)
    to = parts + part * inputs * outputs + row.to(tl.int64)[:, None] * outputs + column[None, :]
    tl.store(to, total, mask=(row < inputs)[:, None] & (column < outputs)[None, :])


@relaunched
@triton.jit
def add_parts(
    parts: tl.tensor,  # [number, width] float32
    ends: tl.tensor,  # [groups] int32 one past the last part of each group
    out: tl.tensor,  # [groups, width]
    width: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """Add the parts of each group in their order."""
    group = tl.program_id(1)
    element = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = element < width
    first = tl.load(ends + group - 1, mask=group > 0, other=0)
    last = tl.load(ends + group)
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for part in range(first, last):
        total += tl.load(parts + tl.cast(part, tl.int64) * width + element, mask=inside, other=0.0)
    tl.store(out + group.to(tl.int64) * width + element, total.to(out.dtype.element_ty), mask=inside)


@relaunched
@triton.jit
def add_few(
    parts: tl.tensor,  # [PARTS, width] float32
    out: tl.tensor,  # [width]
    width: tl.tensor,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Add a few parts in their order."""
    element = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = element < width
    total = tl.load(parts + element, mask=inside, other=0.0)
    for part in tl.static_range(1, PARTS):
        total += tl.load(parts + tl.cast(width, tl.int64) * part + element, mask=inside, other=0.0)
    tl.store(out + element, total.to(out.dtype.element_ty), mask=inside)
