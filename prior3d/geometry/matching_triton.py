"""Matches of view pairs on CUDA in three Triton kernels, instead of hundreds of operations.

The points of both views, as planes with a margin of the search window; then the nearest point around each projection,
in both directions at once; then the mutual choices. The formulas are those of `unproject`, `project` and `matching`, in
the same order and rounded after each operation; only squared distances use fused multiply-adds. No atomics, so results
repeat bit by bit.
"""

import torch
import triton
from torch import Tensor

from prior3d.geometry.cameras import MIN_DEPTH
from prior3d.geometry.matching_kernels import choose_mutual, lift_points, search_windows

PIXELS = 128
"""Pixels per program of the search: neighbors in a row, whose windows overlap in the processor's cache."""

PIXELS_IN_PASSING = 512
"""Pixels per program of the two other kernels, which read each pixel about once."""


def match(
    depths: tuple[Tensor, Tensor],
    intrinsics: tuple[Tensor, Tensor],
    poses: tuple[Tensor, Tensor],
    radii: tuple[int, int],
    max_distance: float,
    relative_distance: float,
    rounding: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the slots of `ViewMatches`: see `match_views_batched`, whose checks have passed.

    Args:
        depths: [B, H_a, W_a] and [B, H_b, W_b] float32 meters, on CUDA.
        intrinsics: two [B, 3, 3] float32.
        poses: two [B, 4, 4] float32 world_from_camera.
        radii: half widths of the windows that are searched in a and in b, in pixels.
        max_distance: meters.
        relative_distance: share of the depth.
        rounding: share of the depth by which distances stay below the limit.
    """
    depths, intrinsics, poses = (tuple(map(_with_dense_rows, pair)) for pair in (depths, intrinsics, poses))
    strides = [tensor.stride(0) for pair in (depths, intrinsics, poses) for tensor in pair]
    batch, height_a, width_a = depths[0].shape
    _, height_b, width_b = depths[1].shape
    sizes = (height_a, width_a, height_b, width_b)
    slots_a, slots_b = height_a * width_a, height_b * width_b
    margins = {"RADIUS_A": radii[0], "RADIUS_B": radii[1]}
    new, numbers = depths[0].new_empty, torch.int32

    margin_a, margin_b = 2 * radii[0], 2 * radii[1]
    padded = (height_a + margin_a) * (width_a + margin_a), (height_b + margin_b) * (width_b + margin_b)
    planes_a, planes_b = (new((batch, 3, size)) for size in padded)
    squared = new((batch, slots_a))
    in_b, in_a = new((batch, slots_a), dtype=numbers), new((batch, slots_b), dtype=numbers)
    pixels_a, pixels_b = new((slots_a, 2)), new((batch, slots_a, 2))
    valid = new((batch, slots_a), dtype=torch.bool)
    with torch.cuda.device_of(valid):
        lift_points[triton.cdiv(max(padded), PIXELS_IN_PASSING), batch, 2](
            *depths,
            *intrinsics,
            *poses,
            *strides,
            planes_a,
            planes_b,
            *sizes,
            **margins,
            BLOCK=PIXELS_IN_PASSING,
            enable_fp_fusion=False,
        )
        search_windows[triton.cdiv(max(slots_a, slots_b), PIXELS), batch, 2](
            planes_a,
            planes_b,
            *intrinsics,
            *poses,
            *strides[2:],
            squared,
            in_b,
            in_a,
            *sizes,
            MIN_DEPTH,
            **margins,
            BLOCK=PIXELS,
            enable_fp_fusion=False,
        )
        choose_mutual[triton.cdiv(slots_a, PIXELS_IN_PASSING), batch](
            *depths,
            *strides[:2],
            squared,
            in_b,
            in_a,
            pixels_a,
            pixels_b,
            valid.view(torch.uint8),
            slots_a,
            slots_b,
            width_a,
            width_b,
            float(max_distance),
            float(relative_distance),
            float(rounding),
            BLOCK=PIXELS_IN_PASSING,
            enable_fp_fusion=False,
        )
    return pixels_a.expand(batch, slots_a, 2), pixels_b, valid


def _with_dense_rows(tensor: Tensor) -> Tensor:
    """Return the tensor [B, R, C], copied unless each of its matrices is dense: the kernels take one stride each."""
    return tensor if tensor.stride()[1:] == (tensor.shape[2], 1) else tensor.contiguous()
