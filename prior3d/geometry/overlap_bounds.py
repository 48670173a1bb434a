"""Upper bounds of the overlap of views, from poses and a few spheres: which pairs need not be compared."""

import math

import numpy as np
import torch
from torch import Tensor

from prior3d.geometry.cameras import MIN_DEPTH
from prior3d.geometry.overlap_samples import AnyDepthMaps, Samples
from prior3d.geometry.precision import exact

_ROUNDING = 1e-6
"""Relative error that is granted to float32; four operations in a row err by at most a quarter of it."""


@torch.no_grad()
def overlap_bounds(
    depth: AnyDepthMaps,
    intrinsics: Tensor,
    world_from_camera: Tensor,
    max_distance: float = 0.02,
    relative_distance: float = 0.01,
    samples: int = 1024,
) -> Tensor:
    """Return numbers that no pair's `pairwise_overlap` exceeds, from frustums and poses, without comparing surfaces.

    Why no overlap is larger: an image is split into 4 x 4 tiles, and a sphere holds the points that a tile's samples
    show. A sample of frame a is matched in frame b only if (1) its pixel in b lies in the image and (2) a known depth
    of b is within the sample's distance limit of its own depth in b.

    (1) means that the point is on the inner side of the four planes through b's center and the borders of its image:
    with (k00, k01, k02) the first row of the intrinsics, u >= 0 is k00 x + k01 y + k02 z >= 0 where z is positive, and
    u < W likewise. (2) means that z is at least the nearest known depth of b less the limit, and at most the farthest
    plus the limit. A sphere that is wholly outside of one of the six planes holds no matched sample. The samples of all
    other tiles may be matched: their number, in both directions, divided by the known samples as in the overlap, bounds
    it, also after the rounding of the quotient, which is monotonic.

    The points compared by `pairwise_overlap` are rounded, and so each plane is moved outwards by more than what that
    can change: a millionth of the distances for the transformation, a millionth of the pixel coordinates for the
    projection, and what the smallest divisor of a projection, `MIN_DEPTH`, changes right in front of a camera.

    Args:
        depth: as in `pairwise_overlap`; every map is asked for twice.
        intrinsics: [F, 3, 3] pixels.
        world_from_camera: [F, 4, 4] poses, meters.
        max_distance: distance limit in meters.
        relative_distance: distance limit as a share of the depth.
        samples: approximate number of pixels per view.

    Returns:
        [F, F] float32 on the CPU, symmetric.

    >>> depth, poses = torch.full((2, 6, 8), 2.0), torch.eye(4).repeat(2, 1, 1)
    >>> poses[1, 0, 3] = 9.0  # far beside the first
    >>> intrinsics = torch.tensor([[8.0, 0, 4], [0, 8, 3], [0, 0, 1]]).repeat(2, 1, 1)
    >>> overlap_bounds(depth, intrinsics, poses)
    tensor([[1., 0.],
            [0., 1.]])
    """
    views = Samples(depth, intrinsics, world_from_camera, samples, max_distance, relative_distance)
    ranges = [_range(depth[frame]) for frame in range(len(views.known))]
    planes = _planes(views, torch.tensor(ranges, dtype=torch.float64))
    # In NumPy: threads of torch or of matrix products would wait for each other thousands of times.
    centers, radii, limits, counts = _spheres(views)
    away = np.linalg.norm(centers, axis=-1) + radii
    places = np.linalg.norm(views.camera_from_world[:, :3, 3].double().numpy(), axis=-1)
    frames = len(counts)
    seen = np.zeros((frames, frames), np.float32)  # [b, a] samples of a that may be matched in b
    for b in range(frames):
        normals, offsets, slack, per_meter = (values[b].numpy() for values in planes)
        with np.errstate(invalid="ignore"):
            inside = sum(centers[:, axis, None] * normals[:, axis] for axis in range(3)) + offsets
            inside += radii[:, None] * np.linalg.norm(normals, axis=-1)
            inside += slack + per_meter * (away + places[b])[:, None]
            inside[:, 4:] += limits[:, None] * (1 + _ROUNDING)
            outside = (inside < 0).any(-1)  # not where it is nan
        seen[b] = (~outside.reshape(frames, -1) * counts).sum(-1)
    both = torch.from_numpy(seen + seen.T)
    return both / (views.known[:, None] + views.known).clamp(min=1)


def _spheres(views: Samples) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return centers [F * T, 3], radii and largest distance limits [F * T], and known samples [F, T] of all tiles."""
    tiles = views.tile.numpy()
    found = []
    for tile in np.unique(tiles):
        inside = np.flatnonzero(tiles == tile)
        points = views.points.numpy().take(inside, axis=2).astype(np.float64)
        center = (np.fmin.reduce(points, axis=2) + np.fmax.reduce(points, axis=2)) / 2  # of the known ones
        away = np.sqrt(np.square(points - center[..., None]).sum(0))
        limit = views.limit.numpy().take(inside, axis=1).max(1)
        found.append((center.T, np.fmax.reduce(away, axis=1), limit, np.count_nonzero(~np.isnan(points[0]), axis=1)))
    centers, radii, limits, counts = (np.stack(parts, axis=1) for parts in zip(*found, strict=True))
    return centers.reshape(-1, 3), radii.ravel(), limits.ravel(), counts


def _planes(views: Samples, ranges: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return six planes of each frame: inner normals [F, 6, 3] in world axes, and offsets [F, 6].

    The others are what rounding can change, in units of the normals: lengths [F, 6], and lengths per meter of distance
    from the origin [F, 6]. `ranges` are the nearest and farthest known depth [F, 2] in meters.
    """
    k, pose = views.intrinsics.double(), views.camera_from_world.double()
    size = k.new_tensor([views.size[1], views.size[0]])
    lower, upper = k[:, :2], -k[:, :2]
    upper[..., 2] += size
    along = k.new_tensor([[0.0, 0, 1], [0, 0, -1]]).expand(len(k), 2, 3)
    inward = torch.cat([lower, upper, along], dim=1)  # left, top, right, bottom, near, far
    normals, offsets = inward @ pose[:, :3, :3], (inward @ pose[:, :3, 3:]).squeeze(-1)
    offsets[:, 4:] += ranges * k.new_tensor([-1.0, 1.0])
    extent = k[:, :2, 2].abs() + size  # [F, 2] pixels from the principal point to anywhere in the image, at most
    slope = extent.sum(-1, keepdim=True) / torch.linalg.svdvals(torch.nan_to_num(k[:, :2, :2]))[:, 1:]
    pixels = k[:, :2, :2].norm(dim=-1) * slope + extent
    none = torch.zeros_like(extent)
    slack = torch.cat([extent, extent, none], dim=1) * (2 * MIN_DEPTH)
    return normals, offsets, slack, _ROUNDING * (normals.norm(dim=-1) + torch.cat([pixels, pixels, none], dim=1))


def _range(depth: Tensor) -> tuple[float, float]:
    """Return a range that holds all known depth of a map: inf and -inf for none."""
    values = exact(depth)[0].cpu().numpy()
    with np.errstate(all="ignore"):
        known = values / (values > 0)  # unknown becomes nan or infinite
    nearest, farthest = np.fmin.reduce(known, axis=None), np.fmax.reduce(known, axis=None)
    return (math.inf, -math.inf) if math.isnan(nearest) else (float(nearest), float(farthest))
