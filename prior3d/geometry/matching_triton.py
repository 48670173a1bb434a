"""Matching on CUDA in three Triton kernels: one search per direction, one comparison of both.

Every pixel of a view is lifted, projected and compared with the window around it in one program; the other view's
points are lifted again where they are read, which costs less than reading them from memory. Results equal those of
`matching` but for rounding: a pair at the limit, or two points equally near, may fall to either side.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from prior3d.geometry.cameras import MIN_DEPTH

_BLOCK = 128


def match_on_device(
    depth_a: Tensor,  # [B, H_a, W_a]
    depth_b: Tensor,  # [B, H_b, W_b]
    intrinsics_a: Tensor,  # [B, 3, 3]
    intrinsics_b: Tensor,
    world_from_a: Tensor,  # [B, 4, 4]
    world_from_b: Tensor,
    radii: tuple[int, int],
    max_distance: float,
    relative_distance: float,
    rounding: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return pixels of a [B, N, 2], their pixels in b [B, N, 2] and which of them match [B, N].

    Args:
        depth_a: meters, float32.
        depth_b: likewise; the sizes may differ.
        intrinsics_a: pixels, float32.
        intrinsics_b: likewise.
        world_from_a: meters, float32.
        world_from_b: likewise.
        radii: half width of the window in b and in a, pixels.
        max_distance: meters.
        relative_distance: share of the smaller depth.
        rounding: share of the depth by which distances stay below the limit.
    """
    views = [
        tuple(tensor.contiguous() for tensor in view)
        for view in ((depth_a, intrinsics_a, world_from_a), (depth_b, intrinsics_b, world_from_b))
    ]
    squared_distance, in_b = _search(*views[0], *views[1], radii[0])
    _, in_a = _search(*views[1], *views[0], radii[1])
    (batch, slots), device = in_b.shape, in_b.device
    pixels_a, pixels_b = torch.empty(slots, 2, device=device), torch.empty(batch, slots, 2, device=device)
    valid = torch.empty(batch, slots, dtype=torch.bool, device=device)
    _compare[triton.cdiv(slots, _BLOCK), batch](
        views[0][0],
        views[1][0],
        squared_distance,
        in_b,
        in_a,
        pixels_a,
        pixels_b,
        valid,
        slots,
        in_a.shape[1],
        depth_a.shape[2],
        depth_b.shape[2],
        max_distance,
        relative_distance,
        rounding,
        BLOCK=_BLOCK,
    )
    return pixels_a.expand(batch, slots, 2), pixels_b, valid


def _search(
    depth: Tensor,
    intrinsics: Tensor,
    world_from_camera: Tensor,
    target_depth: Tensor,
    target_intrinsics: Tensor,
    world_from_target: Tensor,
    radius: int,
) -> tuple[Tensor, Tensor]:
    """Return for each source pixel the squared distance of the nearest target point [B, N], and its pixel [B, N].

    The pixel is -1 where the source point is unknown or does not project into the target.
    """
    batch, height, width = depth.shape
    slots = height * width
    squared_distance = torch.empty(batch, slots, device=depth.device)
    found = torch.empty(batch, slots, dtype=torch.int32, device=depth.device)
    _search_windows[triton.cdiv(slots, _BLOCK), batch](
        depth,
        intrinsics,
        world_from_camera,
        target_depth,
        target_intrinsics,
        world_from_target,
        squared_distance,
        found,
        slots,
        width,
        target_depth.shape[1],
        target_depth.shape[2],
        radius,
        MIN_DEPTH,
        BLOCK=_BLOCK,
    )
    return squared_distance, found


@triton.jit
def _known(depth: tl.tensor) -> tl.tensor:
    return (depth > 0) & (depth < float("inf"))


@triton.jit
def _search_windows(
    depth: tl.tensor,  # [B, N] of the source
    intrinsics: tl.tensor,  # [B, 3, 3]
    poses: tl.tensor,  # [B, 4, 4] world from source
    target_depth: tl.tensor,  # [B, H, W]
    target_intrinsics: tl.tensor,  # [B, 3, 3]
    target_poses: tl.tensor,  # [B, 4, 4] world from target
    squared_distance: tl.tensor,  # [B, N]
    found: tl.tensor,  # [B, N] int32
    slots: tl.tensor,  # N
    source_width: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    radius: tl.tensor,
    least_depth: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """Find the nearest target point in the window around each source pixel's projection."""
    pair = tl.program_id(1).to(tl.int64)
    slot = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = slot < slots
    z = tl.load(depth + pair * slots + slot, mask=inside, other=0.0)
    known = inside & _known(z)
    z = tl.where(known, z, 0.0)
    # Lift in the axes of the source camera.
    k = intrinsics + pair * 9
    kxx, kxy, kx = tl.load(k), tl.load(k + 1), tl.load(k + 2)
    kyx, kyy, ky = tl.load(k + 3), tl.load(k + 4), tl.load(k + 5)
    u = (slot % source_width).to(tl.float32) + 0.5 - kx
    v = (slot // source_width).to(tl.float32) + 0.5 - ky
    determinant = kxx * kyy - kxy * kyx
    x, y = (kyy * u - kxy * v) / determinant * z, (kxx * v - kyx * u) / determinant * z
    # Move to the axes of the target camera: far from the origin float32 has no digits left for centimeters, so the
    # centers are subtracted in float64.
    p, q = poses + pair * 16, target_poses + pair * 16
    dx = (tl.load(p + 3).to(tl.float64) - tl.load(q + 3).to(tl.float64)).to(tl.float32)
    dy = (tl.load(p + 7).to(tl.float64) - tl.load(q + 7).to(tl.float64)).to(tl.float32)
    dz = (tl.load(p + 11).to(tl.float64) - tl.load(q + 11).to(tl.float64)).to(tl.float32)
    wx = tl.load(p) * x + tl.load(p + 1) * y + tl.load(p + 2) * z + dx
    wy = tl.load(p + 4) * x + tl.load(p + 5) * y + tl.load(p + 6) * z + dy
    wz = tl.load(p + 8) * x + tl.load(p + 9) * y + tl.load(p + 10) * z + dz
    x = tl.load(q) * wx + tl.load(q + 4) * wy + tl.load(q + 8) * wz
    y = tl.load(q + 1) * wx + tl.load(q + 5) * wy + tl.load(q + 9) * wz
    z = tl.load(q + 2) * wx + tl.load(q + 6) * wy + tl.load(q + 10) * wz
    # Project.
    k = target_intrinsics + pair * 9
    kxx, kxy, kx = tl.load(k), tl.load(k + 1), tl.load(k + 2)
    kyx, kyy, ky = tl.load(k + 3), tl.load(k + 4), tl.load(k + 5)
    determinant = kxx * kyy - kxy * kyx
    divisor = tl.maximum(z, least_depth)
    at_x = kxx * (x / divisor) + kxy * (y / divisor) + kx
    at_y = kyx * (x / divisor) + kyy * (y / divisor) + ky
    seen = known & (z > 0) & (at_x >= 0) & (at_x < width) & (at_y >= 0) & (at_y < height)
    column, row = tl.where(seen, at_x, 0.0).to(tl.int32), tl.where(seen, at_y, 0.0).to(tl.int32)
    # Compare with the points of the window, lifted where they are read.
    best = tl.full((BLOCK,), float("inf"), tl.float32)
    nearest = row * width + column
    side = 2 * radius + 1
    for step in range(0, side * side):
        to_row, to_column = row + (step // side - radius), column + (step % side - radius)
        exists = seen & (to_row >= 0) & (to_row < height) & (to_column >= 0) & (to_column < width)
        pixel = to_row * width + to_column
        there = tl.load(target_depth + pair * height * width + pixel, mask=exists, other=0.0)
        u, v = to_column.to(tl.float32) + 0.5 - kx, to_row.to(tl.float32) + 0.5 - ky
        apart_x = (kyy * u - kxy * v) / determinant * there - x
        apart_y = (kxx * v - kyx * u) / determinant * there - y
        apart = apart_x * apart_x + apart_y * apart_y + (there - z) * (there - z)
        nearer = exists & _known(there) & (apart < best)  # ties go to the first in row order
        best = tl.where(nearer, apart, best)
        nearest = tl.where(nearer, pixel, nearest)
    tl.store(squared_distance + pair * slots + slot, best, mask=inside)
    tl.store(found + pair * slots + slot, tl.where(seen, nearest, -1), mask=inside)


@triton.jit
def _compare(
    depth_a: tl.tensor,  # [B, N]
    depth_b: tl.tensor,  # [B, M]
    squared_distance: tl.tensor,  # [B, N]
    in_b: tl.tensor,  # [B, N] int32
    in_a: tl.tensor,  # [B, M] int32
    pixels_a: tl.tensor,  # [N, 2]
    pixels_b: tl.tensor,  # [B, N, 2]
    valid: tl.tensor,  # [B, N]
    slots: tl.tensor,  # N
    others: tl.tensor,  # M
    width_a: tl.tensor,
    width_b: tl.tensor,
    max_distance: tl.tensor,
    relative_distance: tl.tensor,
    rounding: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """Keep the pixels that chose each other within the limit."""
    pair = tl.program_id(1).to(tl.int64)
    slot = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = slot < slots
    other = tl.load(in_b + pair * slots + slot, mask=inside, other=-1)
    seen = inside & (other >= 0)
    back = tl.load(in_a + pair * others + other, mask=seen, other=-1)
    here = tl.load(depth_a + pair * slots + slot, mask=seen, other=0.0)
    there = tl.load(depth_b + pair * others + other, mask=seen, other=0.0)
    here, there = tl.where(_known(here), here, 0.0), tl.where(_known(there), there, 0.0)
    depth = tl.minimum(here, there)
    limit = tl.maximum(depth * relative_distance, max_distance) - rounding * depth
    apart = tl.load(squared_distance + pair * slots + slot, mask=seen, other=float("inf"))
    matched = seen & (back == slot) & (limit > 0) & (apart <= limit * limit)
    tl.store(valid + pair * slots + slot, matched, mask=inside)
    other = tl.maximum(other, 0)
    to = pixels_b + (pair * slots + slot) * 2
    tl.store(to, (other % width_b).to(tl.float32) + 0.5, mask=inside)
    tl.store(to + 1, (other // width_b).to(tl.float32) + 0.5, mask=inside)
    to, of_first_pair = pixels_a + slot * 2, pair * slots + slot < slots
    tl.store(to, (slot % width_a).to(tl.float32) + 0.5, mask=of_first_pair)
    tl.store(to + 1, (slot // width_a).to(tl.float32) + 0.5, mask=of_first_pair)
