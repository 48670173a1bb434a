"""Lay Gaussians on the surfaces that posed depth maps show."""

from typing import Literal

import torch
from torch import Tensor

from prior3d.contracts.splatting import Gaussians
from prior3d.geometry import working_dtype

FLATNESS = 0.1  # thickness of a flat Gaussian over its width
MAX_CONTRADICTED = 0.2  # maximum number of views that look through a Gaussian, per view that sees a surface there
AT_ONCE = 1 << 22  # Gaussians times views that are compared with depth maps at once, to bound memory
PIXELS_AT_ONCE = 1 << 24  # pixels of depth maps that become points at once, to bound memory
MIN_NEIGHBORS = 4  # at a straight edge, 5 of a pixel's 8 neighbors remain; in a line of floating pixels, 2 or 3


@torch.no_grad()
def gaussians_from_depth(
    depth: Tensor,
    intrinsics: Tensor,
    world_from_camera: Tensor,
    images: Tensor | None = None,
    *,
    spacing: float | None = None,
    scale_over_spacing: float = 0.5,
    opacity: float = 0.8,
    shape: Literal["flat", "isotropic"] = "flat",
    depth_tolerance: float = 0.04,
) -> Gaussians:
    """Lay Gaussians on the surfaces that posed depth maps show, one per occupied voxel.

    A Gaussian is as wide as `scale_over_spacing` times the voxel or, where pixels are sparser than voxels, the distance
    between pixels in the closest view. Overlapping neighbors of the default opacity leave no holes. Pixels that float
    between two surfaces are dropped, and so are Gaussians that several views look through.

    Args:
        depth: [V, H, W] meters along the optical axis, 0 = unknown
        intrinsics: [3, 3] or [V, 3, 3] pixels, centers at +0.5
        world_from_camera: [V, 4, 4] OpenCV axes, meters
        images: [V, 3, H, W] in [0, 1], for the colors
        spacing: voxel edge in meters; by default the distance between pixels at the median depth.
        scale_over_spacing: standard deviation of a Gaussian over the spacing; smaller values leave holes, larger ones
            blur and let foreground grow over its outline.
        opacity: opacity of every Gaussian; where depth is noisy and surfaces are thick, a higher one shows the nearest
            noise.
        shape: `flat` discs perpendicular to the surface normal, or `isotropic`.
        depth_tolerance: maximum relative difference between two depths of one surface.

    Returns:
        The Gaussians, in the order of their voxels.

    Raises:
        ValueError: if arguments do not fit, or there is no valid depth.

    >>> intrinsics = torch.tensor([[20.0, 0, 8], [0, 20, 6], [0, 0, 1]])
    >>> pose = torch.eye(4)
    >>> depth = torch.full((1, 12, 16), 2.0)
    >>> gaussians = gaussians_from_depth(depth, intrinsics, pose[None], spacing=0.1)
    >>> gaussians.means[:, 2].unique().tolist(), gaussians.colors is None
    ([2.0], True)
    """
    _check(depth, intrinsics, world_from_camera, images, spacing, shape)
    depth = depth.to(working_dtype(depth))
    intrinsics = intrinsics.to(depth).expand(len(depth), 3, 3)
    world_from_camera = world_from_camera.to(depth)
    points, footprints, normals, known_colors = _surface_pixels(
        depth, intrinsics, world_from_camera, images, depth_tolerance, shape == "flat"
    )
    if not len(points):
        raise ValueError("expected depth maps with surfaces in them, got no valid depth")

    spacing = float(footprints.median()) if spacing is None else spacing
    voxel, count = _voxels(points, spacing)
    pixels = voxel.bincount(minlength=count)[:, None]
    means = _mean_per_voxel(points, voxel, pixels)
    finest = means.new_full((count,), torch.inf).scatter_reduce_(0, voxel, footprints, "amin")
    widths = scale_over_spacing * finest.clamp(min=spacing)
    scales, quaternions = widths[:, None].repeat(1, 3), means.new_tensor([1.0, 0, 0, 0]).repeat(count, 1)
    if normals is not None:
        scales[:, 2] *= FLATNESS
        quaternions = _quaternion_from_z_to(_mean_per_voxel(normals, voxel, pixels))
    colors = None if known_colors is None else _mean_per_voxel(known_colors, voxel, pixels)
    kept = ~_looked_through(means, depth, intrinsics, world_from_camera, depth_tolerance)
    opacities = means.new_full((count,), opacity)
    return Gaussians(means, quaternions, scales, opacities, colors)[kept]


def _check(
    depth: Tensor,
    intrinsics: Tensor,
    world_from_camera: Tensor,
    images: Tensor | None,
    spacing: float | None,
    shape: str,
) -> None:
    if shape not in ("flat", "isotropic"):
        raise ValueError(f"expected shape flat or isotropic, got {shape!r}")
    if spacing is not None and spacing <= 0:
        raise ValueError(f"expected a spacing above 0 m, got {spacing}")
    if depth.ndim != 3 or world_from_camera.shape != (len(depth), 4, 4):
        expected = "depth [V, H, W] and world_from_camera [V, 4, 4]"
        raise ValueError(f"expected {expected}, got {list(depth.shape)} and {list(world_from_camera.shape)}")
    if list(intrinsics.shape) not in ([3, 3], [len(depth), 3, 3]):
        raise ValueError(f"expected intrinsics [3, 3] or {[len(depth), 3, 3]}, got {list(intrinsics.shape)}")
    if images is not None and images.shape != (len(depth), 3, *depth.shape[1:]):
        raise ValueError(f"expected images {[len(depth), 3, *depth.shape[1:]]}, got {list(images.shape)}")


def on_surface(depth: Tensor, tolerance: float) -> Tensor:
    """Return the pixels whose depth agrees with one side of an edge, unlike those that float between two surfaces.

    Args:
        depth: [V, H, W] meters, 0 = unknown
        tolerance: maximum relative difference in depth between neighbors on one surface.

    Returns:
        [V, H, W] true where the depth is valid and at least 4 of the 8 neighbors agree
    """
    height, width = depth.shape[1:]
    around = torch.nn.functional.pad(depth[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
    agreeing = torch.zeros_like(depth, dtype=torch.int8)
    for dy, dx in ((dy, dx) for dy in range(3) for dx in range(3) if (dy, dx) != (1, 1)):
        neighbor = around[:, dy : dy + height, dx : dx + width]
        agreeing += (neighbor - depth).abs() < tolerance * depth
    return (depth > 0) & (agreeing >= MIN_NEIGHBORS)


def _surface_pixels(
    depth: Tensor,
    intrinsics: Tensor,
    world_from_camera: Tensor,
    images: Tensor | None,
    tolerance: float,
    with_normals: bool,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Return the P pixels on surfaces: points [P, 3], footprints [P] in meters, normals [P, 3] and colors [P, 3]."""
    at_once = max(1, PIXELS_AT_ONCE // max(1, depth.shape[1] * depth.shape[2]))
    parts = []
    for start in range(0, max(1, len(depth)), at_once):
        views = slice(start, start + at_once)
        maps, cameras, poses = depth[views], intrinsics[views], world_from_camera[views]
        known = on_surface(maps, tolerance).flatten().nonzero()[:, 0]  # once: a mask is counted at every use
        points = _world_points(maps, cameras, poses)
        part = [points.flatten(0, 2)[known], (maps / cameras[:, 0, 0, None, None]).flatten()[known]]
        part.append(_normals(points, poses).flatten(0, 2)[known] if with_normals else None)
        part.append(None if images is None else images[views].to(depth).movedim(1, -1).flatten(0, 2)[known])
        parts.append(part)
    return tuple(None if group[0] is None else torch.cat(group) for group in zip(*parts, strict=True))


def _world_points(depth: Tensor, intrinsics: Tensor, world_from_camera: Tensor) -> Tensor:
    """Return the pixels' world points, by elementwise products: exact under autocast and TF32."""  # [V, H, W, 3]
    # not geometry.unproject, which divides by the determinant for skewed axes and would change lifted scenes
    height, width = depth.shape[1:]
    y = torch.arange(height, device=depth.device, dtype=depth.dtype)[:, None] + 0.5
    x = torch.arange(width, device=depth.device, dtype=depth.dtype) + 0.5
    cameras = intrinsics.expand(len(depth), 3, 3)[:, :, :, None, None]
    along_x = (x - cameras[:, 0, 2]) / cameras[:, 0, 0] * depth
    along_y = (y - cameras[:, 1, 2]) / cameras[:, 1, 1] * depth
    in_camera = torch.stack([along_x, along_y, depth], -1)
    poses = world_from_camera[:, None, None]
    return (poses[..., :3, :3] * in_camera[..., None, :]).sum(-1) + poses[..., :3, 3]


def _voxels(points: Tensor, edge: float) -> tuple[Tensor, int]:
    """Return the index of each point's voxel among the occupied ones, and their number."""
    cells = (points / edge).floor().long()
    cells -= cells.amin(0)
    _, y_count, z_count = (cells.amax(0) + 1).tolist()
    occupied, voxel = ((cells[:, 0] * y_count + cells[:, 1]) * z_count + cells[:, 2]).unique(return_inverse=True)
    return voxel, len(occupied)


def _mean_per_voxel(values: Tensor, voxel: Tensor, pixels: Tensor) -> Tensor:
    """Return the mean of the pixels' values [P, C] in each voxel, which holds `pixels` [M, 1] of them."""
    return values.new_zeros(len(pixels), values.shape[-1]).index_add_(0, voxel, values) / pixels


def _looked_through(
    means: Tensor, depth: Tensor, intrinsics: Tensor, world_from_camera: Tensor, tolerance: float
) -> Tensor:
    """Return the Gaussians at which too many views see free space, relative to the views that see a surface."""  # [N]
    free, surface = (torch.zeros_like(means[:, 0]) for _ in range(2))
    height, width = depth.shape[1:]
    at_once = max(1, AT_ONCE // max(1, len(means)))
    views = (depth, intrinsics.expand(len(depth), 3, 3), world_from_camera)
    for maps, cameras, poses in zip(*(part.split(at_once) for part in views), strict=True):
        offsets = means - poses[:, None, :3, 3]
        x, y, z = (offsets[..., None] * poses[:, None, :3, :3]).sum(2).unbind(-1)  # [views, N]
        focal, center = cameras.diagonal(dim1=1, dim2=2), cameras[:, :, 2]
        column = (x / z * focal[:, :1] + center[:, :1]).floor()
        row = (y / z * focal[:, 1:2] + center[:, 1:2]).floor()
        inside = (z > 0) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
        index = torch.where(inside, row * width + column, 0).long()
        measured = torch.where(inside, maps.flatten(1).gather(1, index), 0)
        known = measured > 0
        free += (known & (z < measured * (1 - tolerance))).sum(0)  # a camera knows nothing about points behind it
        surface += (known & ((z - measured).abs() <= tolerance * measured)).sum(0)
    return free > MAX_CONTRADICTED * surface


def _normals(points: Tensor, world_from_camera: Tensor) -> Tensor:
    """Return unit normals toward the camera, from differences of neighboring pixels' points."""  # [V, H, W, 3]
    around = torch.nn.functional.pad(points.movedim(-1, 1), (1, 1, 1, 1), mode="replicate").movedim(1, -1)
    across, down = around[:, 1:-1, 2:] - around[:, 1:-1, :-2], around[:, 2:, 1:-1] - around[:, :-2, 1:-1]
    normals = torch.nn.functional.normalize(torch.linalg.cross(down, across), dim=-1)
    toward = world_from_camera[:, None, None, :3, 3] - points
    return torch.where((normals * toward).sum(-1, keepdim=True) < 0, -normals, normals)


def _quaternion_from_z_to(directions: Tensor) -> Tensor:
    """Return the shortest rotations from the z axis; the opposite direction (or none) turns half a circle about x."""
    x, y, z = torch.nn.functional.normalize(directions, dim=-1).unbind(-1)
    quaternions = torch.stack([1 + z, -y, x, torch.zeros_like(z)], -1)
    degenerate = quaternions.norm(dim=-1, keepdim=True) < 1e-4
    half_turn = quaternions.new_tensor([0.0, 1, 0, 0])
    return torch.where(degenerate, half_turn, torch.nn.functional.normalize(quaternions, dim=-1))
