"""Poses of a small orbit around the fixed camera, for figures."""

import math

import torch
from torch import Tensor


def orbit_pose(azimuth_degrees: float, elevation_degrees: float, pivot_depth: float) -> Tensor:
    """Turn the fixed camera around a point on its optical axis.

    Args:
        azimuth_degrees: degrees to the right around the pivot.
        elevation_degrees: degrees upward.
        pivot_depth: depth of the point that stays in the image center, in the space's unit.

    Returns:
        [4, 4] float32 `canonical_from_camera`; the identity for zero angles.

    >>> torch.equal(orbit_pose(0.0, 0.0, 2.0), torch.eye(4))
    True
    """
    azimuth, elevation = math.radians(azimuth_degrees), math.radians(elevation_degrees)
    cos_a, sin_a, cos_e, sin_e = math.cos(azimuth), math.sin(azimuth), math.cos(elevation), math.sin(elevation)
    # y points down: a move to the right is a turn about -y, a move up is a turn about -x
    turn = torch.tensor([[cos_a, 0, -sin_a], [0, 1, 0], [sin_a, 0, cos_a]], dtype=torch.float64)
    tilt = torch.tensor([[1, 0, 0], [0, cos_e, sin_e], [0, -sin_e, cos_e]], dtype=torch.float64)
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, :3] = turn @ tilt
    pivot = torch.tensor([0, 0, pivot_depth], dtype=torch.float64)
    pose[:3, 3] = pivot - pose[:3, :3] @ pivot
    return pose.float()


def small_orbit(count: int, degrees: float, pivot_depth: float) -> Tensor:
    """Return poses on a circle around the fixed camera, all directed at the pivot.

    Args:
        count: number of poses.
        degrees: angle between each pose's optical axis and the fixed camera's, seen from the pivot.
        pivot_depth: depth of the pivot, in the space's unit.

    Returns:
        [count, 4, 4] float32 `canonical_from_camera` of each pose.

    >>> small_orbit(8, 5.0, 2.0).shape
    torch.Size([8, 4, 4])
    """
    phases = [2 * math.pi * index / count for index in range(count)]
    poses = [orbit_pose(degrees * math.cos(phase), degrees * math.sin(phase), pivot_depth) for phase in phases]
    return torch.stack(poses)
