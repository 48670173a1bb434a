"""Splatting in plain torch."""

import torch
from torch import Tensor

from prior3d import SplatEngine
from prior3d.splat import Gaussians, SplatOperator, compositing_weights, rasterize_views


class SplatTorch(SplatEngine):
    """Tiles of pixels, composited front to back: the reference, on any device. Its operators hold sparse matrices."""

    def obstacle(self, device: torch.device, dtype: torch.dtype) -> str | None:
        """Return None: this engine runs wherever torch runs."""
        return None

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
        return rasterize_views(gaussians, values, intrinsics, world_from_camera, size, background)

    def operator(
        self,
        gaussians: Gaussians,
        intrinsics: Tensor,
        world_from_camera: Tensor,
        size: tuple[int, int],
        grid: tuple[int, int] | None,
    ) -> SplatOperator:
        """Return the compositing weights of the views, pooled over the cells of a grid."""
        views = [
            compositing_weights(gaussians, camera, pose, size)
            for camera, pose in zip(intrinsics, world_from_camera, strict=True)
        ]
        first, *others = views if grid is None else [view.pooled(grid) for view in views]
        return first.joined(others) if others else first
