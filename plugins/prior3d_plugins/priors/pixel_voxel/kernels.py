"""Triton kernels of the pixel-voxel prior: points into cells of their grids, and a pixel of each feature cell."""

import triton
import triton.language as tl

from prior3d.launching import relaunched


@triton.jit
def _position(
    x: tl.tensor,
    y: tl.tensor,
    z: tl.tensor,
    item: tl.tensor,
    origins: tl.tensor,
    cosines: tl.tensor,
    sines: tl.tensor,
    shifts: tl.tensor,
    voxel_size: tl.tensor,
    UP: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Return the position in voxels of a grid of world points, as `Grids.positions` does."""
    x = x - tl.load(origins + 3 * item)
    y = y - tl.load(origins + 3 * item + 1)
    z = z - tl.load(origins + 3 * item + 2)
    if UP == 0:
        first, second, third = y, z, x
    elif UP == 1:
        first, second, third = z, x, y
    else:
        first, second, third = x, y, z
    cosine = tl.load(cosines + item)
    sine = tl.load(sines + item)
    turned = cosine * first - sine * second
    other = sine * first + cosine * second
    return (
        turned / voxel_size + tl.load(shifts + 3 * item),
        other / voxel_size + tl.load(shifts + 3 * item + 1),
        third / voxel_size + tl.load(shifts + 3 * item + 2),
    )


@triton.jit
def _cell(position: tl.tensor) -> tl.tensor:
    """Return the floor as int32; what is not finite or far away becomes the largest number."""
    fits = (position > -1e9) & (position < 1e9)
    return tl.where(fits, tl.floor(tl.where(fits, position, 0.0)).to(tl.int32), 0x7FFFFFFF)


@relaunched
@triton.jit(do_not_specialize=["count", "voxel_size"])
def place_points(
    points: tl.tensor,  # [N, 3] float32 meters
    view: tl.tensor,  # [N] int64
    origins: tl.tensor,  # [G, 3] float32
    cosines: tl.tensor,  # [G]
    sines: tl.tensor,  # [G]
    shifts: tl.tensor,  # [G, 3]
    boxes: tl.tensor,  # [G, 6] least and most x, y, z in meters
    cells: tl.tensor,  # [N, 3] int32
    items: tl.tensor,  # [N] int32
    count: tl.tensor,  # N
    voxel_size: tl.tensor,
    EVERY: tl.constexpr,  # the chunk of view v is v / EVERY, if that is whole
    BOXED: tl.constexpr,
    UP: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Write the cell and the chunk of each point, -1 for a point of no chunk."""
    point = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = point < count
    at = tl.minimum(point, count - 1).to(tl.int64)
    seen_by = tl.load(view + at)
    wanted = seen_by % EVERY == 0
    item = seen_by // EVERY
    x = tl.load(points + 3 * at)
    y = tl.load(points + 3 * at + 1)
    z = tl.load(points + 3 * at + 2)
    if BOXED:
        box = boxes + 6 * item
        wanted = wanted & (x >= tl.load(box)) & (y >= tl.load(box + 1)) & (z >= tl.load(box + 2))
        wanted = wanted & (x <= tl.load(box + 3)) & (y <= tl.load(box + 4)) & (z <= tl.load(box + 5))
    x, y, z = _position(x, y, z, item, origins, cosines, sines, shifts, voxel_size, UP)
    tl.store(cells + 3 * at, _cell(x), mask=inside)
    tl.store(cells + 3 * at + 1, _cell(y), mask=inside)
    tl.store(cells + 3 * at + 2, _cell(z), mask=inside)
    tl.store(items + at, tl.where(wanted, item, -1).to(tl.int32), mask=inside)


@relaunched
@triton.jit(do_not_specialize=["depth_stride", "camera_stride", "pose_stride", "voxel_size"])
def draw_pixels(
    depth: tl.tensor,  # [G, H, W] float32, images of any stride
    draws: tl.tensor,  # [G, N] float32 0..1
    intrinsics: tl.tensor,  # [G, 3, 3] float32
    poses: tl.tensor,  # [G, 4, 4] float32
    origins: tl.tensor,  # [G, 3] float32, and so on: the grids
    cosines: tl.tensor,
    sines: tl.tensor,
    shifts: tl.tensor,
    pixels: tl.tensor,  # [G, N, 2] float32
    points: tl.tensor,  # [G, N, 3] float32
    positions: tl.tensor,  # [G, N, 3] float32
    items: tl.tensor,  # [G, N] int64
    known: tl.tensor,  # [G, N] int8
    depth_stride: tl.tensor,
    camera_stride: tl.tensor,
    pose_stride: tl.tensor,
    voxel_size: tl.tensor,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    CELLS: tl.constexpr,  # N
    COLUMNS: tl.constexpr,  # cells in a row
    STRIDE: tl.constexpr,  # pixels of a cell's edge
    UP: tl.constexpr,
    BLOCK: tl.constexpr,
    PIXELS: tl.constexpr,  # at least STRIDE^2, a power of two
) -> None:
    """Draw a pixel of each feature cell, of known depth if there is one, and lift it to its grid."""
    item = tl.program_id(1).to(tl.int64)
    cell = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = cell < CELLS
    cell = tl.minimum(cell, CELLS - 1)
    pixel = tl.arange(0, PIXELS)
    row = (cell // COLUMNS * STRIDE)[:, None] + (pixel // STRIDE)[None, :]
    column = (cell % COLUMNS * STRIDE)[:, None] + (pixel % STRIDE)[None, :]
    shown = (pixel < STRIDE * STRIDE)[None, :] & (row < HEIGHT) & (column < WIDTH)
    clamped = tl.minimum(row, HEIGHT - 1) * WIDTH + tl.minimum(column, WIDTH - 1)
    value = tl.load(depth + item * depth_stride + clamped)
    good = shown & (value > 0) & (value < float("inf"))
    several = tl.sum(good.to(tl.int32), axis=1)
    drawn = tl.load(draws + item * CELLS + cell)
    # Without a known pixel, any: the slot is not valid.
    among = tl.where(several > 0, several, STRIDE * STRIDE)
    chosen = tl.minimum((drawn * among.to(tl.float32)).to(tl.int32), among - 1)
    counted = tl.where((several > 0)[:, None], good.to(tl.int32), (pixel < STRIDE * STRIDE).to(tl.int32)[None, :])
    hit = (counted > 0) & (tl.cumsum(counted, axis=1) - 1 == chosen[:, None])
    at = tl.sum(tl.where(hit, pixel[None, :], 0), axis=1)
    far = tl.sum(tl.where(hit & good, value, 0.0), axis=1)
    u = (cell % COLUMNS * STRIDE + at % STRIDE).to(tl.float32) + 0.5
    v = (cell // COLUMNS * STRIDE + at // STRIDE).to(tl.float32) + 0.5
    camera = intrinsics + item * camera_stride
    k00 = tl.load(camera)
    k01 = tl.load(camera + 1)
    k10 = tl.load(camera + 3)
    k11 = tl.load(camera + 4)
    right = u - tl.load(camera + 2)
    down = v - tl.load(camera + 5)
    determinant = k00 * k11 - k01 * k10
    right, down = (k11 * right - k01 * down) / determinant * far, (k00 * down - k10 * right) / determinant * far
    pose = poses + item * pose_stride
    x = tl.load(pose) * right + tl.load(pose + 1) * down + tl.load(pose + 2) * far + tl.load(pose + 3)
    y = tl.load(pose + 4) * right + tl.load(pose + 5) * down + tl.load(pose + 6) * far + tl.load(pose + 7)
    z = tl.load(pose + 8) * right + tl.load(pose + 9) * down + tl.load(pose + 10) * far + tl.load(pose + 11)
    finite = (tl.abs(x) < float("inf")) & (tl.abs(y) < float("inf")) & (tl.abs(z) < float("inf"))
    fine = (several > 0) & finite
    x = tl.where(fine, x, 0.0)
    y = tl.where(fine, y, 0.0)
    z = tl.where(fine, z, 0.0)
    slot = item * CELLS + cell
    tl.store(pixels + 2 * slot, u, mask=inside)
    tl.store(pixels + 2 * slot + 1, v, mask=inside)
    tl.store(points + 3 * slot, x, mask=inside)
    tl.store(points + 3 * slot + 1, y, mask=inside)
    tl.store(points + 3 * slot + 2, z, mask=inside)
    x, y, z = _position(x, y, z, item, origins, cosines, sines, shifts, voxel_size, UP)
    tl.store(positions + 3 * slot, x, mask=inside)
    tl.store(positions + 3 * slot + 1, y, mask=inside)
    tl.store(positions + 3 * slot + 2, z, mask=inside)
    tl.store(items + slot, tl.zeros((BLOCK,), tl.int64) + item, mask=inside)
    tl.store(known + slot, fine.to(tl.int8), mask=inside)
