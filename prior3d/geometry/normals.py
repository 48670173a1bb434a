"""Surface normals of depth maps."""

import torch
from torch import Tensor

from prior3d.geometry.cameras import known_depth, unproject
from prior3d.geometry.precision import exact


def normals_from_depth(depth: Tensor, intrinsics: Tensor, edge: float = 0.05) -> Tensor:
    """Compute the surface normal at each pixel from the points that its neighbors see.

    Along each image axis, the surface runs from neighbor to neighbor if inverse depth does not bend at the pixel (it is
    linear on a plane), else to the neighbor with the closer depth. This keeps edges sharp. It is exact on planes.

    Args:
        depth: [..., H, W] meters along the optical axis, 0 = unknown.
        intrinsics: [..., 3, 3] pixels.
        edge: maximum jump of inverse depth to a neighbor on the same surface, as a share of itself; a quarter of it is
            the maximum bend between two neighbors.

    Returns:
        [..., 3, H, W] unit normals in camera axes, toward the camera; 0 where depth is unknown and where, along either
        axis, no neighbor is on the same surface.

    >>> intrinsics = torch.tensor([[8.0, 0, 4], [0, 8, 3], [0, 0, 1]])
    >>> normals_from_depth(torch.full((6, 8), 2.0), intrinsics)[:, 3, 4].tolist()
    [0.0, 0.0, -1.0]
    """
    if not edge > 0:
        raise ValueError(f"expected an edge above 0, got {edge}")
    depth, intrinsics = exact(depth, intrinsics)
    known = known_depth(depth)
    points = unproject(torch.where(known, depth, 1.0), intrinsics)
    inverse = torch.where(known, 1 / torch.where(known, depth, 1.0), torch.nan)
    across, down = (_along(points, inverse, axis, edge) for axis in (-1, -2))
    normal = torch.linalg.cross(down, across)
    # a visible surface faces the camera, whatever the direction of the image axes
    normal = torch.where((normal * points).sum(-1, keepdim=True) > 0, -normal, normal)
    length = normal.norm(dim=-1, keepdim=True)
    return torch.where(length > 0, normal / length, 0).movedim(-1, -3)  # nan > 0 is false: unknown stays 0


def _along(points: Tensor, inverse: Tensor, axis: int, edge: float) -> Tensor:
    """Return a vector along the surface in the direction of an image axis, [..., H, W, 3]; NaN if there is none."""
    following, preceding = (_neighbor(inverse, axis, step) - inverse for step in (1, -1))
    to_following = _neighbor(points, axis - 1, 1) - points
    from_preceding = points - _neighbor(points, axis - 1, -1)
    limit = edge * inverse
    straight = (following + preceding).abs() <= limit / 4  # false where either is NaN
    forward = following.abs().nan_to_num(torch.inf) <= preceding.abs().nan_to_num(torch.inf)
    jump = torch.where(forward, following, preceding).abs()
    single = torch.where(forward[..., None], to_following, from_preceding)
    single = torch.where((jump <= limit)[..., None], single, torch.nan)
    return torch.where(straight[..., None], to_following + from_preceding, single)


def _neighbor(values: Tensor, axis: int, step: int) -> Tensor:
    """Return at each place the value of the next or previous place along an axis; NaN beyond the border."""
    moved = values.roll(-step, axis)
    moved.select(axis, -1 if step > 0 else 0).fill_(torch.nan)
    return moved
