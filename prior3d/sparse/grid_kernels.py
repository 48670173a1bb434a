"""Triton kernels that make voxel grids and their kernel maps; `grids` launches them and says what they are for.

A key of a cell is its batch item, then the bits of x, y and z interleaved, x lowest: a Z-order curve. Cells are shifted
to be positive. Keys that are sorted stay sorted when three bits are dropped, which gives the cell twice as large.
"""

import triton
import triton.language as tl

from prior3d.launching import is_interpreted, relaunched


def interpreted() -> bool:
    """Return whether Triton runs its kernels in Python, on tensors of the CPU, as with TRITON_INTERPRET=1 for tests."""
    return is_interpreted(cell_keys)


@triton.jit
def _spread(value: tl.tensor) -> tl.tensor:
    """Move bit i of an int64 below 2^21 to bit 3 i."""
    value = (value | (value << 32)) & 0x1F00000000FFFF
    value = (value | (value << 16)) & 0x1F0000FF0000FF
    value = (value | (value << 8)) & 0x100F00F00F00F00F
    value = (value | (value << 4)) & 0x10C30C30C30C30C3
    return (value | (value << 2)) & 0x1249249249249249


@triton.jit
def _gathered(value: tl.tensor) -> tl.tensor:
    """Move bit 3 i to bit i."""
    value = value & 0x1249249249249249
    value = (value | (value >> 2)) & 0x10C30C30C30C30C3
    value = (value | (value >> 4)) & 0x100F00F00F00F00F
    value = (value | (value >> 8)) & 0x1F0000FF0000FF
    value = (value | (value >> 16)) & 0x1F00000000FFFF
    return (value | (value >> 32)) & 0x1FFFFF


@triton.jit
def _key(item: tl.tensor, x: tl.tensor, y: tl.tensor, z: tl.tensor, bits: tl.tensor) -> tl.tensor:
    return (item << (3 * bits)) | _spread(x) | (_spread(y) << 1) | (_spread(z) << 2)


@triton.jit
def _find(keys: tl.tensor, count: tl.tensor, wanted: tl.tensor, steps: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """Return the place of the first key not below the wanted one, and whether it is the wanted one; count > 0."""
    low = (wanted * 0).to(tl.int32)
    high = low + count
    for _ in range(0, steps):
        active = low < high
        middle = (low + high) >> 1
        # Clamped instead of masked: a place past the last key is never read.
        below = tl.load(keys + tl.minimum(middle, count - 1)) < wanted
        low = tl.where(active & below, middle + 1, low)
        high = tl.where(active & (below == 0), middle, high)
    found = (low < count) & (tl.load(keys + tl.minimum(low, count - 1)) == wanted)
    return low, found


@relaunched
@triton.jit(do_not_specialize=["count", "half", "margin"])
def cell_keys(
    cells: tl.tensor,  # [N, 3] int32
    items: tl.tensor,  # [N] int32, negative for a point to drop
    keys: tl.tensor,  # [N] int64
    misfits: tl.tensor,  # [1] int32 number of points outside the box, added to
    count: tl.tensor,  # N
    half: tl.tensor,  # added to cells
    margin: tl.tensor,  # cells that stay free at each side of the box
    BITS: tl.constexpr,  # of each axis
    BLOCK: tl.constexpr,
) -> None:
    """Write the key of each point's cell; dropped points get the largest number, which sorts last."""
    point = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = point < count
    at = tl.minimum(point, count - 1).to(tl.int64)
    item = tl.load(items + at).to(tl.int64)
    x = tl.load(cells + 3 * at).to(tl.int64) + half
    y = tl.load(cells + 3 * at + 1).to(tl.int64) + half
    z = tl.load(cells + 3 * at + 2).to(tl.int64) + half
    least = tl.minimum(tl.minimum(x, y), z)
    most = tl.maximum(tl.maximum(x, y), z)
    fits = (least >= margin) & (most < 2 * half - margin)
    wanted = inside & (item >= 0)
    outside = tl.sum((wanted & (fits == 0)).to(tl.int32), axis=0)
    tl.atomic_add(misfits, outside, mask=outside > 0)
    wanted = wanted & fits
    zero = x * 0
    key = _key(
        tl.where(wanted, item, zero),
        tl.where(wanted, x, zero),
        tl.where(wanted, y, zero),
        tl.where(wanted, z, zero),
        BITS,
    )
    tl.store(keys + point, tl.where(wanted, key, 0x7FFFFFFFFFFFFFFF), mask=inside)


@triton.jit
def _distance(key: tl.tensor, x: tl.tensor, y: tl.tensor, z: tl.tensor, half: tl.tensor) -> tl.tensor:
    """Return the squared distance of a cell's middle from a position, as bits, which order as the numbers do."""
    x = (_gathered(key) - half).to(tl.float32) + 0.5 - x
    y = (_gathered(key >> 1) - half).to(tl.float32) + 0.5 - y
    z = (_gathered(key >> 2) - half).to(tl.float32) + 0.5 - z
    return (x * x + y * y + z * z).to(tl.int32, bitcast=True)


@triton.jit
def _count_near(
    keys: tl.tensor,
    first: tl.tensor,
    last: tl.tensor,
    x: tl.tensor,
    y: tl.tensor,
    z: tl.tensor,
    half: tl.tensor,
    bits: tl.tensor,
    place: tl.tensor,
    BITS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> tl.tensor:
    """Count the distinct keys of places first..last that are nearer than `bits`, or as near and not after `place`."""
    total = first * 0
    for start in range(first, last, BLOCK):
        at = start + tl.arange(0, BLOCK)
        inside = at < last
        at = tl.minimum(at, last - 1)
        key = tl.load(keys + at)
        fresh = (at == 0) | (tl.load(keys + tl.maximum(at - 1, 0)) != key)
        distance = _distance(key & ((1 << (3 * BITS)) - 1), x, y, z, half)
        near = (distance < bits) | ((distance == bits) & (at <= place))
        total += tl.sum((inside & fresh & near).to(tl.int32), axis=0)
    return total


@relaunched
@triton.jit(do_not_specialize=["count", "most", "half", "steps"])
def limit_items(
    keys: tl.tensor,  # [N] int64 sorted
    centers: tl.tensor,  # [B, 3] float32, in cells
    limits: tl.tensor,  # [B, 2] int32 bits of a squared distance, and a place
    count: tl.tensor,  # N
    most: tl.tensor,
    half: tl.tensor,
    steps: tl.tensor,
    BITS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Find the distance up to which an item keeps `most` cells, and the last place of those at just that distance."""
    item = tl.program_id(0)
    wide = item.to(tl.int64)
    first, _ = _find(keys, count, wide << (3 * BITS), steps)
    last, _ = _find(keys, count, (wide + 1) << (3 * BITS), steps)
    x = tl.load(centers + 3 * item)
    y = tl.load(centers + 3 * item + 1)
    z = tl.load(centers + 3 * item + 2)
    infinity = first * 0 + 0x7F800000
    distance = infinity
    place = first * 0 + count
    if _count_near(keys, first, last, x, y, z, half, infinity, place, BITS, BLOCK) > most:
        low = first * 0
        while low < distance:
            middle = low + (distance - low) // 2
            if _count_near(keys, first, last, x, y, z, half, middle, place, BITS, BLOCK) >= most:
                distance = middle
            else:
                low = middle + 1
        low = first
        place = last
        while low < place:
            middle = low + (place - low) // 2
            if _count_near(keys, first, last, x, y, z, half, distance, middle, BITS, BLOCK) >= most:
                place = middle
            else:
                low = middle + 1
    tl.store(limits + 2 * item, distance)
    tl.store(limits + 2 * item + 1, place)


@relaunched
@triton.jit(do_not_specialize=["count", "half"])
def mark_voxels(
    keys: tl.tensor,  # [N] int64 sorted
    centers: tl.tensor,  # [B, 3]
    limits: tl.tensor,  # [B, 2] of limit_items
    marks: tl.tensor,  # [N] int32
    count: tl.tensor,  # N
    half: tl.tensor,
    LIMITED: tl.constexpr,
    BITS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Mark the first key of each voxel that is kept."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    place = tl.minimum(at, count - 1)
    key = tl.load(keys + place)
    kept = (place == 0) | (tl.load(keys + tl.maximum(place - 1, 0)) != key)
    real = key != 0x7FFFFFFFFFFFFFFF
    kept = kept & real
    if LIMITED:
        item = tl.where(real, key >> (3 * BITS), 0)
        x = tl.load(centers + 3 * item)
        y = tl.load(centers + 3 * item + 1)
        z = tl.load(centers + 3 * item + 2)
        distance = _distance(key & ((1 << (3 * BITS)) - 1), x, y, z, half)
        bound = tl.load(limits + 2 * item)
        kept = kept & ((distance < bound) | ((distance == bound) & (place <= tl.load(limits + 2 * item + 1))))
    tl.store(marks + at, kept.to(tl.int32), mask=inside)


@triton.jit
def _store_cell(
    to: tl.tensor, key: tl.tensor, level: tl.tensor, half: tl.tensor, wanted: tl.tensor, bits: tl.tensor
) -> None:
    """Store (item, x, y, z) in units of the finest cells."""
    tl.store(to, (key >> (3 * bits)).to(tl.int32), mask=wanted)
    key = key & ((tl.full((1,), 1, tl.int64) << (3 * bits)) - 1)
    tl.store(to + 1, ((_gathered(key) << level) - half).to(tl.int32), mask=wanted)
    tl.store(to + 2, ((_gathered(key >> 1) << level) - half).to(tl.int32), mask=wanted)
    tl.store(to + 3, ((_gathered(key >> 2) << level) - half).to(tl.int32), mask=wanted)


@relaunched
@triton.jit(do_not_specialize=["count", "half"])
def write_voxels(
    keys: tl.tensor,  # [N] int64 sorted
    marks: tl.tensor,  # [N] int32
    numbers: tl.tensor,  # [N] int32 running sum of the marks
    voxels: tl.tensor,  # [capacity] int64 distinct keys
    coordinates: tl.tensor,  # [capacity, 4] int32
    sizes: tl.tensor,  # [levels] int32
    count: tl.tensor,  # N
    half: tl.tensor,
    BITS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Write the marked keys and their coordinates one after the other, and how many there are."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    place = tl.minimum(at, count - 1)
    wanted = (at < count) & (tl.load(marks + place) > 0)
    row = tl.maximum(tl.load(numbers + place) - 1, 0).to(tl.int64)
    key = tl.load(keys + place)
    tl.store(voxels + row, key, mask=wanted)
    _store_cell(coordinates + 4 * row, key, 0, half, wanted, BITS)
    if tl.program_id(0) == 0:
        tl.store(sizes, tl.load(numbers + count - 1))


@relaunched
@triton.jit(do_not_specialize=["capacity"])
def mark_cells(
    voxels: tl.tensor,  # [levels, capacity] int64, the first row filled
    sizes: tl.tensor,  # [levels] int32
    marks: tl.tensor,  # [levels - 1, capacity] int32
    capacity: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """Mark the first voxel of each coarser cell."""
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    level = tl.program_id(1) + 1
    count = tl.load(sizes)
    place = tl.minimum(row, capacity - 1)
    key = tl.load(voxels + place) >> (3 * level)
    first = (row == 0) | (tl.load(voxels + tl.maximum(place - 1, 0)) >> (3 * level) != key)
    to = marks + (level - 1).to(tl.int64) * capacity + row
    tl.store(to, (first & (row < count)).to(tl.int32), mask=row < capacity)


@relaunched
@triton.jit(do_not_specialize=["capacity", "half"])
def write_cells(
    voxels: tl.tensor,  # [levels, capacity] int64
    marks: tl.tensor,  # [levels - 1, capacity] int32
    numbers: tl.tensor,  # [levels - 1, capacity] int32 running sum over all of the marks
    coordinates: tl.tensor,  # [levels, capacity, 4] int32
    sizes: tl.tensor,  # [levels] int32
    capacity: tl.tensor,
    half: tl.tensor,
    BITS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Write the keys and coordinates of the coarser cells, and how many there are at each level."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    level = tl.program_id(1) + 1
    start = (level - 1).to(tl.int64) * capacity
    before = tl.load(numbers + tl.maximum(start - 1, 0))
    before = tl.where(level > 1, before, 0)
    place = tl.minimum(at, capacity - 1)
    wanted = (at < capacity) & (tl.load(marks + start + place) > 0)
    row = tl.maximum(tl.load(numbers + start + place) - before - 1, 0).to(tl.int64)
    key = tl.load(voxels + place) >> (3 * level)
    to = level.to(tl.int64) * capacity + row
    tl.store(voxels + to, key, mask=wanted)
    _store_cell(coordinates + 4 * to, key, level, half, wanted, BITS - level)
    if tl.program_id(0) == 0:
        tl.store(sizes + level, tl.load(numbers + start + capacity - 1) - before)


@triton.jit
def _neighbor(
    voxels: tl.tensor,
    sizes: tl.tensor,
    slot: tl.tensor,
    row: tl.tensor,
    count: tl.tensor,
    capacity: tl.tensor,
    steps: tl.tensor,
    BITS: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Return the row that meets each row of the target under the offset of a slot, and whether there is one."""
    source = tl.load(slot)
    target = tl.load(slot + 1)
    key = tl.load(voxels + target.to(tl.int64) * capacity + tl.minimum(row, count - 1))
    bits = 3 * (BITS - target)
    item = key >> bits
    finer = tl.maximum(target - source, 0)
    coarser = tl.maximum(source - target, 0)
    key = key & ((tl.full((1,), 1, tl.int64) << bits) - 1)
    x = (_gathered(key) << finer) + tl.load(slot + 2)
    y = (_gathered(key >> 1) << finer) + tl.load(slot + 3)
    z = (_gathered(key >> 2) << finer) + tl.load(slot + 4)
    exact = ((x | y | z) & ((1 << coarser) - 1)) == 0
    wanted = _key(item, x >> coarser, y >> coarser, z >> coarser, BITS - source)
    place, found = _find(voxels + source.to(tl.int64) * capacity, tl.load(sizes + source), wanted, steps)
    return place, found & exact & (row < count)


@relaunched
@triton.jit(do_not_specialize=["capacity", "steps"])
def count_pairs(
    voxels: tl.tensor,  # [levels, capacity] int64
    sizes: tl.tensor,  # [levels] int32
    slots: tl.tensor,  # [S, WIDTH] int32: source, target, offset x, y, z of each pair of levels and offset
    counts: tl.tensor,  # [S] int32, added to
    capacity: tl.tensor,
    steps: tl.tensor,
    WIDTH: tl.constexpr,
    BITS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Count the pairs of rows of each offset."""
    slot = slots + tl.program_id(1) * WIDTH
    count = tl.load(sizes + tl.load(slot + 1))
    start = tl.program_id(0) * BLOCK
    if start < count:
        row = start + tl.arange(0, BLOCK)
        _, found = _neighbor(voxels, sizes, slot, row, count, capacity, steps, BITS)
        tl.atomic_add(counts + tl.program_id(1), tl.sum(found.to(tl.int32), axis=0))


@triton.jit
def _start(slot: tl.tensor, sizes: tl.tensor, LEVELS: tl.constexpr) -> tl.tensor:
    """Return where the table of a slot begins: after those of all earlier slots, which it counts by level."""
    start = tl.load(slot + 5).to(tl.int64) * tl.load(sizes)
    for level in range(1, LEVELS):
        start += tl.load(slot + 5 + level).to(tl.int64) * tl.load(sizes + level)
    return start


@relaunched
@triton.jit(do_not_specialize=["capacity", "steps"])
def fill_tables(
    voxels: tl.tensor,  # [levels, capacity] int64
    sizes: tl.tensor,  # [levels] int32
    slots: tl.tensor,  # [S, WIDTH] int32
    tables: tl.tensor,  # int32, one table after the other
    capacity: tl.tensor,
    steps: tl.tensor,
    LEVELS: tl.constexpr,
    WIDTH: tl.constexpr,
    BITS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Write the row that meets each row of the target, -1 for none."""
    slot = slots + tl.program_id(1) * WIDTH
    count = tl.load(sizes + tl.load(slot + 1))
    start = tl.program_id(0) * BLOCK
    if start < count:
        row = start + tl.arange(0, BLOCK)
        place, found = _neighbor(voxels, sizes, slot, row, count, capacity, steps, BITS)
        tl.store(tables + _start(slot, sizes, LEVELS) + row, tl.where(found, place, -1), mask=row < count)


@relaunched
@triton.jit
def list_pairs(
    sizes: tl.tensor,  # [levels] int32
    slots: tl.tensor,  # [S, WIDTH] int32
    tables: tl.tensor,  # int32
    numbers: tl.tensor,  # int32 running number of the pairs in the tables
    in_rows: tl.tensor,  # [P] int32
    out_rows: tl.tensor,  # [P] int32
    LEVELS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """List the pairs of all tables, one after the other."""
    slot = slots + tl.program_id(1) * WIDTH
    count = tl.load(sizes + tl.load(slot + 1))
    first = tl.program_id(0) * BLOCK
    if first < count:
        row = first + tl.arange(0, BLOCK)
        at = _start(slot, sizes, LEVELS) + tl.minimum(row, count - 1)
        neighbor = tl.load(tables + at)
        wanted = (row < count) & (neighbor >= 0)
        to = tl.maximum(tl.load(numbers + at) - 1, 0)
        tl.store(in_rows + to, neighbor, mask=wanted)
        tl.store(out_rows + to, row, mask=wanted)


@relaunched
@triton.jit(do_not_specialize=["count", "size"])
def rows_of_points(
    keys: tl.tensor,  # [N] int64 sorted
    order: tl.tensor,  # [N] int64 point of each key
    numbers: tl.tensor,  # [N] int32 running number of voxels
    voxels: tl.tensor,  # [M] int64
    rows: tl.tensor,  # [N] int64
    count: tl.tensor,  # N
    size: tl.tensor,  # M
    BLOCK: tl.constexpr,
) -> None:
    """Write the row of the voxel of each point, M for points without one."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    place = tl.minimum(at, count - 1)
    row = tl.maximum(tl.load(numbers + place) - 1, 0)
    own = tl.load(voxels + row) == tl.load(keys + place)
    tl.store(rows + tl.load(order + place), tl.where(own, row, size).to(tl.int64), mask=at < count)


@relaunched
@triton.jit(do_not_specialize=["count", "size", "half", "margin", "steps"])
def nearest_voxels(
    voxels: tl.tensor,  # [M] int64
    positions: tl.tensor,  # [Q, 3] float32, in cells
    items: tl.tensor,  # [Q] int64
    rows: tl.tensor,  # [Q] int64
    inside: tl.tensor,  # [Q] int8
    count: tl.tensor,  # Q
    size: tl.tensor,  # M
    half: tl.tensor,
    margin: tl.tensor,
    steps: tl.tensor,
    BITS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Write the row of the voxel that holds each position, or of the nearest of the 26 around; -1 for none."""
    query = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    at = tl.minimum(query, count - 1)
    item = tl.load(items + at)
    x = tl.load(positions + 3 * at)
    y = tl.load(positions + 3 * at + 1)
    z = tl.load(positions + 3 * at + 2)
    most = half - margin
    here = (x >= -most) & (x < most) & (y >= -most) & (y < most) & (z >= -most) & (z < most)
    x = tl.where(here, x, 0.0)
    y = tl.where(here, y, 0.0)
    z = tl.where(here, z, 0.0)
    cell_x = tl.floor(x)
    cell_y = tl.floor(y)
    cell_z = tl.floor(z)
    x = cell_x + 0.5 - x
    y = cell_y + 0.5 - y
    z = cell_z + 0.5 - z
    cell_x = cell_x.to(tl.int64) + half
    cell_y = cell_y.to(tl.int64) + half
    cell_z = cell_z.to(tl.int64) + half
    best = tl.full((BLOCK,), float("inf"), tl.float32)
    row = tl.full((BLOCK,), -1, tl.int32)
    held = tl.full((BLOCK,), 0, tl.int32)
    for step in range(0, 27):
        dx = step % 3 - 1
        dy = (step // 3) % 3 - 1
        dz = step // 9 - 1
        wanted = _key(item, cell_x + dx, cell_y + dy, cell_z + dz, BITS)
        place, found = _find(voxels, size, wanted, steps)
        own = step == 13
        distance = (x + dx) * (x + dx) + (y + dy) * (y + dy) + (z + dz) * (z + dz)
        distance = tl.where(own, -1.0, distance)  # the voxel that holds the position comes before any other
        nearer = found & here & (distance < best)
        best = tl.where(nearer, distance, best)
        row = tl.where(nearer, place, row)
        held = tl.where(nearer & own, 1, held)
    tl.store(rows + query, row.to(tl.int64), mask=query < count)
    tl.store(inside + query, held.to(tl.int8), mask=query < count)
