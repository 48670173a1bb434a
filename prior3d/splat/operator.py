"""Views of Gaussians as a linear map, render and gather, computed by any engine."""

from collections.abc import Sequence

import torch
from torch import Tensor

from prior3d.contracts.engine import Gaussians, SplatEngine, SplatOperator
from prior3d.geometry import working_dtype
from prior3d.registry.engines import EngineChoice
from prior3d.splat.rasterize import check_shapes, splat_engine


def view_operator(
    gaussians: Gaussians,
    intrinsics: Tensor,
    world_from_camera: Tensor,
    size: tuple[int, int],
    grid: tuple[int, int] | None = None,
    *,
    engine: str | EngineChoice = "torch",
) -> SplatOperator:
    """Return the linear map from values on Gaussians to their rendering in views.

    Args:
        gaussians: Gaussians to render.
        intrinsics: [3, 3] or [V, 3, 3] pixels of `size`, no skew
        world_from_camera: [4, 4] or [V, 4, 4] rigid, OpenCV axes, meters
        size: (height, width) of the rendering in pixels.
        grid: (height, width) of the cells over which pixels are summed, at most the size; None for the pixels. A pixel
            belongs to the cell that holds its center.
        engine: `auto`, or the name of an engine: `torch` holds the entries as a sparse matrix, others render.

    Returns:
        The map, for one view if the pose has no leading V.

    Raises:
        ValueError: if shapes do not fit, or the grid is finer than the image.
        UserError: if the engine is not available.

    >>> from prior3d.splat import gaussians_from_depth
    >>> intrinsics = torch.tensor([[20.0, 0, 8], [0, 20, 6], [0, 0, 1]])
    >>> pose = torch.eye(4)
    >>> depth = torch.full((1, 12, 16), 2.0)
    >>> gaussians = gaussians_from_depth(depth, intrinsics, pose[None])
    >>> operator = view_operator(gaussians, intrinsics, pose, (12, 16), grid=(3, 4))
    >>> operator.render(torch.ones(len(gaussians), 5)).shape
    torch.Size([1, 5, 3, 4])
    """
    check_shapes(len(gaussians), None, intrinsics, world_from_camera)
    gaussians = gaussians.to(working_dtype(gaussians.means))
    poses = world_from_camera.to(gaussians.means).reshape(-1, 4, 4)
    cameras = intrinsics.to(poses).expand(len(poses), 3, 3)
    if grid is not None:
        check_grid(size, grid)
    chosen = splat_engine(engine, gaussians.means)
    operator = chosen.operator(gaussians, cameras, poses, size, grid)
    return RenderedViews(chosen, gaussians, cameras, poses, size, grid) if operator is None else operator


@torch.no_grad()
def render_scenes(
    scenes: Sequence[Gaussians],
    values: Sequence[Tensor],
    views: Sequence[int],
    intrinsics: Tensor,
    world_from_camera: Tensor,
    size: tuple[int, int],
    grid: tuple[int, int] | None = None,
    *,
    engine: str | EngineChoice = "torch",
) -> Tensor:
    """Sum the values of several scenes into the cells of their views; without gradients.

    Engines that render many cameras in a call, such as `gsplat`, render all views of all scenes in one.

    Args:
        scenes: Gaussians of the scenes, on one device.
        values: [N, C] for the N Gaussians of each scene.
        views: number of views of each scene, at least 1, V in all. Views of one scene come one after the other; a
            scene may come several times.
        intrinsics: [V, 3, 3] pixels of `size`, no skew
        world_from_camera: [V, 4, 4] rigid, OpenCV axes, meters
        size: (height, width) of the rendering in pixels.
        grid: (height, width) of the cells over which pixels are summed; see `view_operator`.
        engine: engine that renders; see `view_operator`.

    Returns:
        [V, C, h, w], not normalized.

    Raises:
        ValueError: if shapes do not fit, or the grid is finer than the image.
        UserError: if the engine is not available.

    >>> from prior3d.splat import gaussians_from_depth
    >>> intrinsics = torch.tensor([[20.0, 0, 8], [0, 20, 6], [0, 0, 1]])
    >>> poses = torch.eye(4).repeat(3, 1, 1)
    >>> near = gaussians_from_depth(torch.full((1, 12, 16), 2.0), intrinsics, poses[:1])
    >>> far = gaussians_from_depth(torch.full((1, 12, 16), 3.0), intrinsics, poses[:1])
    >>> values = [torch.ones(len(scene), 5) for scene in (near, far)]
    >>> render_scenes([near, far], values, [2, 1], intrinsics.repeat(3, 1, 1), poses, (12, 16), (3, 4)).shape
    torch.Size([3, 5, 3, 4])
    """
    if not len(scenes) == len(values) == len(views) > 0 or min(views) < 1 or sum(views) != len(world_from_camera):
        found = f"{len(scenes)} scenes, {len(values)} values, views {list(views)}, {len(world_from_camera)} poses"
        raise ValueError(f"expected values and at least 1 view of each scene, and a pose for each view, got {found}")
    for gaussians, columns in zip(scenes, values, strict=True):
        check_shapes(len(gaussians), columns, intrinsics, world_from_camera)
    if grid is not None:
        check_grid(size, grid)
    chosen = splat_engine(engine, scenes[0].means)
    dtype = working_dtype(scenes[0].means)
    scenes, values = [scene.to(dtype) for scene in scenes], [columns.to(dtype) for columns in values]
    poses = world_from_camera.to(scenes[0].means)
    cameras = intrinsics.to(poses).expand(len(poses), 3, 3)
    sums = chosen.render_scenes(scenes, values, views, cameras, poses, size, grid)
    if sums is not None:
        return sums
    shown, start = [], 0
    for gaussians, columns, count in zip(scenes, values, views, strict=True):
        for view in range(start, start + count):
            operator = view_operator(gaussians, cameras[view], poses[view], size, grid, engine=engine)
            shown.append(operator.render(columns))
        start += count
    return torch.cat(shown)


def views_at_once(engine: str | EngineChoice, gaussians: Gaussians) -> int:
    """Return the number of views that one operator of an engine should hold, where views are streamed."""
    return splat_engine(engine, gaussians.means).views_at_once


def cell_areas(size: tuple[int, int], grid: tuple[int, int], like: Tensor) -> Tensor:
    """Return the number of pixels of each cell [h, w], of the dtype and device of a tensor."""
    if size[0] % grid[0] == 0 and size[1] % grid[1] == 0:
        return like.new_full(grid, size[0] * size[1] // (grid[0] * grid[1]))
    cells = cell_of_pixel(size, grid, like.device)
    counts = like.new_zeros(grid[0] * grid[1])
    return counts.index_add_(0, cells, like.new_ones(()).expand(len(cells))).view(grid)


def check_grid(size: tuple[int, int], grid: tuple[int, int]) -> None:
    """Refuse a grid that is finer than the image.

    Raises:
        ValueError: names both sizes.
    """
    height, width = size
    if not (0 < grid[0] <= height and 0 < grid[1] <= width):
        raise ValueError(f"expected a grid of at most {height} x {width} cells, got {grid[0]} x {grid[1]}")


def cell_of_pixel(size: tuple[int, int], grid: tuple[int, int], device: torch.device) -> Tensor:
    """Return the row-major index [height * width] of the cell that holds each pixel's center."""
    (height, width), (rows, columns) = size, grid
    # center (y + 1/2) / height * cells, in integers: no rounding at the borders of cells
    row = (2 * torch.arange(height, device=device) + 1) * rows // (2 * height)
    column = (2 * torch.arange(width, device=device) + 1) * columns // (2 * width)
    return (row[:, None] * columns + column).flatten()


class RenderedViews(SplatOperator):
    """Views through an engine's rendering and its vector-Jacobian product, one by one, without stored entries.

    Args:
        engine: engine whose `rasterize` is called.
        gaussians: Gaussians to render.
        intrinsics: [V, 3, 3] pixels of `size`.
        world_from_camera: [V, 4, 4] poses.
        size: (height, width) of the rendering in pixels.
        grid: (height, width) in cells, or None for the pixels.
    """

    def __init__(
        self,
        engine: SplatEngine,
        gaussians: Gaussians,
        intrinsics: Tensor,
        world_from_camera: Tensor,
        size: tuple[int, int],
        grid: tuple[int, int] | None,
    ) -> None:
        self._engine, self._gaussians, self._pixels = engine, gaussians, size
        self._views = list(zip(intrinsics.split(1), world_from_camera.split(1), strict=True))
        self.views, self.count, self.size = len(self._views), len(gaussians), grid or size
        self._cells = None if grid is None else cell_of_pixel(size, grid, gaussians.means.device)
        self.areas = self._pooled(gaussians.means.new_ones(1, *size))[0]

    @torch.no_grad()
    def render(self, values: Tensor) -> Tensor:
        """See `SplatOperator.render`."""
        values = values.to(self.areas)
        return torch.stack([self._pooled(self._image(view, values)) for view in self._views])

    def gather(self, maps: Tensor) -> Tensor:
        """See `SplatOperator.gather`: the gradient of rendering, which is linear in the values."""
        total = self.areas.new_zeros(self.count, maps.shape[1])
        for view, weights in zip(self._views, maps.to(self.areas), strict=True):
            total += self._gathered(view, weights)
        return total

    def seen(self) -> Tensor:
        """See `SplatOperator.seen`."""
        everywhere = self.areas.new_ones(1, *self.size)
        return torch.stack([self._gathered(view, everywhere)[:, 0] for view in self._views])

    def _gathered(self, view: tuple[Tensor, Tensor], weights: Tensor) -> Tensor:
        per_pixel = weights if self._cells is None else weights.flatten(1)[:, self._cells].unflatten(1, self._pixels)
        with torch.enable_grad():
            values = self.areas.new_zeros(self.count, len(weights)).requires_grad_()
            image = self._image(view, values)
        return torch.autograd.grad(image, values, per_pixel)[0]

    def _image(self, view: tuple[Tensor, Tensor], values: Tensor) -> Tensor:
        background = values.new_zeros(values.shape[1])
        return self._engine.rasterize(self._gaussians, values, *view, self._pixels, background)[0][0]

    def _pooled(self, image: Tensor) -> Tensor:
        """Sum an image [C, H, W] over the cells."""
        if self._cells is None:
            return image
        sums = image.new_zeros(len(image), self.size[0] * self.size[1]).index_add_(1, self._cells, image.flatten(1))
        return sums.unflatten(1, self.size)
