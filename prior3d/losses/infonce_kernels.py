"""Triton kernels of PointInfoNCE; `infonce_triton` launches them and says what they are for."""

import triton
import triton.language as tl


@triton.jit
def normalize_pairs(
    queries: tl.tensor,
    keys: tl.tensor,
    query_group: tl.tensor,
    query_row: tl.tensor,
    query_channel: tl.tensor,
    key_group: tl.tensor,
    key_row: tl.tensor,
    key_channel: tl.tensor,
    valid: tl.tensor,
    query_units: tl.tensor,
    key_units: tl.tensor,
    query_inverse: tl.tensor,
    key_inverse: tl.tensor,
    positive: tl.tensor,
    counts: tl.tensor,
    length: tl.tensor,
    size: tl.tensor,
    inverse_temperature: tl.tensor,
    min_squared: tl.tensor,
    WIDTH: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
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
def _unit(rows: tl.tensor, min_squared: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    squared = tl.sum(rows * rows, 1)
    inverse = 1.0 / tl.sqrt(tl.where(squared > min_squared, squared, 1.0))
    return rows * inverse[:, None], inverse


@triton.jit
def sum_negatives(
    queries: tl.tensor,
    keys: tl.tensor,
    counts: tl.tensor,
    points: tl.tensor,
    scene: tl.tensor,
    of_rows: tl.tensor,
    of_columns: tl.tensor,
    size: tl.tensor,
    scale: tl.tensor,
    radius_squared: tl.tensor,
    CHANNELS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    SYMMETRIC: tl.constexpr,
    BOUNDED: tl.constexpr,
    NEAR: tl.constexpr,
    SCENES: tl.constexpr,
) -> None:
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
    channel = tl.arange(0, CHANNELS)
    for block in range(part, size // ROWS, parts):
        rows = block * ROWS + tl.arange(0, ROWS)
        query = tl.load(queries + rows[:, None] * CHANNELS + channel[None, :])
        row_counts = tl.load(counts + rows)
        total = tl.full([ROWS], 0.0 if BOUNDED else float("-inf"), tl.float32)
        for start in range(0, size, COLUMNS):
            columns = start + tl.arange(0, COLUMNS)
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
def gradient_of_rows(
    own: tl.tensor,
    other: tl.tensor,
    counts: tl.tensor,
    points: tl.tensor,
    scene: tl.tensor,
    own_factor: tl.tensor,
    other_factor: tl.tensor,
    own_log: tl.tensor,
    other_log: tl.tensor,
    of_positive: tl.tensor,
    given: tl.tensor,
    given_group: tl.tensor,
    given_row: tl.tensor,
    given_channel: tl.tensor,
    inverse: tl.tensor,
    found: tl.tensor,
    length: tl.tensor,
    size: tl.tensor,
    inverse_temperature: tl.tensor,
    scale: tl.tensor,
    radius_squared: tl.tensor,
    WIDTH: tl.constexpr,
    CHANNELS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BOUNDED: tl.constexpr,
    NEAR: tl.constexpr,
    SCENES: tl.constexpr,
) -> None:
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
    channel = tl.arange(0, CHANNELS)
    rows = block * ROWS + tl.arange(0, ROWS)
    row = tl.load(own + rows[:, None] * CHANNELS + channel[None, :])
    row_factor, row_log, row_counts = tl.load(own_factor + rows), tl.load(own_log + rows), tl.load(counts + rows)
    positive = tl.load(of_positive + group * size + rows)
    total = tl.zeros([ROWS, CHANNELS], tl.float32)
    for start in range(0, size, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
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
    row: tl.tensor,
    column: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    points: tl.tensor,
    scene: tl.tensor,
    size: tl.tensor,
    scale: tl.tensor,
    radius_squared: tl.tensor,
    NEAR: tl.constexpr,
    SCENES: tl.constexpr,
) -> tl.tensor:
    """Return logits to base 2 of a tile, -inf where two points of a scene are near each other."""
    logits = _multiply(row, tl.trans(column), None) * scale
    if NEAR:
        squared = tl.zeros(logits.shape, tl.float32)
        for axis in tl.static_range(3):
            difference = (
                tl.load(points + axis * size + rows)[:, None] - tl.load(points + axis * size + columns)[None, :]
            )
            squared += difference * difference
        near = squared < radius_squared
        if SCENES:
            near &= tl.load(scene + rows)[:, None] == tl.load(scene + columns)[None, :]
        logits = tl.where(near, float("-inf"), logits)
    return logits


@triton.jit
def _multiply(one: tl.tensor, other: tl.tensor, total: tl.tensor) -> tl.tensor:
    if one.dtype == tl.float32:
        return tl.dot(one, other, total, input_precision="tf32x3")
    return tl.dot(one, other, total)


@triton.jit
def _log_sum(logits: tl.tensor, axis: tl.constexpr) -> tl.tensor:
    """Return the logarithms to base 2 of sums of powers of 2; -inf where there is nothing."""
    largest = tl.max(logits, axis)
    shift = tl.where(largest == float("-inf"), 0.0, largest)
    return shift + tl.log2(tl.sum(tl.exp2(logits - tl.expand_dims(shift, axis)), axis))


@triton.jit
def _add_exponents(one: tl.tensor, other: tl.tensor) -> tl.tensor:
    largest = tl.maximum(one, other)
    shift = tl.where(largest == float("-inf"), 0.0, largest)
    return shift + tl.log2(tl.exp2(one - shift) + tl.exp2(other - shift))
