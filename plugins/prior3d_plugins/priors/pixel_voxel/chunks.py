"""Turn the surface around each view into one batch of voxel grids, each turned and shifted at random."""

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from prior3d.geometry import pixel_centers, unproject_pixels
from prior3d.sparse import sparse_quantize


class Grids(NamedTuple):
    """Voxel grids of G chunks: world axes turned about the vertical, with a random origin.

    Attributes:
        origin: [G, 3] meters, world axes; the camera center, which leaves float32 enough digits.
        turn: [G] radians about the vertical.
        shift: [G, 3] voxels, 0..1.
        voxel_size: meters.
        axes: world axes that become the grid's x, y and (vertical) z.
    """

    origin: Tensor
    turn: Tensor
    shift: Tensor
    voxel_size: float
    axes: tuple[int, int, int]

    def positions(self, points: Tensor, chunk: Tensor) -> Tensor:
        """Return world points [..., 3] in voxels of the grids of their chunks [...]; the floor is the voxel."""
        points = points.float() - self.origin[chunk]
        x, y, z = (points[..., axis] for axis in self.axes)
        cosine, sine = self.turn.cos()[chunk], self.turn.sin()[chunk]
        turned = torch.stack([cosine * x - sine * y, sine * x + cosine * y, z], dim=-1)
        return turned / self.voxel_size + self.shift[chunk]

    def centers(self, voxels: Tensor) -> Tensor:
        """Return the centers [M, 3] of voxels [M, 4] (chunk, x, y, z): meters, world axes."""
        chunk = voxels[:, 0].long()
        x, y, z = ((voxels[:, 1:] + 0.5 - self.shift[chunk]) * self.voxel_size).unbind(-1)
        cosine, sine = self.turn.cos()[chunk], self.turn.sin()[chunk]
        turned = torch.stack([cosine * x + sine * y, cosine * y - sine * x, z], dim=-1)
        return turned[:, [self.axes.index(axis) for axis in range(3)]] + self.origin[chunk]


def random_grids(world_from_camera: Tensor, voxel_size: float, max_turn_deg: float, up: str) -> Grids:
    """Draw a grid for the chunk of each view: a turn of up to `max_turn_deg` in either direction, a shift in a voxel.

    Args:
        world_from_camera: [G, 4, 4] poses, meters.
        voxel_size: meters.
        max_turn_deg: maximum turn in degrees.
        up: vertical world axis: x, y or z.
    """
    poses = world_from_camera.float()
    turn = (2 * torch.rand(len(poses), device=poses.device) - 1) * (max_turn_deg * torch.pi / 180)
    shift = torch.rand(len(poses), 3, device=poses.device)
    vertical = "xyz".index(up)
    return Grids(poses[:, :3, 3], turn, shift, voxel_size, ((vertical + 1) % 3, (vertical + 2) % 3, vertical))


class Points(NamedTuple):
    """Points of the surface, packed over chunks.

    Attributes:
        positions: [N, 3] meters, world axes.
        chunk: [N] int64.
        colors: [N, 3] 0..1, or None.
    """

    positions: Tensor
    chunk: Tensor
    colors: Tensor | None

    def where(self, kept: Tensor) -> "Points":
        """Return the points where a mask [N] is true."""
        return Points(*(None if values is None else values[kept] for values in self))


class Voxels(NamedTuple):
    """Occupied voxels of G chunks.

    Attributes:
        coordinates: [M, 4] int32: chunk, x, y, z.
        colors: [M, 3] mean color of each voxel's points, or None.
    """

    coordinates: Tensor
    colors: Tensor | None


def voxelize(points: Points, grids: Grids, max_voxels: int) -> Voxels:
    """Return the occupied voxels of points, with mean colors if the points have any.

    In a chunk with more than `max_voxels`, those nearest to the camera stay: the chunk is smaller but as dense.
    """
    found = sparse_quantize(grids.positions(points.positions, points.chunk), batch=points.chunk)
    voxels, colors = found.coordinates, None
    if points.colors is not None:
        colors = points.colors.new_zeros(len(voxels), 3).index_add(0, found.inverse_map, points.colors)
        colors = colors / torch.bincount(found.inverse_map, minlength=len(voxels))[:, None]
    if len(voxels) > max_voxels:
        kept = _nearest(voxels, grids, max_voxels)
        voxels, colors = voxels[kept], None if colors is None else colors[kept]
    return Voxels(voxels, colors)


def mean_colors(colors: Tensor, rows: Tensor, count: int) -> Tensor:
    """Return the mean color [M, 3] of the points of each voxel.

    Args:
        colors: [N, 3] of the points.
        rows: [N] int64 voxel of each point; M for a point without one.
        count: number of voxels, M.
    """
    summed = torch.cat([colors, torch.ones_like(colors[:, :1])], dim=1)
    total = summed.new_zeros(count + 1, 4).index_add_(0, rows, summed)[:count]
    return total[:, :3] / total[:, 3:]


def _nearest(voxels: Tensor, grids: Grids, most: int) -> Tensor:
    """Return the rows [K] of the voxels nearest to each chunk's camera, at most `most` per chunk."""
    distance = (grids.centers(voxels) - grids.origin[voxels[:, 0].long()]).square().sum(-1)
    order = distance.argsort()
    order = order[voxels[order, 0].argsort(stable=True)]
    counts = torch.bincount(voxels[:, 0].long(), minlength=len(grids.origin))
    first = (counts.cumsum(0) - counts)[voxels[order, 0].long()]
    return order[torch.arange(len(order), device=order.device) - first < most]


def within_reach(
    points: Tensor,
    chunk: Tensor,
    intrinsics: Tensor,
    world_from_camera: Tensor,
    size: tuple[int, int],
    far: float,
) -> Tensor:
    """Return which points [N, 3] lie in the boxes of `reach_boxes` of their chunks [N]; see there."""
    low, high = reach_boxes(intrinsics, world_from_camera, size, far)
    return ((points >= low[chunk]) & (points <= high[chunk])).all(-1)


def reach_boxes(
    intrinsics: Tensor, world_from_camera: Tensor, size: tuple[int, int], far: float
) -> tuple[Tensor, Tensor]:
    """Return the world-axes box around each view's frustum, cut at `far` meters: least and most x, y, z [G, 3].

    The box of a shorter frustum lies within that of a longer one, so the cut gives the chunk that `far` would have
    given in the first place.

    Args:
        intrinsics: [G, 3, 3] pixels, centers at +0.5.
        world_from_camera: [G, 4, 4] meters.
        size: height and width of the views, pixels.
        far: meters along the optical axis.
    """
    corners, depth = _frustum(size, far, intrinsics.device)
    box = unproject_pixels(corners, depth.expand(len(intrinsics), -1), intrinsics, world_from_camera)
    return box.amin(1), box.amax(1)


@functools.lru_cache(maxsize=8)
def _frustum(size: tuple[int, int], far: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the pixels [8, 2] and depths [8] of a frustum's corners; kept, since a copy to a GPU waits for it."""
    corners = pixel_centers(2, 2) - 0.5  # 0 or 1 in x and y
    corners = torch.cat([corners * corners.new_tensor([size[1], size[0]])] * 2)
    return corners.to(device), torch.tensor([0.0] * 4 + [far] * 4, device=device)
