"""Decode encoder tokens to three feature planes."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def grid_encoding(height: int, width: int, channels: int, device: torch.device | str = "cpu") -> Tensor:
    """Encode the cell centers of a grid by sines and cosines of their position across the image.

    Positions are relative to the image, so grids of different sizes share one encoding.

    Args:
        height: rows h of the grid.
        width: columns w of the grid.
        channels: channels C, a multiple of 4; the first half encodes the column, the second the row.
        device: device of the result.

    Returns:
        [h w, C] float32 encoding, row by row.
    """
    # from half a cycle to 8 cycles across the image
    frequencies = math.pi / 2 * torch.logspace(0, 4, channels // 4, base=2, device=device)
    axes = []
    for size in (width, height):
        centers = (torch.arange(size, device=device) + 0.5) * (2 / size) - 1
        phase = centers.unsqueeze(1) * frequencies
        axes.append(torch.cat([phase.sin(), phase.cos()], dim=1))
    columns, rows = axes
    return torch.cat([columns.repeat(height, 1), rows.repeat_interleave(width, dim=0)], dim=1)


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, queries: Tensor, context: Tensor) -> Tensor:
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.query(queries), *self.key_value(context).chunk(2, dim=-1))
        )
        return self.out(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


class _Block(nn.Module):
    """Cross-attention to the tokens, self-attention over the queries, MLP; each pre-normed and residual."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.cross_norm, self.cross = nn.LayerNorm(width), _Attention(width, heads)
        self.self_norm, self.self_attention = nn.LayerNorm(width), _Attention(width, heads)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, queries: Tensor, tokens: Tensor) -> Tensor:
        queries = queries + self.cross(self.cross_norm(queries), tokens)
        normed = self.self_norm(queries)
        queries = queries + self.self_attention(normed, normed)
        return queries + self.mlp(queries)


class TriplaneDecoder(nn.Module):
    """Turn encoder tokens on any grid into the planes XY, XZ, YZ (see `sample_planes` for their axes).

    Each query stands for 2x2 cells of a plane. It starts from a learned vector plus the mean of the tokens at the image
    positions of its cells. The queries read all tokens by cross-attention, exchange information by self-attention, and
    are spread to 2x2 cells by a transposed convolution. The decoder is small on purpose: the tokens should hold the
    geometry.

    Args:
        token_channels: channels C of the encoder's tokens.
        width: channels within the decoder, a multiple of 4 and of `heads`.
        blocks: number of transformer blocks.
        heads: attention heads.
        plane_size: cells S along each side of a plane, even.
        plane_channels: channels P of each plane.

    Raises:
        ValueError: if a size is not a multiple as required above.

    Reference:
        Hong et al. 2023, arXiv 2311.04400 (LRM): queries, cross-attention, transposed convolution. Differences: the
        size; the order XY, XZ, YZ; and queries that start from their position and the tokens there, so any token grid
        works and the image has an effect from the first step. Attention alone needs hundreds of steps to find it, and
        renders all images as their mean until then.

    >>> TriplaneDecoder(16, width=8, blocks=1, heads=2, plane_size=4, plane_channels=3)(torch.rand(2, 16, 3, 4)).shape
    torch.Size([2, 3, 3, 4, 4])
    """

    def __init__(
        self,
        token_channels: int,
        width: int = 256,
        blocks: int = 4,
        heads: int = 8,
        plane_size: int = 32,
        plane_channels: int = 32,
    ) -> None:
        super().__init__()
        if plane_size < 2 or plane_size % 2:
            raise ValueError(f"expected an even plane_size, got {plane_size}")
        if width % 4 or width % heads:
            raise ValueError(f"expected a width that 4 and heads ({heads}) divide, got {width}")
        self.plane_size = plane_size
        self.tokens_in = nn.Sequential(nn.LayerNorm(token_channels), nn.Linear(token_channels, width))
        self.tokens_norm = nn.LayerNorm(width)
        self.queries = nn.Parameter(_initial_queries(plane_size // 2, width))
        self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(blocks))
        self.planes_out = nn.LayerNorm(width)
        self.spread = nn.ConvTranspose2d(width, plane_channels, kernel_size=2, stride=2)

    def forward(self, tokens: Tensor) -> Tensor:
        """Decode tokens to planes.

        Args:
            tokens: [N, C, h, w] encoder map, any h and w.

        Returns:
            [N, 3, P, S, S] planes.

        Raises:
            ValueError: if `tokens` is not a map.
        """
        if tokens.ndim != 4:
            raise ValueError(f"expected tokens [N, C, h, w], got {list(tokens.shape)}")
        images, _, height, width = tokens.shape
        side = self.plane_size // 2
        content = self.tokens_in(tokens.flatten(2).transpose(1, 2))
        position = grid_encoding(height, width, self.queries.shape[-1], tokens.device)
        context = self.tokens_norm(content + position)
        at_cells = _at_cells(content.transpose(1, 2).unflatten(2, (height, width)), side)
        queries = (self.queries + at_cells).flatten(1, 2)
        for block in self.blocks:
            queries = block(queries, context)
        cells = self.planes_out(queries).unflatten(1, (3, -1)).flatten(0, 1).transpose(1, 2)
        return self.spread(cells.unflatten(2, (side, side))).unflatten(0, (images, 3))


def _at_cells(content: Tensor, side: int) -> Tensor:
    """Return the tokens [N, W, h, w] at the image positions of each plane's cells: [N, 3, side^2, W].

    XY is the image itself; a cell of XZ takes the mean of an image column, a cell of YZ that of a row.
    """
    # means where tokens are finer than cells, because bilinear sampling alone would skip some
    pooled = F.adaptive_avg_pool2d(content, tuple(min(side, size) for size in content.shape[2:]))
    xy = F.interpolate(pooled, (side, side), mode="bilinear")
    columns, rows = (xy.mean(dim=axis).unsqueeze(2).expand_as(xy) for axis in (2, 3))
    return torch.stack([xy, columns, rows], dim=1).flatten(3).transpose(2, 3)


def _initial_queries(side: int, width: int) -> Tensor:
    """Start each query at the encoding of its image column and row: [3, side^2, width]."""
    along_columns, along_rows = grid_encoding(side, side, width).chunk(2, dim=1)
    nothing = torch.zeros_like(along_rows)
    y_along_columns = along_rows.unflatten(0, (side, side)).transpose(0, 1).flatten(0, 1)
    xy = torch.cat([along_columns, along_rows], dim=1)
    xz = torch.cat([along_columns, nothing], dim=1)
    yz = torch.cat([nothing, y_along_columns], dim=1)
    queries = torch.stack([xy, xz, yz])
    return queries + torch.randn_like(queries) / math.sqrt(width)
