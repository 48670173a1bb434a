"""Reference implementation of splatting: projection, tiles and compositing in plain torch."""

import torch
from torch import Tensor

from prior3d.contracts.splatting import Gaussians
from prior3d.splat.compositing import Composite
from prior3d.splat.projection import project_gaussians
from prior3d.splat.tiles import intersect_tiles, tiles_to_image

MIN_ALPHA = 1e-10  # divisor for the depth of empty pixels, whose depth is 0


def rasterize_views(
    gaussians: Gaussians,
    values: Tensor,
    intrinsics: Tensor,
    world_from_camera: Tensor,
    size: tuple[int, int],
    background: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Render views one by one; see `SplatEngine.rasterize`."""
    views = []
    for camera, pose in zip(intrinsics, world_from_camera, strict=True):
        shape = (gaussians.means, gaussians.quaternions, gaussians.scales, gaussians.opacities)
        projection = project_gaussians(*shape, camera, pose, size)
        lists = intersect_tiles(projection, size)
        with_depth = torch.cat([values, projection.depths[:, None]], -1)
        sums, alphas = Composite.apply(projection.pixels, projection.conics, gaussians.opacities, with_depth, lists)
        image, alpha = tiles_to_image(sums, lists, size), tiles_to_image(alphas[..., None], lists, size)[0]
        colors = image[:-1] + (1 - alpha) * background[:, None, None]
        views.append((colors, image[-1] / alpha.clamp(min=MIN_ALPHA), alpha))
    return tuple(torch.stack(parts) for parts in zip(*views, strict=True))
