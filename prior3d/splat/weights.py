"""Compositing weights of views as a sparse matrix: the operator of the torch engine."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor

from prior3d.contracts.splatting import Gaussians, Scaled, SplatOperator
from prior3d.geometry import full_precision, working_dtype
from prior3d.splat.compositing import tile_weights
from prior3d.splat.operator import cell_of_pixel, check_grid
from prior3d.splat.projection import project_gaussians
from prior3d.splat.rasterize import check_shapes
from prior3d.splat.tiles import intersect_tiles, tile_batches

HELD_ENTRIES = 1 << 27
"""Maximum number of entries of several views in one matrix; beyond it, views are processed one by one."""


@dataclass(frozen=True, eq=False)
class CompositingWeights(SplatOperator):
    """Alpha x transmittance of every Gaussian in every pixel that it reaches, as M entries of a sparse matrix.

    Attributes:
        pixels: [M] row-major index of the view and its pixel (or grid cell), ascending
        gaussians: [M] index of the Gaussian
        weights: [M] positive weights; in a cell, summed over its pixels
        size: (height, width) of the image or grid.
        areas: [height, width] pixels per cell, 1 unless pooled
        count: number of Gaussians, seen or not.
        views: number of images or grids of this size.
    """

    pixels: Tensor
    gaussians: Tensor
    weights: Tensor
    size: tuple[int, int]
    areas: Tensor
    count: int
    views: int = 1

    def pooled(self, grid: tuple[int, int]) -> "CompositingWeights":
        """Sum the weights over the cells of a coarser grid; a pixel belongs to the cell that holds its center.

        Args:
            grid: (height, width) in cells, at most the size.

        Returns:
            The weights of the cells.

        Raises:
            ValueError: if the grid is finer than the image.
        """
        check_grid(self.size, grid)
        cell = cell_of_pixel(self.size, grid, self.pixels.device)
        inside = self.size[0] * self.size[1]
        cells = cell[self.pixels % inside] + self.pixels // inside * (grid[0] * grid[1])
        key, entry = (cells * self.count + self.gaussians).unique(return_inverse=True)
        weights = self.weights.new_zeros(len(key)).index_add_(0, entry, self.weights)
        areas = self.areas.new_zeros(grid[0] * grid[1]).index_add_(0, cell, self.areas.flatten()).view(grid)
        return CompositingWeights(key // self.count, key % self.count, weights, grid, areas, self.count, self.views)

    def render(self, values: Tensor) -> Tensor:
        """See `SplatOperator.render`."""
        with full_precision(self.weights.device):
            return maps_of_rows(self.matrix() @ values.to(self.weights), self)

    def gather(self, maps: Tensor) -> Tensor:
        """See `SplatOperator.gather`."""
        with full_precision(self.weights.device):
            return self.matrix(transposed=True) @ rows_of_maps(maps).to(self.weights)

    def mass(self) -> Tensor:
        """See `SplatOperator.mass`."""
        cells = self.views * self.size[0] * self.size[1]
        return self.weights.new_zeros(cells).index_add_(0, self.pixels, self.weights).view(self.views, *self.size)

    def seen(self) -> Tensor:
        """See `SplatOperator.seen`."""
        view = self.pixels // (self.size[0] * self.size[1])
        sums = self.weights.new_zeros(self.views * self.count)
        return sums.index_add_(0, view * self.count + self.gaussians, self.weights).view(self.views, self.count)

    def joined(self, others: Sequence[SplatOperator]) -> "CompositingWeights | None":
        """Return the joined weights of this and the other views, or None beyond `HELD_ENTRIES`."""
        if not others:
            return self
        parts = (self, *others)
        if sum(len(part.weights) for part in parts) > HELD_ENTRIES:
            return None
        first = [0, *accumulate(part.views * self.size[0] * self.size[1] for part in parts)]
        pixels = torch.cat([part.pixels + start for part, start in zip(parts, first[:-1], strict=True)])
        gaussians, weights = (torch.cat([getattr(p, name) for p in parts]) for name in ("gaussians", "weights"))
        views = sum(part.views for part in parts)
        return replace(self, pixels=pixels, gaussians=gaussians, weights=weights, views=views)

    def scaled(self, kept: Tensor) -> Scaled:
        """See `SplatOperator.scaled`."""
        chosen = kept.flatten()[self.pixels]
        rows, columns, weights = self.pixels[chosen], self.gaussians[chosen], self.weights[chosen]
        cells = weights.new_zeros(kept.numel()).index_add_(0, rows, weights).sqrt()
        mass = weights.new_zeros(self.count).index_add_(0, columns, weights)
        gaussians = torch.where(mass > 0, mass + mass[mass > 0].median(), 0.0).sqrt()
        entries = weights / (cells[rows] * gaussians[columns])
        operator = replace(self, pixels=rows, gaussians=columns, weights=entries)
        return Scaled(operator, cells.view_as(kept), gaussians, mass)

    def matrix(self, transposed: bool = False) -> Tensor:
        """Return the weights as a sparse CSR matrix, for products with `@`.

        Args:
            transposed: put Gaussians in rows and pixels in columns.

        Returns:
            [views * height * width, count] matrix, or its transpose
        """
        return self._transposed if transposed else self._matrix

    @cached_property
    def _matrix(self) -> Tensor:
        return csr_matrix(self.pixels, self.gaussians, self.weights, self._shape, False)

    @cached_property
    def _transposed(self) -> Tensor:
        return csr_matrix(self.pixels, self.gaussians, self.weights, self._shape, True)

    @property
    def _shape(self) -> tuple[int, int]:
        return self.views * self.size[0] * self.size[1], self.count


def rows_of_maps(maps: Tensor) -> Tensor:
    """Return maps [V, C, h, w] as a row per cell [V * h * w, C]."""
    return maps.movedim(1, -1).flatten(0, 2)


def maps_of_rows(rows: Tensor, operator: SplatOperator) -> Tensor:
    """Return rows [V * h * w, C], one per cell, as maps [V, C, h, w] of an operator's views."""
    return rows.unflatten(0, (operator.views, *operator.size)).movedim(-1, 1)


def csr_matrix(rows: Tensor, columns: Tensor, entries: Tensor, shape: tuple[int, int], transposed: bool) -> Tensor:
    """Build a sparse CSR matrix from entries in any order.

    Args:
        rows: [M] row of each entry
        columns: [M] column of each entry
        entries: [M] values
        shape: (rows, columns) before transposing.
        transposed: build the transpose, sorted by its own rows, so products add up in a fixed order.

    Returns:
        The matrix.
    """
    if transposed:
        rows, columns, shape = columns, rows, (shape[1], shape[0])
    rows, order = rows.sort(stable=True)
    starts = torch.searchsorted(rows, torch.arange(shape[0] + 1, device=rows.device))
    with warnings.catch_warnings():  # PyTorch warns once that CSR is in beta; our tests cover the products we use
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        with torch.sparse.check_sparse_tensor_invariants(False):  # sorted and in range by construction
            return torch.sparse_csr_tensor(starts, columns[order], entries[order], shape)


@torch.no_grad()
def compositing_weights(
    gaussians: Gaussians, intrinsics: Tensor, world_from_camera: Tensor, size: tuple[int, int]
) -> CompositingWeights:
    """Compute the weights with which `rasterize` sums the Gaussians' values in one view.

    Args:
        gaussians: Gaussians to render.
        intrinsics: [3, 3] pixels of `size`
        world_from_camera: [4, 4] rigid, OpenCV axes, meters
        size: (height, width) in pixels.

    Returns:
        The weights, front to back within a pixel; without gradient.

    Raises:
        ValueError: if shapes do not fit.

    >>> from prior3d.splat import gaussians_from_depth
    >>> intrinsics = torch.tensor([[20.0, 0, 8], [0, 20, 6], [0, 0, 1]])
    >>> pose = torch.eye(4)
    >>> depth = torch.full((1, 12, 16), 2.0)
    >>> gaussians = gaussians_from_depth(depth, intrinsics, pose[None])
    >>> weights = compositing_weights(gaussians, intrinsics, pose, (12, 16))
    >>> weights.render(torch.ones(len(gaussians), 2)).shape
    torch.Size([1, 2, 12, 16])
    """
    if world_from_camera.ndim != 2:
        raise ValueError(f"expected one view, world_from_camera [4, 4], got {list(world_from_camera.shape)}")
    check_shapes(len(gaussians), None, intrinsics, world_from_camera)
    gaussians = gaussians.to(working_dtype(gaussians.means))
    shape = (gaussians.means, gaussians.quaternions, gaussians.scales, gaussians.opacities)
    projection = project_gaussians(*shape, intrinsics.to(shape[0]), world_from_camera.to(shape[0]), size)
    lists = intersect_tiles(projection, size)
    parts = [(lists.gaussians[:0], lists.gaussians[:0], gaussians.opacities[:0])]
    with full_precision(gaussians.means.device):
        for batch in tile_batches(lists, 1):
            gathered = (t[batch.gaussians] for t in (projection.pixels, projection.conics, gaussians.opacities))
            weights = tile_weights(*gathered, batch, lists)
            tile, pixel, slot = weights.nonzero(as_tuple=True)
            corner = batch.tiles[tile]
            y = corner // lists.columns * lists.tile_size + pixel // lists.tile_size
            x = corner % lists.columns * lists.tile_size + pixel % lists.tile_size
            inside = (y < size[0]) & (x < size[1])
            entries = (y * size[1] + x, batch.gaussians[tile, slot], weights[tile, pixel, slot])
            parts.append(tuple(entry[inside] for entry in entries))
    pixels, indices, weights = (torch.cat(part) for part in zip(*parts, strict=True))
    pixels, order = pixels.sort(stable=True)  # keeps front to back within a pixel
    areas = torch.ones(size, device=pixels.device, dtype=weights.dtype)
    return CompositingWeights(pixels, indices[order], weights[order], size, areas, len(gaussians))
