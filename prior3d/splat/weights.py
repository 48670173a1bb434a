"""Compositing weights of a view as a sparse matrix: the primitive that lifting and feature targets share."""

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from prior3d.geometry import full_precision
from prior3d.splat.compositing import tile_weights
from prior3d.splat.gaussians import Gaussians
from prior3d.splat.precision import working_dtype
from prior3d.splat.projection import project_gaussians
from prior3d.splat.rasterize import check_shapes
from prior3d.splat.tiles import intersect_tiles, tile_batches


@dataclass(frozen=True, eq=False)
class CompositingWeights:
    """Alpha x transmittance of every Gaussian in every pixel it reaches, as M entries of a sparse matrix.

    Attributes:
        pixels: row-major index of the pixel (or grid cell), ascending  # [M]
        gaussians: index of the Gaussian  # [M]
        weights: positive; in a cell, summed over its pixels  # [M]
        size: (height, width) of the image or grid.
        areas: pixels per cell, 1 unless pooled  # [height * width]
        count: number of Gaussians, seen or not.
    """

    pixels: Tensor
    gaussians: Tensor
    weights: Tensor
    size: tuple[int, int]
    areas: Tensor
    count: int

    def pooled(self, grid: tuple[int, int]) -> "CompositingWeights":
        """Sum the weights over the cells of a coarser grid; a pixel belongs to the cell that its centre lies in.

        Args:
            grid: (height, width) in cells, at most the size.

        Returns:
            The weights of the cells.

        Raises:
            ValueError: if the grid is finer than the image.
        """
        height, width = self.size
        if not (0 < grid[0] <= height and 0 < grid[1] <= width):
            raise ValueError(f"expected a grid of at most {height} x {width} cells, got {grid[0]} x {grid[1]}")
        # centre (y + 1/2) / height * cells, in integers: no rounding at the cells' borders
        row = (2 * torch.arange(height, device=self.pixels.device) + 1) * grid[0] // (2 * height)
        column = (2 * torch.arange(width, device=self.pixels.device) + 1) * grid[1] // (2 * width)
        cell = (row[:, None] * grid[1] + column).flatten()
        key, entry = (cell[self.pixels] * self.count + self.gaussians).unique(return_inverse=True)
        weights = self.weights.new_zeros(len(key)).index_add_(0, entry, self.weights)
        areas = self.areas.new_zeros(grid[0] * grid[1]).index_add_(0, cell, self.areas)
        return CompositingWeights(key // self.count, key % self.count, weights, grid, areas, self.count)

    def mass(self) -> Tensor:
        """Sum of weights over a cell's Gaussians and pixels; alpha, for single pixels.

        Returns:
            Mass  # [height * width]
        """
        return self.weights.new_zeros(len(self.areas)).index_add_(0, self.pixels, self.weights)

    def seen(self) -> Tensor:
        """Sum of weights over the pixels that show a Gaussian, in pixels.

        Returns:
            Mass  # [count]
        """
        return self.weights.new_zeros(self.count).index_add_(0, self.gaussians, self.weights)

    def matrix(self, transposed: bool = False) -> Tensor:
        """The weights as a sparse CSR matrix, to be multiplied with `@`.

        Args:
            transposed: Gaussians down and pixels across.

        Returns:
            The matrix  # [height * width, count], or its transpose
        """
        shape = (self.size[0] * self.size[1], self.count)
        return csr_matrix(self.pixels, self.gaussians, self.weights, shape, transposed)


def csr_matrix(rows: Tensor, columns: Tensor, entries: Tensor, shape: tuple[int, int], transposed: bool) -> Tensor:
    """Build a sparse CSR matrix from entries in any order.

    Args:
        rows: of the entries  # [M]
        columns: of the entries  # [M]
        entries: values  # [M]
        shape: (rows, columns) before transposing.
        transposed: build the transpose, sorted for its own rows, so that products add up in a fixed order.

    Returns:
        The matrix.
    """
    if transposed:
        rows, columns, shape = columns, rows, (shape[1], shape[0])
    rows, order = rows.sort(stable=True)
    starts = torch.searchsorted(rows, torch.arange(shape[0] + 1, device=rows.device))
    with warnings.catch_warnings():  # PyTorch says once that CSR is in beta; our tests hold the products we use
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        with torch.sparse.check_sparse_tensor_invariants(False):  # sorted and in range by construction
            return torch.sparse_csr_tensor(starts, columns[order], entries[order], shape)


@torch.no_grad()
def compositing_weights(
    gaussians: Gaussians, intrinsics: Tensor, world_from_camera: Tensor, size: tuple[int, int]
) -> CompositingWeights:
    """Find the weights with which `rasterize` sums the Gaussians' values in one view.

    Args:
        gaussians: what to look at.
        intrinsics: pixels of `size`  # [3, 3]
        world_from_camera: rigid, OpenCV axes, metres  # [4, 4]
        size: (height, width) in pixels.

    Returns:
        The weights; within a pixel front to back. No gradient.

    Raises:
        ValueError: if shapes do not fit.
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
    areas = torch.ones(size[0] * size[1], device=pixels.device, dtype=weights.dtype)
    return CompositingWeights(pixels, indices[order], weights[order], size, areas, len(gaussians))
