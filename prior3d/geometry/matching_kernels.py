"""Triton kernels of the matches between two views; `matching_triton` launches them and says what they are for."""

import triton
import triton.language as tl

from prior3d.launching import relaunched


@relaunched
@triton.jit
def lift_points(
    depth_a: tl.tensor,
    depth_b: tl.tensor,
    intrinsics_a: tl.tensor,
    intrinsics_b: tl.tensor,
    pose_a: tl.tensor,
    pose_b: tl.tensor,
    depth_stride_a: tl.tensor,
    depth_stride_b: tl.tensor,
    intrinsics_stride_a: tl.tensor,
    intrinsics_stride_b: tl.tensor,
    pose_stride_a: tl.tensor,
    pose_stride_b: tl.tensor,
    planes_a: tl.tensor,
    planes_b: tl.tensor,
    height_a: tl.tensor,
    width_a: tl.tensor,
    height_b: tl.tensor,
    width_b: tl.tensor,
    RADIUS_A: tl.constexpr,
    RADIUS_B: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Write the points of both views, origin at camera b, as three planes; inf in margins and at unknown depth."""
    pair = tl.program_id(1).to(tl.int64)
    origin = pose_b + pair * pose_stride_b
    if tl.program_id(2) == 0:
        depth, intrinsics = depth_a + pair * depth_stride_a, intrinsics_a + pair * intrinsics_stride_a
        _lift(depth, intrinsics, pose_a + pair * pose_stride_a, origin, planes_a, height_a, width_a, RADIUS_A, BLOCK)
    else:
        depth, intrinsics = depth_b + pair * depth_stride_b, intrinsics_b + pair * intrinsics_stride_b
        _lift(depth, intrinsics, origin, origin, planes_b, height_b, width_b, RADIUS_B, BLOCK)


@triton.jit
def _lift(
    depth: tl.tensor,
    intrinsics: tl.tensor,
    pose: tl.tensor,
    origin: tl.tensor,
    planes: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    RADIUS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    padded_width = width + 2 * RADIUS
    size = (height + 2 * RADIUS) * padded_width
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row, column = at // padded_width - RADIUS, at % padded_width - RADIUS
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    nearest = tl.minimum(tl.maximum(row, 0), height - 1) * width + tl.minimum(tl.maximum(column, 0), width - 1)
    along = tl.load(depth + nearest)
    known = inside & (along > 0) & (along < float("inf"))
    k00, k01, k02 = tl.load(intrinsics), tl.load(intrinsics + 1), tl.load(intrinsics + 2)
    k10, k11, k12 = tl.load(intrinsics + 3), tl.load(intrinsics + 4), tl.load(intrinsics + 5)
    x, y = column.to(tl.float32) + 0.5 - k02, row.to(tl.float32) + 0.5 - k12
    determinant = k00 * k11 - k01 * k10
    x, y = tl.div_rn(k11 * x - k01 * y, determinant) * along, tl.div_rn(k00 * y - k10 * x, determinant) * along
    planes += tl.program_id(1).to(tl.int64) * 3 * size
    for axis in tl.static_range(3):
        line = pose + 4 * axis
        point = tl.load(line) * x + tl.load(line + 1) * y + tl.load(line + 2) * along + _center(pose, origin, axis)
        tl.store(planes + axis * size + at, tl.where(known, point, float("inf")), mask=at < size)


@triton.jit
def _center(pose: tl.tensor, origin: tl.tensor, axis: tl.constexpr) -> tl.tensor:
    """Return a coordinate of the camera; far from the world's origin, float32 has no digits for the difference."""
    difference = tl.load(pose + 4 * axis + 3).to(tl.float64) - tl.load(origin + 4 * axis + 3).to(tl.float64)
    return difference.to(tl.float32)


@relaunched
@triton.jit
def search_windows(
    planes_a: tl.tensor,
    planes_b: tl.tensor,
    intrinsics_a: tl.tensor,
    intrinsics_b: tl.tensor,
    pose_a: tl.tensor,
    pose_b: tl.tensor,
    intrinsics_stride_a: tl.tensor,
    intrinsics_stride_b: tl.tensor,
    pose_stride_a: tl.tensor,
    pose_stride_b: tl.tensor,
    squared: tl.tensor,
    in_b: tl.tensor,
    in_a: tl.tensor,
    height_a: tl.tensor,
    width_a: tl.tensor,
    height_b: tl.tensor,
    width_b: tl.tensor,
    min_depth: tl.tensor,
    RADIUS_A: tl.constexpr,
    RADIUS_B: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Write the pixel of the nearest point in the other view, or -1 where that view does not see the own point.

    The squared distance is written for the pixels of a alone, inf where the window holds no known point.
    """
    pair = tl.program_id(1).to(tl.int64)
    planes_a += pair * 3 * (height_a + 2 * RADIUS_A) * (width_a + 2 * RADIUS_A)
    planes_b += pair * 3 * (height_b + 2 * RADIUS_B) * (width_b + 2 * RADIUS_B)
    origin = pose_b + pair * pose_stride_b
    if tl.program_id(2) == 0:
        at = pair * height_a * width_a
        _search(
            planes_a,
            height_a,
            width_a,
            RADIUS_A,
            planes_b,
            height_b,
            width_b,
            RADIUS_B,
            intrinsics_b + pair * intrinsics_stride_b,
            origin,
            origin,
            in_b + at,
            squared + at,
            min_depth,
            True,
            BLOCK,
        )
    else:
        at = pair * height_b * width_b
        _search(
            planes_b,
            height_b,
            width_b,
            RADIUS_B,
            planes_a,
            height_a,
            width_a,
            RADIUS_A,
            intrinsics_a + pair * intrinsics_stride_a,
            pose_a + pair * pose_stride_a,
            origin,
            in_a + at,
            squared,
            min_depth,
            False,
            BLOCK,
        )


@triton.jit
def _search(
    source: tl.tensor,
    source_height: tl.tensor,
    source_width: tl.tensor,
    SOURCE_RADIUS: tl.constexpr,
    target: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    RADIUS: tl.constexpr,
    intrinsics: tl.tensor,
    pose: tl.tensor,
    origin: tl.tensor,
    found: tl.tensor,
    squared: tl.tensor,
    min_depth: tl.tensor,
    KEEP_SQUARED: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    slots = source_height * source_width
    slot = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    own = tl.minimum(slot, slots - 1)
    own_width = source_width + 2 * SOURCE_RADIUS
    own_size = (source_height + 2 * SOURCE_RADIUS) * own_width
    at = source + (own // source_width + SOURCE_RADIUS) * own_width + own % source_width + SOURCE_RADIUS
    x, y, z = tl.load(at), tl.load(at + own_size), tl.load(at + 2 * own_size)

    center_x, center_y, center_z = _center(pose, origin, 0), _center(pose, origin, 1), _center(pose, origin, 2)
    in_x = _to_camera(x, y, z, pose, 0, center_x, center_y, center_z)
    in_y = _to_camera(x, y, z, pose, 1, center_x, center_y, center_z)
    depth = _to_camera(x, y, z, pose, 2, center_x, center_y, center_z)
    divisor = tl.maximum(depth, min_depth)
    in_x, in_y = tl.div_rn(in_x, divisor), tl.div_rn(in_y, divisor)
    pixel_x = tl.load(intrinsics) * in_x + tl.load(intrinsics + 1) * in_y + tl.load(intrinsics + 2)
    pixel_y = tl.load(intrinsics + 3) * in_x + tl.load(intrinsics + 4) * in_y + tl.load(intrinsics + 5)
    known = (tl.abs(x) < float("inf")) & (slot < slots)
    seen = known & (depth > 0) & (pixel_x >= 0) & (pixel_x < width) & (pixel_y >= 0) & (pixel_y < height)
    column = tl.where(seen, pixel_x, 0.0).to(tl.int32)
    row = tl.where(seen, pixel_y, 0.0).to(tl.int32)

    target_width = width + 2 * RADIUS
    size = (height + 2 * RADIUS) * target_width
    side: tl.constexpr = 2 * RADIUS + 1
    corner = target + row * target_width + column
    best = tl.full([BLOCK], float("inf"), tl.float32)
    offset = tl.zeros([BLOCK], tl.int32)
    # Where the other view sees no point of this program there is nothing to search.
    lines = tl.max(seen.to(tl.int32), 0) * side
    for line in range(0, lines):
        for step in tl.static_range(side):
            difference_x = tl.load(corner + step) - x
            difference_y = tl.load(corner + size + step) - y
            difference_z = tl.load(corner + 2 * size + step) - z
            distance = tl.fma(difference_y, difference_y, difference_x * difference_x)
            distance = tl.fma(difference_z, difference_z, distance)
            nearer = distance < best  # ties go to the first in row order
            best = tl.where(nearer, distance, best)
            offset = tl.where(nearer, line * side + step, offset)
        corner += target_width
    row = tl.minimum(tl.maximum(row + offset // side - RADIUS, 0), height - 1)
    column = tl.minimum(tl.maximum(column + offset % side - RADIUS, 0), width - 1)
    tl.store(found + slot, tl.where(seen, row * width + column, -1), mask=slot < slots)
    if KEEP_SQUARED:
        tl.store(squared + slot, best, mask=slot < slots)


@triton.jit
def _to_camera(
    x: tl.tensor,
    y: tl.tensor,
    z: tl.tensor,
    pose: tl.tensor,
    axis: tl.constexpr,
    center_x: tl.tensor,
    center_y: tl.tensor,
    center_z: tl.tensor,
) -> tl.tensor:
    """Return a coordinate of points in the camera's axes: the pose's rotation is inverted, see `invert_rigid`."""
    r0, r1, r2 = tl.load(pose + axis), tl.load(pose + 4 + axis), tl.load(pose + 8 + axis)
    shift = -(r0 * center_x + r1 * center_y + r2 * center_z)
    return r0 * x + r1 * y + r2 * z + shift


@relaunched
@triton.jit
def choose_mutual(
    depth_a: tl.tensor,
    depth_b: tl.tensor,
    depth_stride_a: tl.tensor,
    depth_stride_b: tl.tensor,
    squared: tl.tensor,
    in_b: tl.tensor,
    in_a: tl.tensor,
    pixels_a: tl.tensor,
    pixels_b: tl.tensor,
    valid: tl.tensor,
    slots_a: tl.tensor,
    slots_b: tl.tensor,
    width_a: tl.tensor,
    width_b: tl.tensor,
    max_distance: tl.tensor,
    relative_distance: tl.tensor,
    rounding: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """Write the pixel centers of all slots, and which are matches: mutual choices within the limit."""
    pair = tl.program_id(1).to(tl.int64)
    slot = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    stored = slot < slots_a
    own = tl.minimum(slot, slots_a - 1)
    chosen = tl.load(in_b + pair * slots_a + own)
    other = tl.maximum(chosen, 0)
    mutual = (chosen >= 0) & (tl.load(in_a + pair * slots_b + other) == own)
    depth = tl.load(depth_a + pair * depth_stride_a + own)
    depth_there = tl.load(depth_b + pair * depth_stride_b + other)
    # Where the choice is mutual, both depths are known.
    depth = tl.where(mutual, tl.minimum(depth, depth_there), 0.0)
    limit = tl.maximum(depth * relative_distance, max_distance) - rounding * depth
    within = tl.load(squared + pair * slots_a + own) <= limit * limit
    tl.store(valid + pair * slots_a + slot, (mutual & (limit > 0) & within).to(tl.uint8), mask=stored)
    at = pixels_b + (pair * slots_a + slot) * 2
    tl.store(at, (other % width_b).to(tl.float32) + 0.5, mask=stored)
    tl.store(at + 1, (other // width_b).to(tl.float32) + 0.5, mask=stored)
    first = slot < tl.where(pair == 0, slots_a, 0)
    tl.store(pixels_a + slot * 2, (own % width_a).to(tl.float32) + 0.5, mask=first)
    tl.store(pixels_a + slot * 2 + 1, (own // width_a).to(tl.float32) + 0.5, mask=first)
