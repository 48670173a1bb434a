"""Lists of the Gaussians that touch each tile of the image, front to back, in batches of limited size."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from prior3d.splat.projection import Projection

TILE_SIZE = 8  # pixels; lifted Gaussians are a few pixels wide, and larger tiles evaluate mostly empty corners
BATCH_ELEMENTS = 1 << 22  # floats in the largest intermediate of a batch at most, unless a single tile needs more
MAX_PADDING = 0.7  # the lists of one batch have at least this fraction of the longest list's length


class TileLists(NamedTuple):
    """Lists of the tiles' Gaussians, one after another.

    Attributes:
        gaussians: [I] indices, front to back within a tile
        starts: [rows * columns + 1] where each tile's list begins, and the end
        rows: tiles down the image.
        columns: tiles across the image.
        tile_size: side of a tile in pixels.
    """

    gaussians: Tensor
    starts: Tensor
    rows: int
    columns: int
    tile_size: int


class TileBatch(NamedTuple):
    """Tiles whose lists are padded to one length K.

    Attributes:
        tiles: [T] row-major tile indices
        gaussians: [T, K] indices, front to back; padding repeats an arbitrary one
        valid: [T, K] False on the padding
    """

    tiles: Tensor
    gaussians: Tensor
    valid: Tensor


@torch.no_grad()
def intersect_tiles(projection: Projection, size: tuple[int, int], tile_size: int = TILE_SIZE) -> TileLists:
    """List the Gaussians of every tile, sorted by depth and, at equal depth, by index.

    Args:
        projection: the Gaussians in the image.
        size: (height, width) of the image in pixels.
        tile_size: side of a tile in pixels.

    Returns:
        The lists.
    """
    rows, columns = -(-size[0] // tile_size), -(-size[1] // tile_size)
    visible = (projection.radii > 0).all(-1).nonzero().squeeze(1)
    visible = visible[projection.depths[visible].argsort(stable=True)]
    pixels, radii = projection.pixels[visible], projection.radii[visible]
    last = torch.tensor([columns - 1, rows - 1], device=pixels.device)
    low = ((pixels - radii) / tile_size).floor().long().clamp(min=0)  # (column, row), inclusive
    high = ((pixels + radii) / tile_size).floor().long().minimum(last)
    span = (high - low + 1).clamp(min=0)

    counts = span.prod(-1)
    owner = torch.repeat_interleave(torch.arange(len(visible), device=pixels.device), counts)
    within = torch.arange(len(owner), device=pixels.device) - (counts.cumsum(0) - counts)[owner]
    width = span[owner, 0]
    tile = (low[owner, 1] + within // width) * columns + low[owner, 0] + within % width
    tile, order = tile.sort(stable=True)  # owners are already front to back
    starts = torch.searchsorted(tile, torch.arange(rows * columns + 1, device=tile.device))
    return TileLists(visible[owner[order]], starts, rows, columns, tile_size)


def tile_batches(lists: TileLists, channels: int) -> Iterator[TileBatch]:
    """Group tiles with lists of similar length, longest first, so intermediates stay within a fixed size.

    Args:
        lists: Gaussians of the tiles.
        channels: values per Gaussian that the caller gathers in addition to the tile's pixels.

    Yields:
        Batches that together hold every tile with a nonempty list once.
    """
    counts, tiles = lists.starts.diff().sort(descending=True, stable=True)
    lengths = counts.tolist()
    occupied = sum(length > 0 for length in lengths)
    begin = 0
    while begin < occupied:
        longest = lengths[begin]
        end = begin + max(1, BATCH_ELEMENTS // (longest * max(lists.tile_size**2, channels)))
        end = min(end, occupied)
        while lengths[end - 1] < MAX_PADDING * longest:
            end -= 1
        slots = torch.arange(longest, device=tiles.device)
        chosen = tiles[begin:end]
        valid = slots < counts[begin:end, None]
        positions = lists.starts[chosen, None] + torch.where(valid, slots, 0)
        yield TileBatch(chosen, lists.gaussians[positions], valid)
        begin = end


def tiles_to_image(tiles: Tensor, lists: TileLists, size: tuple[int, int]) -> Tensor:
    """Lay tiles of pixels out as an image.

    Args:
        tiles: [rows * columns, tile_size^2, C] row-major tiles of row-major pixels
        lists: lists that the tiles belong to.
        size: (height, width) in pixels.

    Returns:
        [C, H, W] the image
    """
    side = lists.tile_size
    image = tiles.view(lists.rows, lists.columns, side, side, -1).permute(4, 0, 2, 1, 3)
    image = image.reshape(-1, lists.rows * side, lists.columns * side)
    return image[:, : size[0], : size[1]]
