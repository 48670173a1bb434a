"""Overlap: how much of the same surface two posed depth maps show, used to mine view pairs."""

import math

import torch
from torch import Tensor

from prior3d.contracts.runner import Progress, silent
from prior3d.geometry.cameras import known_depth, project, unproject_pixels
from prior3d.geometry.precision import exact

WINDOW_STEPS = 7
"""A sample is compared with 7 x 7 depth pixels, spread over the disc in which a point within the limit can lie, so the
result depends little on resolution or focal length. On real office and kitchen frames at 640x480, with limits of 2 cm
and of 2 cm or 1 %, it is 0.00 to 0.03 below a k-d tree over all pixels, whose values range from 0.07 to 0.97."""


@torch.no_grad()
def pairwise_overlap(
    depth: Tensor,
    intrinsics: Tensor,
    world_from_camera: Tensor,
    first: Tensor,
    second: Tensor,
    max_distance: float = 0.02,
    relative_distance: float = 0.01,
    samples: int = 1024,
    chunk: int = 256,
    progress: Progress = silent,
) -> Tensor:
    """Estimate the overlap of many view pairs of one scene: (matched in a + matched in b) / (valid in a + valid in b).

    A pixel is matched if the other view measured a surface point within `max(max_distance, relative_distance * z)` of
    its 3D point, where z is its depth in its own view. Only a regular grid of a view's pixels is tested, but against
    the other view's depth at full resolution, which affects the result and is never interpolated.

    Args:
        depth: [F, H, W] meters along the optical axis, 0 (or nan, inf) = unknown.
        intrinsics: [F, 3, 3] pixels, centers at +0.5.
        world_from_camera: [F, 4, 4] poses, meters. A pose that is not finite overlaps with nothing.
        first: [P] int64, frame a of each pair.
        second: [P] int64, frame b of each pair.
        max_distance: distance limit in meters.
        relative_distance: distance limit as a share of the depth; 0 is Pri3D's definition, 0.01 suits sensors.
        samples: approximate number of pixels to test per view, unknown ones included.
        chunk: number of pairs to process at once, which limits the memory.
        progress: reports how many chunks are done.

    Returns:
        [P] float32, 0 to 1; 0 for pairs of frames without any known depth.

    Reference:
        Hou et al., Pri3D, 2021, arXiv 2104.11225. Its code compares clouds thinned to 5 cm within 7.5 cm and takes the
        larger of the two directions; this function computes the measure that the paper defines.

    >>> depth, poses = torch.full((2, 6, 8), 2.0), torch.eye(4).repeat(2, 1, 1)
    >>> intrinsics = torch.tensor([[8.0, 0, 4], [0, 8, 3], [0, 0, 1]]).repeat(2, 1, 1)
    >>> pairwise_overlap(depth, intrinsics, poses, torch.tensor([0]), torch.tensor([1]))
    tensor([1.])
    """
    if depth.dim() != 3:
        raise ValueError(f"expected depth of shape [F, H, W], got {list(depth.shape)}")
    count = len(depth)
    if intrinsics.shape != (count, 3, 3) or world_from_camera.shape != (count, 4, 4):
        shapes = f"{list(intrinsics.shape)} and {list(world_from_camera.shape)}"
        raise ValueError(f"expected intrinsics [{count}, 3, 3] and world_from_camera [{count}, 4, 4], got {shapes}")
    if first.shape != second.shape or first.dim() != 1:
        raise ValueError(f"expected first and second of one shape [P], got {list(first.shape)}, {list(second.shape)}")
    if samples < 1 or chunk < 1:
        raise ValueError(f"expected samples >= 1 and chunk >= 1, got {samples} and {chunk}")
    frames = _Frames(depth, intrinsics, world_from_camera, samples, max_distance, relative_distance)
    chunks = list(zip(first.split(chunk), second.split(chunk), strict=True))
    overlaps = [frames.overlap(a, b) for a, b in progress(chunks, "comparing views", len(chunks))]
    return torch.cat(overlaps) if overlaps else depth.new_zeros(0, dtype=torch.float32)


class _Frames:
    """The frames of a scene, each with its grid of sampled points."""

    def __init__(
        self,
        depth: Tensor,
        intrinsics: Tensor,
        world_from_camera: Tensor,
        samples: int,
        max_distance: float,
        relative_distance: float,
    ) -> None:
        # The origin moves to a camera: far from the origin, float32 has no digits left for centimeters.
        centers = world_from_camera[:, :3, 3].double()
        finite = torch.isfinite(world_from_camera).all(-1).all(-1)
        origin = centers[finite][:1] if finite.any() else centers[:1]
        poses = world_from_camera.double().clone()
        poses[:, :3, 3] = centers - origin
        # There are many full-size frames: cameras in float64 must not widen them.
        (self.depth,) = exact(depth)
        self.intrinsics, self.poses = (cameras.to(self.depth.dtype) for cameras in (intrinsics, poses))

        row, column = _grid(*depth.shape[1:], samples, depth.device)
        sampled = self.depth[:, row, column]
        self.known = known_depth(sampled) & finite[:, None]  # [F, S]
        sampled = torch.where(self.known, sampled, 0.0)
        pixels = torch.stack([column, row], dim=-1) + 0.5
        self.points = unproject_pixels(pixels, sampled, self.intrinsics, self.poses)  # [F, S, 3] meters
        self.limit = (relative_distance * sampled).clamp(min=max_distance)  # [F, S] meters

    def overlap(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the overlap [P] of the pairs of frames first [P], second [P]."""
        matched = self._count_matched(first, second) + self._count_matched(second, first)
        counted = self.known[first].sum(-1) + self.known[second].sum(-1)
        return matched.float() / counted.clamp(min=1)

    def _count_matched(self, source: Tensor, target: Tensor) -> Tensor:
        """Return the number [P] of samples of the source frames on a surface that the target frames measured."""
        height, width = self.depth.shape[1:]
        pixels, depth = project(self.points[source], self.intrinsics[target], self.poses[target])
        x, y = pixels.unbind(-1)
        seen = self.known[source] & (depth > 0) & (x >= 0) & (x < width) & (y >= 0) & (y < height)
        pair, sample = seen.nonzero(as_tuple=True)
        limit = self.limit[source[pair], sample]
        met = self._meets_surface(target[pair], pixels[pair, sample], depth[pair, sample], limit)
        return torch.bincount(pair[met], minlength=len(source))

    def _meets_surface(self, frame: Tensor, pixels: Tensor, depth: Tensor, limit: Tensor) -> Tensor:
        """Return whether [N] the surface measured in `frame` [N] comes near the points at `pixels` [N, 2], `depth` [N].

        `depth` and `limit` [N] are in meters.
        """
        height, width = self.depth.shape[1:]
        points = unproject_pixels(pixels[:, None], depth[:, None], self.intrinsics[frame]).squeeze(1)
        focal = self.intrinsics[:, :2, :2].square().sum(-1).amax(-1).sqrt()
        reach = (focal[frame] * limit / depth)[:, None]  # [N, 1] maximum pixel distance of a point at the limit
        met = torch.zeros_like(limit, dtype=torch.bool)
        # k: the samples without a match so far.
        k = torch.arange(len(limit), device=limit.device)
        for offset in _offsets(WINDOW_STEPS, limit.device):
            cell = (pixels[k] + (reach[k] * offset).round()).floor().long()
            column, row = cell.unbind(-1)
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            surface_depth = self.depth[frame[k], row.clamp(0, height - 1), column.clamp(0, width - 1)]
            center = (cell + 0.5)[:, None]
            surface = unproject_pixels(center, surface_depth[:, None], self.intrinsics[frame[k]]).squeeze(1)
            near = (surface - points[k]).square().sum(-1) <= limit[k].square()
            hit = inside & known_depth(surface_depth) & near
            met[k[hit]] = True
            k = k[~hit]
        return met


def _offsets(steps: int, device: torch.device) -> list[Tensor]:
    """Return offsets [2] between -1 and 1 on a square grid, the middle first: it settles most samples."""
    fractions = torch.linspace(-1, 1, steps + 2, device=device)[1:-1]
    grid = torch.cartesian_prod(fractions, fractions)
    return list(grid[grid.norm(dim=-1).argsort(stable=True)])


def _grid(height: int, width: int, samples: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return rows and columns of about `samples` pixels, evenly spread."""
    spacing = max(1.0, math.sqrt(height * width / samples))
    row, column = (
        ((torch.arange(count, device=device) + 0.5) * size / count).long()
        for size, count in ((height, max(1, round(height / spacing))), (width, max(1, round(width / spacing))))
    )
    return row.repeat_interleave(len(column)), column.repeat(len(row))
