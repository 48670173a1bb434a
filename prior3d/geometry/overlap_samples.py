"""Sampled pixels of the views of a scene as 3D points, and their cameras as tables: what overlap is computed from."""

import math
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from prior3d.geometry.cameras import invert_rigid, known_depth, unproject_pixels
from prior3d.geometry.precision import working_dtype

AnyDepthMaps = Tensor | Sequence[Tensor]
"""Depth maps of F frames: a tensor [F, H, W], or a sequence that makes map [H, W] number i when it is asked for."""

Numeric = TypeVar("Numeric", np.ndarray, Tensor)


class Samples:
    """A regular grid of each frame's pixels, as points, with what comparing them with other frames needs.

    Everything is on the CPU until `to` moves it: cameras prepared there are the same on every device, bit by bit.

    Args:
        depth: depth maps of F frames, meters.
        intrinsics: [F, 3, 3] pixels.
        world_from_camera: [F, 4, 4] poses, meters.
        count: approximate number of pixels per frame, S in all.
        max_distance: distance limit in meters.
        relative_distance: distance limit as a share of the depth.

    Attributes:
        size: height and width of the depth maps.
        points: [3, F, S] meters, world axes around the first camera; nan where depth is unknown.
        limit: [F, S] distance limits, meters.
        known: [F] number of samples with known depth.
        tile: [S] number of the square of the image that a sample is in.
        intrinsics, camera_from_world: [F, 3, 3] and [F, 4, 4].
        cameras: [F, 20] numbers of each camera, see `CameraNumbers`.
    """

    TILES = 4
    """Number of tiles along either side of an image."""

    def __init__(
        self,
        depth: AnyDepthMaps,
        intrinsics: Tensor,
        world_from_camera: Tensor,
        count: int,
        max_distance: float,
        relative_distance: float,
    ) -> None:
        # The origin moves to a camera: far from the origin, float32 has no digits left for centimeters.
        poses = world_from_camera.detach().double().cpu().clone()
        finite = torch.isfinite(poses).all(-1).all(-1)
        origin = poses[finite][:1, :3, 3] if finite.any() else poses[:1, :3, 3]
        poses[:, :3, 3] -= origin
        # Cameras in float64 must not widen the points: there are many.
        self.dtype = working_dtype(depth[0])
        self.size = tuple(depth[0].shape)
        self.intrinsics, poses = (cameras.detach().cpu().to(self.dtype) for cameras in (intrinsics, poses))
        self.camera_from_world = invert_rigid(poses)
        self.cameras = _camera_table(self.intrinsics, self.camera_from_world)

        row, column = _grid(*self.size, count)
        self.tile = _tile(row, self.size[0], self.TILES) * self.TILES + _tile(column, self.size[1], self.TILES)
        sampled = torch.empty(len(poses), len(row), dtype=self.dtype)
        at_row, at_column = (side.to(depth[0].device) for side in (row, column))
        for frame in range(len(poses)):
            sampled[frame] = depth[frame][at_row, at_column]
        known = known_depth(sampled) & finite[:, None]
        sampled = torch.where(known, sampled, 0.0)
        pixels = torch.stack([column, row], dim=-1) + 0.5
        points = unproject_pixels(pixels, sampled, self.intrinsics, poses)
        self.points = torch.where(known[..., None], points, math.nan).permute(2, 0, 1).contiguous()
        self.limit = (relative_distance * sampled).clamp(min=max_distance)
        self.known = known.sum(-1)

    def to(self, device: torch.device) -> "Samples":
        """Move the points, limits and camera tables to a device; return self."""
        self.points, self.limit, self.cameras = (t.to(device) for t in (self.points, self.limit, self.cameras))
        return self


class CameraNumbers:
    """The numbers of one camera, or of many as tensors that broadcast; for NumPy and torch alike.

    Operations and their order are those of `prior3d.geometry.cameras`, so that results are the same bit by bit.

    Args:
        table: [..., 20] rows of `Samples.cameras`.
    """

    def __init__(self, table: np.ndarray | Tensor) -> None:
        numbers = [table[..., column] for column in range(table.shape[-1])]
        self.axes = numbers[0:4], numbers[4:8], numbers[8:12]
        self.fx, self.skew, self.cx, self.slant, self.fy, self.cy, self.determinant, self.focal = numbers[12:]

    def transform(self, points: Sequence[Numeric]) -> tuple[Numeric, ...]:
        """Return x, y and depth in camera axes of world points (x, y, z), meters."""
        found = []
        for axis in self.axes:
            value = axis[0] * points[0]
            value += axis[1] * points[1]
            value += axis[2] * points[2]
            value += axis[3]
            found.append(value)
        return tuple(found)

    def pixels(self, x: Numeric, y: Numeric, depth: Numeric) -> tuple[Numeric, Numeric]:
        """Return the pixels (x, y) of points in camera axes; overwrite x and y."""
        x /= depth
        y /= depth
        pixel_x, pixel_y = self.fx * x, self.slant * x
        pixel_x += self.skew * y
        pixel_x += self.cx
        pixel_y += self.fy * y
        pixel_y += self.cy
        return pixel_x, pixel_y

    def rays(self, x: Numeric, y: Numeric) -> tuple[Numeric, Numeric]:
        """Return x and y in camera axes, at depth 1, of pixels."""
        x, y = x - self.cx, y - self.cy
        ray_x, ray_y = self.fy * x, self.fx * y
        ray_x -= self.skew * y
        ray_x /= self.determinant
        ray_y -= self.slant * x
        ray_y /= self.determinant
        return ray_x, ray_y


def _camera_table(intrinsics: Tensor, camera_from_world: Tensor) -> Tensor:
    k = intrinsics
    determinant = k[:, 0, 0] * k[:, 1, 1] - k[:, 0, 1] * k[:, 1, 0]
    focal = k[:, :2, :2].square().sum(-1).amax(-1).sqrt()
    own = torch.cat([k[:, :2].flatten(1), determinant[:, None], focal[:, None]], dim=1)
    return torch.cat([camera_from_world[:, :3].flatten(1), own], dim=1)


def _grid(height: int, width: int, samples: int) -> tuple[Tensor, Tensor]:
    """Return rows and columns of about `samples` pixels, evenly spread."""
    spacing = max(1.0, math.sqrt(height * width / samples))
    row, column = (
        ((torch.arange(count) + 0.5) * size / count).long()
        for size, count in ((height, max(1, round(height / spacing))), (width, max(1, round(width / spacing))))
    )
    return row.repeat_interleave(len(column)), column.repeat(len(row))


def _tile(place: Tensor, size: int, tiles: int) -> Tensor:
    return place * tiles // size
