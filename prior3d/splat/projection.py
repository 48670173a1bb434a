"""Elliptical weighted average (EWA) projection of 3D Gaussians to pixels, in the conventions of gsplat and 3DGS."""

from typing import NamedTuple

import torch
from torch import Tensor

ALPHA_THRESHOLD = 1.0 / 255.0  # weaker contributions are dropped
MAX_ALPHA = 0.999  # gsplat clamps here; the original 3DGS at 0.99
MIN_TRANSMITTANCE = 1e-4  # a Gaussian that leaves no more than this is not drawn, nor is any behind it
LOW_PASS = 0.3  # pixel^2 added to both variances, so no Gaussian falls between pixel centers
NEAR = 0.01  # meters
FIELD_OF_VIEW_MARGIN = 0.3  # share of the half field of view beyond which the slope of the perspective is frozen


class Projection(NamedTuple):
    """Gaussians in the image of one camera; a radius of 0 means not visible.

    Attributes:
        pixels: [N, 2] centers (x, y) in pixels, where the first pixel's center is (0.5, 0.5)
        conics: [N, 3] inverse 2D covariance (xx, xy, yy) in 1/pixel^2
        depths: [N] meters along the optical axis
        radii: [N, 2] half size in pixels of the box outside which alpha < 1/255; without gradient
    """

    pixels: Tensor
    conics: Tensor
    depths: Tensor
    radii: Tensor


def rotation_from_quaternion(quaternions: Tensor) -> Tensor:
    """Return the rotation matrices of quaternions of any nonzero length.

    Args:
        quaternions: [..., 4] w, x, y, z

    Returns:
        [..., 3, 3] rotations
    """
    w, x, y, z = torch.nn.functional.normalize(quaternions, dim=-1).unbind(-1)
    rows = (
        *(1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        *(2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        *(2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )
    return torch.stack(rows, -1).unflatten(-1, (3, 3))


def project_gaussians(
    means: Tensor,
    quaternions: Tensor,
    scales: Tensor,
    opacities: Tensor,
    intrinsics: Tensor,
    world_from_camera: Tensor,
    size: tuple[int, int],
) -> Projection:
    """Project Gaussians to one pinhole camera.

    A Gaussian's 2D covariance is J W S W^T J^T + 0.3 I pixel^2, where S is its covariance in the world, W the rotation
    into the camera and J the slope of the perspective at its mean. The opacity is not reduced for the 0.3 (gsplat's
    `classic` mode). All products are elementwise, so autocast and TF32 do not affect them.

    Args:
        means: [N, 3] world positions, meters
        quaternions: [N, 4] w, x, y, z, rotation from the Gaussian's axes to the world
        scales: [N, 3] standard deviations along the Gaussian's axes, meters
        opacities: [N] in [0, 1]
        intrinsics: [3, 3] pixels, no skew
        world_from_camera: [4, 4] rigid, OpenCV axes
        size: (height, width) of the image in pixels.

    Returns:
        The projection, differentiable in the first three arguments.

    Reference:
        Zwicker et al., EWA volume splatting, IEEE Visualization 2001; Kerbl et al. 2023, arXiv 2308.04079. The bounding
        box is that of Radl et al. 2024, arXiv 2402.00525.
    """
    camera_from_world = world_from_camera[:3, :3].transpose(0, 1)
    offsets = means - world_from_camera[:3, 3]
    x, y, z = (offsets[:, None, :] * camera_from_world).sum(-1).unbind(-1)
    in_front = z >= NEAR
    z_safe = torch.where(in_front, z, 1.0)  # keeps the gradients of points behind the camera finite
    axes = rotation_from_quaternion(quaternions) * scales[:, None, :]  # [N, 3 world axes, 3 own axes]
    axes = (camera_from_world[:, :, None] * axes[:, None, :, :]).sum(2)

    (fx, fy), (cx, cy) = intrinsics.diagonal()[:2], intrinsics[:2, 2]
    height, width = size
    slope_x = _frozen(x / z_safe, -cx / fx, (width - cx) / fx)
    slope_y = _frozen(y / z_safe, -cy / fy, (height - cy) / fy)
    u = (fx / z_safe)[:, None] * (axes[:, 0] - slope_x[:, None] * axes[:, 2])  # [N, 3]: covariance = (u, v)^T (u, v)
    v = (fy / z_safe)[:, None] * (axes[:, 1] - slope_y[:, None] * axes[:, 2])
    uu, uv, vv = (u * u).sum(-1), (u * v).sum(-1), (v * v).sum(-1)
    # det of the sum by Lagrange's identity: uu * vv - uv^2 would cancel for needles and for discs seen edge-on
    det = torch.linalg.cross(u, v).square().sum(-1) + LOW_PASS * (uu + vv) + LOW_PASS**2
    conics = torch.stack([(vv + LOW_PASS) / det, -uv / det, (uu + LOW_PASS) / det], -1)
    pixels = torch.stack([fx * x / z_safe + cx, fy * y / z_safe + cy], -1)
    radii = _radii(pixels, uu, vv, opacities, in_front, size)
    return Projection(pixels, conics, z, radii)


def _frozen(slope: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Keep a ray's slope within the field of view and a margin, where the affine approximation is meaningful."""
    margin = FIELD_OF_VIEW_MARGIN * (high - low) / 2
    return torch.clamp(slope, low - margin, high + margin)


@torch.no_grad()
def _radii(
    pixels: Tensor, uu: Tensor, vv: Tensor, opacities: Tensor, in_front: Tensor, size: tuple[int, int]
) -> Tensor:
    extent = (
        2 * (opacities / ALPHA_THRESHOLD).clamp(min=1).log()
    ).sqrt()  # in standard deviations, where alpha = 1/255
    radii = extent[:, None] * torch.stack([uu, vv], -1).add(LOW_PASS).sqrt()
    limits = pixels.new_tensor([size[1], size[0]])
    inside = ((pixels + radii > 0) & (pixels - radii < limits)).all(-1)
    return radii * (inside & in_front & (opacities >= ALPHA_THRESHOLD))[:, None]
