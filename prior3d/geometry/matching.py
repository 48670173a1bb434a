"""Matches between pixels of two posed depth maps that see the same 3D point."""

import importlib
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from prior3d.geometry.cameras import known_depth, pixel_centers, project, unproject
from prior3d.geometry.precision import exact
from prior3d.geometry.triton_support import triton_runs_on

ROUNDING = 16 * torch.finfo(torch.float32).eps
"""Share of the depth by which distances stay below the limit, so a check in other arithmetic agrees."""


class ViewMatches(NamedTuple):
    """Matches of a batch of view pairs in fixed shapes: one slot per pixel of a, in row order."""

    pixels_a: Tensor  # [B, N, 2] pixel centers (x, y) in a
    pixels_b: Tensor  # [B, N, 2] pixel centers (x, y) in b; no meaning where not valid
    valid: Tensor  # [B, N] bool


def match_views(
    depth_a: Tensor,
    depth_b: Tensor,
    intrinsics_a: Tensor,
    intrinsics_b: Tensor,
    world_from_a: Tensor,
    world_from_b: Tensor,
    max_distance: float = 0.02,
    relative_distance: float = 0.0,
    search_radius: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Match the pixels of two views whose 3D points are mutual nearest neighbors within a limit.

    Args:
        depth_a: [H_a, W_a] meters along the optical axis, 0 (or nan, inf) = unknown.
        depth_b: [H_b, W_b] likewise; the sizes may differ.
        intrinsics_a: [3, 3] pixels, centers at +0.5.
        intrinsics_b: [3, 3] pixels.
        world_from_a: [4, 4] pose of a, meters.
        world_from_b: [4, 4] pose of b, meters.
        max_distance: maximum distance in meters between the two 3D points of a match.
        relative_distance: the limit is `max(max_distance, relative_distance * z)`, z the smaller of the two depths.
        search_radius: see `match_views_batched`.

    Returns:
        Two [M, 2] tensors of pixel centers (x, y), in a and in b. Row i matches row i, and no pixel occurs twice.

    Reference:
        The view prior of Pri3D, Hou et al., 2021, arXiv 2104.11225. Its code rounds the projection down and compares
        depths in one direction, so several pixels may share one match. Here matches are mutual and compared in 3D.

    >>> depth, pose = torch.full((6, 8), 2.0), torch.eye(4)
    >>> intrinsics = torch.tensor([[8.0, 0, 4], [0, 8, 3], [0, 0, 1]])
    >>> in_a, in_b = match_views(depth, depth, intrinsics, intrinsics, pose, pose)
    >>> len(in_a), torch.equal(in_a, in_b)
    (48, True)
    """
    matches = match_views_batched(
        *(tensor.unsqueeze(0) for tensor in (depth_a, depth_b, intrinsics_a, intrinsics_b, world_from_a, world_from_b)),
        max_distance=max_distance,
        relative_distance=relative_distance,
        search_radius=search_radius,
    )
    return matches.pixels_a[matches.valid], matches.pixels_b[matches.valid]


@torch.no_grad()
def match_views_batched(
    depth_a: Tensor,
    depth_b: Tensor,
    intrinsics_a: Tensor,
    intrinsics_b: Tensor,
    world_from_a: Tensor,
    world_from_b: Tensor,
    max_distance: float = 0.02,
    relative_distance: float = 0.0,
    search_radius: int | None = None,
) -> ViewMatches:
    """Match the pixels of a batch of view pairs in fixed shapes, without waiting for the device.

    Each pixel of a is projected to b, and the nearest 3D point is searched in a window of b's pixels; then the same
    from b to a. Mutual choices within the limit are matches. Both points of a match project inside the other view.
    On an NVIDIA GPU three Triton kernels do it, whose distances are rounded differently in the last digit.

    Args:
        depth_a: [B, H_a, W_a] meters along the optical axis, 0 (or nan, inf) = unknown.
        depth_b: [B, H_b, W_b] likewise; the sizes may differ.
        intrinsics_a: [B, 3, 3] pixels, centers at +0.5.
        intrinsics_b: [B, 3, 3] pixels.
        world_from_a: [B, 4, 4] pose of a, meters.
        world_from_b: [B, 4, 4] pose of b, meters.
        max_distance: maximum distance in meters between the two 3D points of a match.
        relative_distance: the limit is `max(max_distance, relative_distance * z)`, z the smaller of the two depths.
        search_radius: half width of the window, in pixels of the searched view. A point within `max_distance` is at
            most `focal * max_distance / z` pixels away. The default, see `default_search_radius`, is what real frames
            need. Time grows with its square.

    Returns:
        Matches with N = H_a * W_a slots, one per pixel of a.

    >>> depth, pose = torch.full((6, 8), 2.0), torch.eye(4)
    >>> intrinsics = torch.tensor([[8.0, 0, 4], [0, 8, 3], [0, 0, 1]])
    >>> both = [tensor[None] for tensor in (depth, depth, intrinsics, intrinsics, pose, pose)]
    >>> match_views_batched(*both).valid.sum().item()
    48
    """
    _check_pair((depth_a, intrinsics_a, world_from_a), (depth_b, intrinsics_b, world_from_b))
    if not (max_distance > 0 and relative_distance >= 0):
        raise ValueError(
            f"expected max_distance > 0 and relative_distance >= 0, got {max_distance} and {relative_distance}"
        )
    if search_radius is not None and search_radius < 0:
        raise ValueError(f"expected search_radius >= 0, got {search_radius}")
    depth_a, depth_b, intrinsics_a, intrinsics_b, world_from_a, world_from_b = exact(
        depth_a, depth_b, intrinsics_a, intrinsics_b, world_from_a, world_from_b
    )
    if depth_a.dtype == torch.float32 and 0 not in (*depth_a.shape, *depth_b.shape) and triton_runs_on(depth_a.device):
        kernels = importlib.import_module("prior3d.geometry.matching_triton")
        depths, radii = (depth_a, depth_b), [_radius(depth.shape, search_radius) for depth in (depth_a, depth_b)]
        cameras = (intrinsics_a, intrinsics_b), (world_from_a, world_from_b)
        return ViewMatches(*kernels.match(depths, *cameras, radii, max_distance, relative_distance, ROUNDING))
    # World axes with the origin at camera b: far from the origin, float32 has no digits left for centimeters.
    origin = world_from_b[:, None, :3, 3].double()
    view_a = _View(depth_a, intrinsics_a, _recenter(world_from_a, origin))
    view_b = _View(depth_b, intrinsics_b, _recenter(world_from_b, origin))
    squared_distance, in_b, seen_in_b = _nearest(view_a, view_b, search_radius)
    _, in_a, seen_in_a = _nearest(view_b, view_a, search_radius)

    slots = torch.arange(in_b.shape[1], device=in_b.device)
    mutual = seen_in_b & seen_in_a.gather(1, in_b) & (in_a.gather(1, in_b) == slots)
    depth = torch.minimum(view_a.depth.flatten(1), view_b.depth.flatten(1).gather(1, in_b))
    limit = (depth * relative_distance).clamp(min=max_distance) - ROUNDING * depth
    valid = mutual & (limit > 0) & (squared_distance <= limit.square())

    batch, slot_count = in_b.shape
    width_b = depth_b.shape[-1]
    pixels_a = pixel_centers(*depth_a.shape[-2:], depth_a.device).expand(batch, slot_count, 2)
    pixels_b = torch.stack([in_b % width_b, in_b.div(width_b, rounding_mode="floor")], dim=-1) + 0.5
    return ViewMatches(pixels_a, pixels_b, valid)


def default_search_radius(height: int, width: int) -> int:
    """Return the half width in pixels of the search window around a projected point.

    The radius is 2 pixels at 128x96, 5 at 320x240, 10 at 640x480. On office and kitchen frames, with 1 to 40 degrees
    between views and a limit of 2 cm, it finds at least 99.9 % of the mutual neighbors that both views see, and 99.5 %
    in crops of 1.7 times the focal length.

    >>> default_search_radius(96, 128)
    2
    """
    return -(-max(height, width) // 64)


def _radius(shape: torch.Size, search_radius: int | None) -> int:
    return default_search_radius(*shape[-2:]) if search_radius is None else search_radius


class _View:
    """A posed depth map and its points, with a mask of known depth."""

    def __init__(self, depth: Tensor, intrinsics: Tensor, world_from_camera: Tensor) -> None:
        self.intrinsics, self.world_from_camera = intrinsics, world_from_camera
        self.known = known_depth(depth)  # [B, H, W]
        self.depth = torch.where(self.known, depth, 0.0)
        self.points = unproject(self.depth, self.intrinsics, self.world_from_camera)  # [B, H, W, 3] meters


def _recenter(world_from_camera: Tensor, origin: Tensor) -> Tensor:
    center = (world_from_camera[:, None, :3, 3].double() - origin).mT.to(world_from_camera.dtype)
    top = torch.cat([world_from_camera[:, :3, :3], center], dim=-1)
    return torch.cat([top, world_from_camera[:, 3:]], dim=1)


def _nearest(source: _View, target: _View, radius: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """Find, for each source pixel, the nearest target point around its projection in the target.

    Returns:
        [B, N] squared distance (inf where no point is known), [B, N] index into the target's pixels, and [B, N] whether
        the source point is known and projects inside the target; where it does not, the other two have no meaning.
    """
    height, width = target.depth.shape[-2:]
    radius = _radius(target.depth.shape, radius)
    points = source.points.flatten(1, 2)
    pixels, depth = project(points, target.intrinsics, target.world_from_camera)
    x, y = pixels.unbind(-1)
    seen = source.known.flatten(1) & (depth > 0) & (x >= 0) & (x < width) & (y >= 0) & (y < height)
    column, row = (torch.where(seen, axis, 0.0).int() for axis in (x, y))

    squared_distance, offset = _search_window(points, target, row, column, radius)
    side = 2 * radius + 1
    row = (row + offset.div(side, rounding_mode="floor") - radius).clamp(0, height - 1)
    column = (column + offset % side - radius).clamp(0, width - 1)
    return squared_distance, (row * width + column).long(), seen


def _search_window(points: Tensor, target: _View, row: Tensor, column: Tensor, radius: int) -> tuple[Tensor, Tensor]:
    """Compare each point with the target points around (row, column); ties go to the first in row order.

    This keeps a running minimum over the offsets of the window: the windows themselves would be hundreds of times the
    size of the images. Planes of 32-bit numbers make the gathers several times faster than rows of points.

    Returns:
        [B, N] squared distance and [B, N] int32 number of the offset within the window.
    """
    surface = torch.where(target.known[..., None], target.points, torch.inf)
    padded = F.pad(surface.permute(3, 0, 1, 2), (radius,) * 4, value=torch.inf)  # [3, B, H + 2r, W + 2r]
    batch, padded_height, padded_width = padded.shape[1:]
    planes = padded.flatten(1).unbind(0)
    coordinates = points.flatten(0, 1).mT.contiguous().unbind(0)
    index_type = torch.int32 if planes[0].numel() < 2**31 else torch.int64
    image = torch.arange(batch, device=row.device, dtype=index_type)[:, None]
    corner = ((image * padded_height + row) * padded_width + column).flatten()
    search = _search_by_rows if row.is_cuda else _search_one_by_one
    nearest, offset = search(coordinates, planes, corner, 2 * radius + 1, padded_width)
    return nearest.view_as(row), offset.view_as(row)


def _search_one_by_one(
    coordinates: tuple[Tensor, ...], planes: tuple[Tensor, ...], corner: Tensor, side: int, width: int
) -> tuple[Tensor, Tensor]:
    """Search a window offset by offset, in buffers that stay in a processor's cache."""
    best = torch.full_like(coordinates[0], torch.inf)
    best_offset = torch.zeros_like(corner, dtype=torch.int32)
    index, squared_distance, difference = torch.empty_like(corner), torch.empty_like(best), torch.empty_like(best)
    for offset in range(side * side):
        torch.add(corner, offset // side * width + offset % side, out=index)
        squared_distance.zero_()
        for plane, coordinate in zip(planes, coordinates, strict=True):
            torch.index_select(plane, 0, index, out=difference)
            difference.sub_(coordinate)
            squared_distance.addcmul_(difference, difference)
        best_offset.masked_fill_(squared_distance < best, offset)
        torch.minimum(best, squared_distance, out=best)
    return best, best_offset


def _search_by_rows(
    coordinates: tuple[Tensor, ...], planes: tuple[Tensor, ...], corner: Tensor, side: int, width: int
) -> tuple[Tensor, Tensor]:
    """Search a window row by row: a GPU spends its time on starting operations, so fewer and larger ones win."""
    best = torch.full_like(coordinates[0], torch.inf)
    best_offset = torch.zeros_like(corner, dtype=torch.int32)
    columns = torch.arange(side, device=corner.device, dtype=corner.dtype)[:, None]
    for row in range(side):
        index = (corner + columns + row * width).flatten()
        squared_distance = best.new_zeros(side, len(best))
        for plane, coordinate in zip(planes, coordinates, strict=True):
            difference = plane.index_select(0, index).view_as(squared_distance).sub_(coordinate)
            squared_distance.addcmul_(difference, difference)
        nearest, offset = squared_distance.min(dim=0)
        best_offset = torch.where(nearest < best, offset.int() + row * side, best_offset)
        best = torch.minimum(best, nearest)
    return best, best_offset


def _check_pair(*views: tuple[Tensor, Tensor, Tensor]) -> None:
    batch = views[0][0].shape[:1]
    for depth, intrinsics, pose in views:
        shapes = (depth.shape[:1], intrinsics.shape, pose.shape)
        if depth.dim() != 3 or shapes != (batch, (*batch, 3, 3), (*batch, 4, 4)):
            raise ValueError(
                "expected depth [B, H, W], intrinsics [B, 3, 3] and pose [B, 4, 4] of both views, one B,"
                f" got {[list(tensor.shape) for tensor in (depth, intrinsics, pose)]}"
            )
