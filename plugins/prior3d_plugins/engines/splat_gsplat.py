"""Splatting with gsplat's CUDA kernels."""

import functools
import importlib.util
from collections.abc import Sequence

import torch
from torch import Tensor

from prior3d import SplatEngine
from prior3d.geometry import full_precision
from prior3d.splat import LOW_PASS, NEAR, Gaussians, SplatOperator, cell_areas, cell_of_pixel

CHANNEL_CHUNK = 32
"""gsplat compiles its kernels for a few widths; beyond 32, registers spill."""

TILE = 16
"""Side of gsplat's tiles in pixels, its default."""

_INSTALL = "pip install 'prior3d[gpu]' (gsplat compiles its kernels with nvcc on first use, or take a prebuilt wheel)"


class SplatGsplat(SplatEngine):
    """gsplat's rasterization in `classic` mode, in float32 on CUDA.

    Its sums are atomic: equal inputs give values and gradients that differ in the last bits. An operator projects and
    sorts once, and waits for the device once, for the number of intersections of Gaussians and tiles; whatever is
    rendered or gathered through it then does not wait. It keeps about 40 bytes for each intersection.

    Reference:
        Ye et al., gsplat: An Open-Source Library for Gaussian Splatting, 2024, arXiv 2409.06765.
    """

    rank = 10
    deterministic = False
    views_at_once = 8

    def obstacle(self, device: torch.device, dtype: torch.dtype) -> str | None:
        """Return what is missing, or None; building the kernels may take minutes the first time."""
        if device.type != "cuda":
            return f"gsplat runs on CUDA devices, not on {device.type}: install a CUDA build of PyTorch and train there"
        if dtype != torch.float32:
            return f"gsplat renders float32, not {dtype}: convert, or take engine torch"
        return _missing()

    def rasterize(
        self,
        gaussians: Gaussians,
        values: Tensor,
        intrinsics: Tensor,
        world_from_camera: Tensor,
        size: tuple[int, int],
        background: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See `SplatEngine.rasterize`."""
        import gsplat

        with full_precision(values.device):
            image, alpha, _ = gsplat.rasterization(
                means=gaussians.means.contiguous(),
                quats=gaussians.quaternions.contiguous(),
                scales=gaussians.scales.contiguous(),
                opacities=gaussians.opacities.contiguous(),
                colors=values.contiguous(),
                viewmats=_inverse(world_from_camera),
                Ks=intrinsics.contiguous(),
                width=size[1],
                height=size[0],
                near_plane=NEAR,
                eps2d=LOW_PASS,
                packed=False,
                render_mode="RGB+ED",
                rasterize_mode="classic",
                channel_chunk=CHANNEL_CHUNK,
                backgrounds=background.expand(len(intrinsics), -1).contiguous(),
            )
        return image[..., :-1].permute(0, 3, 1, 2), image[..., -1], alpha[..., 0]

    def operator(
        self,
        gaussians: Gaussians,
        intrinsics: Tensor,
        world_from_camera: Tensor,
        size: tuple[int, int],
        grid: tuple[int, int] | None,
    ) -> SplatOperator:
        """Return the views, projected and sorted once."""
        return GsplatViews(gaussians, intrinsics, world_from_camera, size, grid)

    def render_scenes(
        self,
        scenes: Sequence[Gaussians],
        values: Sequence[Tensor],
        views: Sequence[int],
        intrinsics: Tensor,
        world_from_camera: Tensor,
        size: tuple[int, int],
        grid: tuple[int, int] | None,
    ) -> Tensor:
        """Render all views of all scenes with one sort, one wait and one rasterization per chunk of channels."""
        return Intersections(scenes, views, intrinsics, world_from_camera, size).render(values, grid or size)


class Intersections:
    """Gaussians of the tiles of all views, front to back: one row per Gaussian in a tile, of any number of scenes.

    `gsplat.rasterization` wants scenes of one size, and a copy of all values for each camera. Its parts accept rows of
    any length. Values are copied for what the views show, and views of scenes of different sizes share all calls.

    Args:
        scenes: the Gaussians of each scene.
        views: number of views of each scene.
        intrinsics: [V, 3, 3] pixels of `size`.
        world_from_camera: [V, 4, 4] poses.
        size: (height, width) of the rendering in pixels.

    Attributes:
        gaussians: [I] Gaussian of each row, counted through all scenes
        images: [I] view of each row
    """

    @torch.no_grad()
    def __init__(
        self,
        scenes: Sequence[Gaussians],
        views: Sequence[int],
        intrinsics: Tensor,
        world_from_camera: Tensor,
        size: tuple[int, int],
    ) -> None:
        import gsplat

        self._size, (height, width), count = size, size, len(intrinsics)
        across, down = -(-width // TILE), -(-height // TILE)
        parts, first, image = [], 0, 0
        cameras = intrinsics.split(list(views)), _inverse(world_from_camera).split(list(views))
        for scene, camera, viewmats in zip(scenes, *cameras, strict=True):
            radii, centers, depths, conics, _ = gsplat.fully_fused_projection(
                scene.means,
                None,
                scene.quaternions,
                scene.scales,
                viewmats,
                camera,
                width,
                height,
                eps2d=LOW_PASS,
                near_plane=NEAR,
                opacities=scene.opacities,
            )
            shape = radii.shape[:2]  # views, Gaussians
            here = torch.arange(first, first + shape[1], device=radii.device).expand(shape)
            seen_in = torch.arange(image, image + shape[0], device=radii.device)[:, None].expand(shape)
            parts.append((radii, centers, depths, conics, scene.opacities.expand(shape), here, seen_in))
            first, image = first + shape[1], image + shape[0]
        rows = (torch.cat([part.flatten(0, 1) for part in group]) for group in zip(*parts, strict=True))
        radii, centers, depths, conics, opacities, gaussians, images = rows
        _, keys, order = gsplat.isect_tiles(
            centers,
            radii,
            depths,
            TILE,
            across,
            down,
            packed=True,
            n_images=count,
            image_ids=images,
            gaussian_ids=gaussians,
        )
        self._starts = gsplat.isect_offset_encode(keys, count, across, down)
        self._numbers = torch.arange(len(order), device=order.device, dtype=torch.int32)
        order = order.long()
        self._centers, self._conics, self._opacities = centers[order], conics[order], opacities[order]
        self.gaussians, self.images = gaussians[order], images[order]

    @torch.no_grad()
    def render(self, values: Sequence[Tensor], grid: tuple[int, int]) -> Tensor:
        """Sum the values [N, C] of each scene into the cells of a grid, [V, C, h, w]."""
        shown = []
        for start in range(0, values[0].shape[1], CHANNEL_CHUNK):
            chunks = [part[:, start : start + CHANNEL_CHUNK] for part in values]
            columns = torch.cat(chunks) if len(chunks) > 1 else chunks[0]
            shown.append(self._pooled(self._image(columns[self.gaussians]), grid))
        return torch.cat(shown, -1).movedim(-1, 1)

    def gather(self, maps: Tensor) -> Tensor:
        """Sum maps [V, C, h, w], one to each pixel of their cells, onto the rows [I, C], C at most CHANNEL_CHUNK."""
        with torch.enable_grad():  # rendering is linear in the values: its gradient is its transpose
            values = self._opacities.new_zeros(len(self.gaussians), maps.shape[1]).requires_grad_()
            image = self._image(values)
        return torch.autograd.grad(image, values, self._spread(maps))[0]

    def _image(self, values: Tensor) -> Tensor:
        """Composite the values [I, C] of the rows, [V, H, W, C]."""
        import gsplat

        shape = self._centers, self._conics, values, self._opacities
        tiles = TILE, self._starts, self._numbers
        return gsplat.rasterize_to_pixels(*shape, self._size[1], self._size[0], *tiles, packed=True)[0]

    def _pooled(self, image: Tensor, grid: tuple[int, int]) -> Tensor:
        """Sum an image [V, H, W, C] over the cells of a grid, [V, h, w, C]."""
        fine = self._fineness(grid)
        if fine is not None:
            split = image.unflatten(2, (grid[1], fine[1])).unflatten(1, (grid[0], fine[0]))
            return split.sum((2, 4)) if fine != (1, 1) else image
        sums = image.new_zeros(len(image), grid[0] * grid[1], image.shape[-1])
        cells = cell_of_pixel(self._size, grid, image.device)
        return sums.index_add_(1, cells, image.flatten(1, 2)).unflatten(1, grid)

    def _spread(self, maps: Tensor) -> Tensor:
        """Return the cell's value for each pixel, [V, C, h, w] -> [V, H, W, C]."""
        grid = tuple(maps.shape[2:])
        fine = self._fineness(grid)
        cells = maps.movedim(1, -1)
        if fine is None:
            at = cell_of_pixel(self._size, grid, maps.device)
            return cells.flatten(1, 2)[:, at].unflatten(1, self._size)
        wide = cells[:, :, None, :, None].expand(-1, -1, fine[0], -1, fine[1], -1)
        return wide.reshape(len(maps), *self._size, maps.shape[1])

    def _fineness(self, grid: tuple[int, int]) -> tuple[int, int] | None:
        """Return the pixels down and across a cell, or None if cells differ."""
        down, across = self._size[0] / grid[0], self._size[1] / grid[1]
        return (int(down), int(across)) if down.is_integer() and across.is_integer() else None


class GsplatViews(SplatOperator):
    """Views of one scene as a linear map, over intersections that are found once.

    Args:
        gaussians: Gaussians to render.
        intrinsics: [V, 3, 3] pixels of `size`.
        world_from_camera: [V, 4, 4] poses.
        size: (height, width) of the rendering in pixels.
        grid: (height, width) in cells, or None for the pixels.
    """

    def __init__(
        self,
        gaussians: Gaussians,
        intrinsics: Tensor,
        world_from_camera: Tensor,
        size: tuple[int, int],
        grid: tuple[int, int] | None,
    ) -> None:
        self.views, self.count, self.size = len(intrinsics), len(gaussians), grid or size
        self.areas = cell_areas(size, self.size, gaussians.means)
        self._found = Intersections([gaussians], [self.views], intrinsics, world_from_camera, size)

    def render(self, values: Tensor) -> Tensor:
        """See `SplatOperator.render`."""
        return self._found.render([values.to(self.areas)], self.size)

    def gather(self, maps: Tensor) -> Tensor:
        """See `SplatOperator.gather`."""
        total = self.areas.new_zeros(self.count, maps.shape[1])
        for start in range(0, maps.shape[1], CHANNEL_CHUNK):
            part = slice(start, start + CHANNEL_CHUNK)
            rows = self._found.gather(maps[:, part].to(self.areas))
            total[:, part].index_add_(0, self._found.gaussians, rows)
        return total

    def seen(self) -> Tensor:
        """See `SplatOperator.seen`."""
        rows = self._found.gather(self.areas.new_ones(1, 1, 1, 1).expand(self.views, 1, *self.size))
        sums = self.areas.new_zeros(self.views * self.count)
        sums.index_add_(0, self._found.images * self.count + self._found.gaussians, rows[:, 0])
        return sums.view(self.views, self.count)


def _inverse(world_from_camera: Tensor) -> Tensor:
    """Return the inverse [V, 4, 4] of rigid poses."""
    rotation = world_from_camera[:, :3, :3].transpose(1, 2)
    camera_from_world = world_from_camera.clone(memory_format=torch.contiguous_format)
    camera_from_world[:, :3, :3] = rotation
    camera_from_world[:, :3, 3] = -(rotation * world_from_camera[:, None, :3, 3]).sum(-1)
    return camera_from_world


@functools.cache
def _missing() -> str | None:
    if importlib.util.find_spec("gsplat") is None:
        return f"gsplat is not installed: {_INSTALL}"
    from gsplat.cuda._backend import _C

    return f"gsplat found no CUDA toolkit to build its kernels with: {_INSTALL}" if _C is None else None
