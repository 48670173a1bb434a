"""Voxels and matches of a batch on a GPU: few kernels, and one wait for the device."""

import torch
import triton
from torch import Tensor

from prior3d.sparse import PendingGrid, PointGrid, start_grid
from prior3d_plugins.priors.pixel_voxel import kernels
from prior3d_plugins.priors.pixel_voxel.chunks import Grids, Points
from prior3d_plugins.priors.pixel_voxel.matching import PixelVoxels

_BLOCK = 256
_PIXELS_OF_A_PROGRAM = 4096


def start_voxels(
    points: Points,
    every: int,
    boxes: tuple[Tensor, Tensor] | None,
    grids: Grids,
    max_voxels: int,
    maps: list[tuple[int, int, int, int]],
) -> PendingGrid:
    """Start to make the voxels of points and the kernel maps of a network.

    Args:
        points: packed over views, not chunks.
        every: chunk g holds the points of view g * every; those of other views are dropped.
        boxes: least and most x, y and z [G, 3] of the points that each chunk keeps, meters; None for all.
        grids: of the chunks.
        max_voxels: maximum number per chunk; those nearest to the camera stay.
        maps: kernel maps of the network.
    """
    positions, count = points.positions.float().contiguous(), len(points.positions)
    cells = torch.empty(count, 3, dtype=torch.int32, device=positions.device)
    items = torch.empty(count, dtype=torch.int32, device=positions.device)
    placed = _tensors(grids)
    if count:
        kernels.place_points[(triton.cdiv(count, _BLOCK),)](
            positions,
            points.chunk.contiguous(),
            *placed,
            placed[0] if boxes is None else torch.cat(boxes, dim=1),
            cells,
            items,
            count,
            grids.voxel_size,
            EVERY=every,
            BOXED=boxes is not None,
            UP=grids.axes[2],
            BLOCK=_BLOCK,
        )
    # The camera is the origin of its grid, which the shift moves.
    return start_grid(cells, items, len(grids.origin), maps, centers=grids.shift, most=max_voxels)


class DrawnPixels:
    """A pixel of each feature cell of G views, at random among those of known depth, and the place that it shows.

    Args:
        depth: [G, H, W] meters, 0 = unknown.
        intrinsics: [G, 3, 3] pixels.
        world_from_camera: [G, 4, 4] meters.
        grid: rows and columns of the feature maps.
        stride: image pixels per cell.
        grids: of the chunks; chunk g belongs to view g.
    """

    def __init__(
        self,
        depth: Tensor,
        intrinsics: Tensor,
        world_from_camera: Tensor,
        grid: tuple[int, int],
        stride: int,
        grids: Grids,
    ) -> None:
        depth, intrinsics, poses = (_images(values) for values in (depth, intrinsics, world_from_camera))
        (groups, height, width), slots, device = depth.shape, grid[0] * grid[1], depth.device
        self.pixels = torch.empty(groups, slots, 2, device=device)
        self.points = torch.empty(groups, slots, 3, device=device)
        self.positions = torch.empty(groups, slots, 3, device=device)
        self.chunk = torch.empty(groups, slots, dtype=torch.int64, device=device)
        known = torch.empty(groups, slots, dtype=torch.int8, device=device)
        self.known = known.view(torch.bool)
        area = triton.next_power_of_2(stride * stride)
        block = max(1, min(128, _PIXELS_OF_A_PROGRAM // area))
        kernels.draw_pixels[(triton.cdiv(slots, block), groups)](
            depth,
            torch.rand(groups, slots, device=device),
            intrinsics,
            poses,
            *_tensors(grids),
            self.pixels,
            self.points,
            self.positions,
            self.chunk,
            known,
            depth.stride(0),
            intrinsics.stride(0),
            poses.stride(0),
            grids.voxel_size,
            HEIGHT=height,
            WIDTH=width,
            CELLS=slots,
            COLUMNS=grid[1],
            STRIDE=stride,
            UP=grids.axes[2],
            BLOCK=block,
            PIXELS=area,
        )

    def match(self, voxels: PointGrid) -> PixelVoxels:
        """Match every pixel, as `match_pixels` does."""
        rows, contained = voxels.nearest(self.positions.flatten(0, 1), self.chunk.flatten())
        rows, contained = rows.view_as(self.chunk), contained.view_as(self.chunk)
        cells = torch.arange(rows.shape[1], device=rows.device).expand(rows.shape)
        return PixelVoxels(self.pixels, cells, self.points, rows.clamp_min(0), contained, self.known & (rows >= 0))


def sample_distinct(matches: PixelVoxels, count: int, voxels: int) -> PixelVoxels:
    """Sample at most `count` matches per view, no voxel twice, as `sample_matches` does.

    Feature cells are distinct already, and no two views share a voxel: the first match of each voxel in random order is
    then all that three rounds over both would find.

    Args:
        matches: one slot per feature cell.
        count: at most the number of slots.
        voxels: number of voxels.
    """
    slots, rows = matches.cells.shape[1], matches.voxels
    last = torch.iinfo(torch.int64).max
    # The slot number makes every priority unique: equal priorities would let a voxel in twice.
    draws = torch.randint(2**62 // slots, rows.shape, device=rows.device)
    priority = torch.add(matches.cells, draws, alpha=slots)
    candidate = torch.where(matches.valid, priority, last)
    best = torch.full((voxels,), last, dtype=torch.int64, device=rows.device)
    best.scatter_reduce_(0, rows.flatten(), candidate.flatten(), "amin")
    first = (best.index_select(0, rows.flatten()).view_as(rows) == candidate) & matches.valid
    order, index = torch.where(first, priority, last).topk(count, dim=1, largest=False)
    valid = order < last

    def take(values: Tensor) -> Tensor:
        at = index if values.ndim == 2 else index[..., None].expand(-1, -1, values.shape[2])
        return values.gather(1, at)

    pixels, points, rows, contained = map(take, (matches.pixels, matches.points, matches.voxels, matches.contained))
    return PixelVoxels(pixels, index, points, rows, contained & valid, valid)


def _tensors(grids: Grids) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return what the kernels read of grids: origins, cosines and sines of turns, shifts."""
    return grids.origin.contiguous(), grids.turn.cos(), grids.turn.sin(), grids.shift.contiguous()


def _images(values: Tensor) -> Tensor:
    """Return float32 values [G, A, B], each [A, B] of one piece."""
    values = values.float()
    return values if values.stride()[1:] == (values.shape[2], 1) else values.contiguous()
