"""Match pixels with voxels: one pixel per feature cell, with the voxel that holds its 3D point or borders it."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from prior3d.geometry import known_depth, unproject_pixels
from prior3d.losses import sample_one_per_cell
from prior3d_plugins.priors.pixel_voxel.chunks import Grids


class PixelVoxels(NamedTuple):
    """Matches between G views and the voxels of their chunks; fixed shapes, invalid slots are padding.

    Attributes:
        pixels: [G, N, 2] pixels x, y; centers at +0.5.
        cells: [G, N] int64 row-major cell of the feature grid that the pixel lies in.
        points: [G, N, 3] meters, world axes; 3D point that the pixel sees.
        voxels: [G, N] int64 row of the voxel.
        contained: [G, N] bool, true if the voxel holds the point, false if it borders the voxel that does.
        valid: [G, N] bool.
    """

    pixels: Tensor
    cells: Tensor
    points: Tensor
    voxels: Tensor
    contained: Tensor
    valid: Tensor


@torch.no_grad()
def match_pixels(
    depth: Tensor,
    intrinsics: Tensor,
    world_from_camera: Tensor,
    grid: tuple[int, int],
    stride: int,
    voxels: Tensor,
    grids: Grids,
) -> PixelVoxels:
    """Match a random known pixel of every feature cell with the voxel that holds its 3D point.

    If that voxel is not occupied, the match is the nearest occupied one of the 26 around it. Visibility needs no test:
    the pixel's own depth gives the point that it sees.

    Args:
        depth: [G, H, W] meters along the optical axis, 0 = unknown.
        intrinsics: [G, 3, 3] pixels, centers at +0.5.
        world_from_camera: [G, 4, 4] meters.
        grid: rows and columns of the feature maps.
        stride: image pixels per cell.
        voxels: [M, 4] int32 (chunk, x, y, z), unique, M > 0; chunk g belongs to view g.
        grids: position of the voxel grids.

    Returns:
        Matches with one slot per feature cell; a voxel may occur more than once.
    """
    pixels, at = _pixel_per_cell(depth, grid, stride)
    points = unproject_pixels(pixels, at, intrinsics, world_from_camera)
    known = known_depth(at) & torch.isfinite(points).all(-1)
    points = torch.where(known[..., None], points, 0.0)
    chunk = torch.arange(len(depth), device=depth.device)[:, None].expand(at.shape)
    positions = grids.positions(points, chunk)
    rows = _around(voxels, chunk, positions.floor().long())
    steps = _neighborhood(depth.device)
    distance = (positions.floor()[..., None, :] + steps + 0.5 - positions[..., None, :]).square().sum(-1)
    middle = len(steps) // 2
    distance[..., middle] = -1.0  # the voxel that holds the point comes before any other
    nearest = distance.masked_fill(rows < 0, torch.inf).argmin(-1)
    row = rows.gather(-1, nearest[..., None])[..., 0]
    cells = torch.arange(at.shape[1], device=depth.device).expand(at.shape)
    return PixelVoxels(pixels, cells, points, row.clamp_min(0), nearest == middle, known & (row >= 0))


@torch.no_grad()
def sample_matches(matches: PixelVoxels, count: int) -> PixelVoxels:
    """Sample at most `count` matches per view, no voxel twice; feature cells are already distinct."""
    voxels, total = _dense_ids(matches.voxels), matches.cells.shape[1]
    index, valid = sample_one_per_cell(
        matches.cells, voxels, matches.valid, count, num_cells_a=total, num_cells_b=total
    )

    def take(values: Tensor) -> Tensor:
        at = index if values.ndim == 2 else index[..., None].expand(-1, -1, values.shape[2])
        return values.gather(1, at)

    pixels, cells, points, rows, contained, _ = (take(values) for values in matches)
    return PixelVoxels(pixels, cells, points, rows, contained & valid, valid)


def _pixel_per_cell(depth: Tensor, grid: tuple[int, int], stride: int) -> tuple[Tensor, Tensor]:
    """Draw a pixel of each feature cell, of known depth if there is one: [G, h w, 2], and its depth [G, h w]."""
    (rows, columns), (height, width) = grid, depth.shape[-2:]
    padded = F.pad(depth.float(), (0, columns * stride - width, 0, rows * stride - height))
    blocks = padded.unflatten(2, (columns, stride)).unflatten(1, (rows, stride)).transpose(2, 3)
    blocks = blocks.flatten(3).flatten(1, 2)  # [G, h w, stride^2]
    chosen = (torch.rand_like(blocks) + known_depth(blocks)).argmax(-1)
    at = blocks.gather(-1, chosen[..., None])[..., 0]
    cell = torch.arange(rows * columns, device=depth.device)
    row = cell // columns * stride + chosen // stride
    column = cell % columns * stride + chosen % stride
    return torch.stack([column + 0.5, row + 0.5], dim=-1), at


def _neighborhood(device: torch.device) -> Tensor:
    """Return the steps [27, 3] to a voxel and those around it, x fastest; the middle step is zero."""
    step = torch.arange(-1, 2, device=device)
    z, y, x = torch.meshgrid(step, step, step, indexing="ij")
    return torch.stack([x, y, z], dim=-1).flatten(0, 2)


def _around(voxels: Tensor, chunk: Tensor, cells: Tensor) -> Tensor:
    """Return the rows [..., 27] of the voxels in and around cells [..., 3] of chunks [...], -1 if absent."""
    low, high = (bound.long() - margin for bound, margin in zip(voxels.aminmax(dim=0), (2, -2), strict=True))
    size = high - low + 1

    def key(cell: tuple[Tensor, ...]) -> Tensor:  # x last and fastest: neighbors along x have neighboring keys
        chunk, x, y, z = cell
        return ((chunk * size[3] + (z - low[3])) * size[2] + (y - low[2])) * size[1] + (x - low[1])

    keys, order = key(voxels.long().unbind(-1)).sort()
    keys = torch.cat([keys, keys.new_full((1,), -1)])  # the place past the last key equals no query
    inside = ((cells > low[1:]) & (cells < high[1:])).all(-1)
    left = key((chunk, *cells.unbind(-1))) - 1
    lines = torch.stack([z * size[2] + y for z in (-1, 0, 1) for y in (-1, 0, 1)]) * size[1]
    wanted = left[..., None] + lines  # [..., 9]: the voxels at x - 1
    place = torch.searchsorted(keys[:-1], wanted)
    found = []
    for step in range(3):
        hit = keys[place] == wanted + step
        found.append(torch.where(hit, order[place.clamp_max(len(order) - 1)], -1))
        place = place + hit  # sorted keys: the next voxel along x is the next key, or absent
    return torch.where(inside[..., None], torch.stack(found, dim=-1).flatten(-2), -1)


def _dense_ids(values: Tensor) -> Tensor:
    """Number the distinct values of each row of [G, N] from 0: equal values get equal numbers."""
    ordered, order = values.sort(dim=1)
    change = F.pad(ordered[:, 1:] != ordered[:, :-1], (1, 0))
    return torch.empty_like(values).scatter_(1, order, change.long().cumsum(1))
