"""Pinhole cameras: projection in both directions, poses and homographies."""

import torch
from torch import Tensor

from prior3d.geometry.precision import exact

MIN_DEPTH = 1e-4
"""Minimum divisor of a projection, in meters; it keeps points at or behind the camera finite."""


def known_depth(depth: Tensor) -> Tensor:
    """Return which depths are known: finite and above zero.

    Args:
        depth: [...] meters.

    Returns:
        [...] bool.

    >>> known_depth(torch.tensor([1.5, 0.0, float("nan")]))
    tensor([ True, False, False])
    """
    return torch.isfinite(depth) & (depth > 0)


def pixel_centers(height: int, width: int, device: torch.device | None = None) -> Tensor:
    """Return the pixel centers of an image in row order.

    Returns:
        [height * width, 2] float32 pixels (x, y); the first is (0.5, 0.5).

    >>> pixel_centers(1, 2)
    tensor([[0.5000, 0.5000],
            [1.5000, 0.5000]])
    """
    rows = torch.arange(height, device=device, dtype=torch.float32) + 0.5
    columns = torch.arange(width, device=device, dtype=torch.float32) + 0.5
    return torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1).flatten(0, 1)


def unproject(depth: Tensor, intrinsics: Tensor, world_from_camera: Tensor | None = None) -> Tensor:
    """Lift every pixel of depth maps to 3D; differentiable in all arguments.

    Args:
        depth: [..., H, W] meters along the optical axis. Unknown depth (0) gives the camera center: mask it out.
        intrinsics: [..., 3, 3] pixels, last row 0 0 1; skew, negative and rotated axes are allowed.
        world_from_camera: [..., 4, 4] pose, meters; without it the points stay in camera axes.

    Returns:
        [..., H, W, 3] points in meters, in world axes if a pose is given.

    >>> intrinsics = torch.tensor([[50.0, 0, 2], [0, 50, 1], [0, 0, 1]])
    >>> points = unproject(torch.full((2, 4), 3.0), intrinsics)
    >>> points.shape, points[0, 0]
    (torch.Size([2, 4, 3]), tensor([-0.0900, -0.0300,  3.0000]))
    """
    if depth.dim() < 2:
        raise ValueError(f"expected depth of shape [..., H, W], got {list(depth.shape)}")
    height, width = depth.shape[-2:]
    pixels = pixel_centers(height, width, depth.device)
    points = unproject_pixels(pixels, depth.flatten(-2), intrinsics, world_from_camera)
    return points.unflatten(-2, (height, width))


def unproject_pixels(
    pixels: Tensor, depth: Tensor, intrinsics: Tensor, world_from_camera: Tensor | None = None
) -> Tensor:
    """Lift given pixels with known depth to 3D; differentiable in all arguments.

    Args:
        pixels: [..., N, 2] (x, y), centers at +0.5.
        depth: [..., N] meters along the optical axis.
        intrinsics: [..., 3, 3] pixels, last row 0 0 1.
        world_from_camera: [..., 4, 4] pose, meters; without it the points stay in camera axes.

    Returns:
        [..., N, 3] points in meters, in world axes if a pose is given.

    >>> intrinsics = torch.tensor([[50.0, 0, 2], [0, 50, 1], [0, 0, 1]])
    >>> unproject_pixels(torch.tensor([[2.0, 1.0]]), torch.tensor([3.0]), intrinsics)
    tensor([[0., 0., 3.]])
    """
    _check_cameras(intrinsics, world_from_camera)
    pixels, depth, intrinsics, world_from_camera = exact(pixels, depth, intrinsics, world_from_camera)
    k = intrinsics[..., None, :, :]
    x, y = pixels[..., 0] - k[..., 0, 2], pixels[..., 1] - k[..., 1, 2]
    determinant = k[..., 0, 0] * k[..., 1, 1] - k[..., 0, 1] * k[..., 1, 0]
    ray_x = (k[..., 1, 1] * x - k[..., 0, 1] * y) / determinant
    ray_y = (k[..., 0, 0] * y - k[..., 1, 0] * x) / determinant
    ray_x, ray_y, depth = torch.broadcast_tensors(ray_x, ray_y, depth)
    points = torch.stack([ray_x * depth, ray_y * depth, depth], dim=-1)
    return points if world_from_camera is None else _transform(points, world_from_camera)


def project(points: Tensor, intrinsics: Tensor, world_from_camera: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Project points to images; differentiable in all arguments.

    Args:
        points: [..., N, 3] meters, in world axes if a pose is given, else in camera axes.
        intrinsics: [..., 3, 3] pixels, last row 0 0 1.
        world_from_camera: [..., 4, 4] pose of the camera, meters.

    Returns:
        [..., N, 2] pixels (x, y) and [..., N] depth in meters along the optical axis. Points with depth <= 0 are behind
        the camera: their pixels are finite, mostly far outside the image, and have no meaning.

    >>> intrinsics = torch.tensor([[50.0, 0, 2], [0, 50, 1], [0, 0, 1]])
    >>> pixels, depth = project(torch.tensor([[0.0, 0.0, 3.0]]), intrinsics)
    >>> pixels.tolist(), depth.tolist()
    ([[2.0, 1.0]], [3.0])
    """
    _check_cameras(intrinsics, world_from_camera)
    points, intrinsics, world_from_camera = exact(points, intrinsics, world_from_camera)
    if world_from_camera is not None:
        points = _transform(points, invert_rigid(world_from_camera))
    depth = points[..., 2]
    x, y = (points[..., :2] / depth.clamp(min=MIN_DEPTH)[..., None]).unbind(-1)
    k = intrinsics[..., None, :, :]
    pixel_x = k[..., 0, 0] * x + k[..., 0, 1] * y + k[..., 0, 2]
    pixel_y = k[..., 1, 0] * x + k[..., 1, 1] * y + k[..., 1, 2]
    pixels = torch.stack([pixel_x, pixel_y], dim=-1)
    return pixels, depth.expand(pixels.shape[:-1])


def invert_rigid(world_from_camera: Tensor) -> Tensor:
    """Invert rotation-and-translation matrices.

    Args:
        world_from_camera: [..., 4, 4] poses with an orthonormal rotation and the last row 0 0 0 1.

    Returns:
        [..., 4, 4] camera_from_world.

    >>> pose = torch.eye(4)
    >>> pose[0, 3] = 2.0
    >>> invert_rigid(pose)[0, 3].item()
    -2.0
    """
    (pose,) = exact(world_from_camera)
    rotation = pose[..., :3, :3].mT
    translation = -(rotation * pose[..., None, :3, 3]).sum(-1, keepdim=True)
    return torch.cat([torch.cat([rotation, translation], dim=-1), pose[..., 3:, :]], dim=-2)


def view_angle(world_from_a: Tensor, world_from_b: Tensor) -> Tensor:
    """Return the angle between the optical axes of two cameras.

    Args:
        world_from_a: [..., 4, 4] pose of a.
        world_from_b: [..., 4, 4] pose of b.

    Returns:
        [...] degrees, 0 to 180.

    >>> view_angle(torch.eye(4), torch.diag(torch.tensor([-1.0, 1, -1, 1]))).item()
    180.0
    """
    world_from_a, world_from_b = exact(world_from_a, world_from_b)
    axis_a, axis_b = torch.broadcast_tensors(world_from_a[..., :3, 2], world_from_b[..., :3, 2])
    # The arc cosine loses half the digits near 0 and 180 degrees.
    sine = torch.linalg.cross(axis_a, axis_b).norm(dim=-1)
    return torch.rad2deg(torch.atan2(sine, (axis_a * axis_b).sum(-1)))


def baseline(world_from_a: Tensor, world_from_b: Tensor) -> Tensor:
    """Return the distance between the centers of two cameras.

    Args:
        world_from_a: [..., 4, 4] pose of a, meters.
        world_from_b: [..., 4, 4] pose of b, meters.

    Returns:
        [...] meters.

    >>> pose = torch.eye(4)
    >>> pose[0, 3] = 2.0
    >>> baseline(torch.eye(4), pose).item()
    2.0
    """
    world_from_a, world_from_b = exact(world_from_a, world_from_b)
    return (world_from_a[..., :3, 3] - world_from_b[..., :3, 3]).norm(dim=-1)


def warp_pixels(homography: Tensor, pixels: Tensor) -> Tensor:
    """Map pixels with a homography, for example that of a crop.

    Args:
        homography: [..., 3, 3] maps source pixels to target pixels (`crop_from_image`).
        pixels: [..., N, 2] (x, y) in the source, centers at +0.5.

    Returns:
        [..., N, 2] pixels in the target. Points on the horizon of a projective map are not finite.

    >>> warp_pixels(torch.diag(torch.tensor([2.0, 2, 1])), torch.tensor([[0.5, 1.5]])).tolist()
    [[1.0, 3.0]]
    """
    homography, pixels = exact(homography, pixels)
    h = homography[..., None, :, :]
    x, y = pixels.unbind(-1)
    scale = h[..., 2, 0] * x + h[..., 2, 1] * y + h[..., 2, 2]
    warped_x = (h[..., 0, 0] * x + h[..., 0, 1] * y + h[..., 0, 2]) / scale
    warped_y = (h[..., 1, 0] * x + h[..., 1, 1] * y + h[..., 1, 2]) / scale
    return torch.stack([warped_x, warped_y], dim=-1)


def _transform(points: Tensor, target_from_source: Tensor) -> Tensor:
    t = target_from_source[..., None, :3, :]
    x, y, z = points[..., None].unbind(-2)
    return t[..., 0] * x + t[..., 1] * y + t[..., 2] * z + t[..., 3]


def _check_cameras(intrinsics: Tensor, world_from_camera: Tensor | None) -> None:
    if intrinsics.shape[-2:] != (3, 3):
        raise ValueError(f"expected intrinsics of shape [..., 3, 3], got {list(intrinsics.shape)}")
    if world_from_camera is not None and world_from_camera.shape[-2:] != (4, 4):
        raise ValueError(f"expected world_from_camera of shape [..., 4, 4], got {list(world_from_camera.shape)}")
