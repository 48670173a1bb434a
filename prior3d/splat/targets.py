"""View-consistent targets at the feature grid, rendered from lifted features."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from prior3d.contracts.splatting import Gaussians
from prior3d.registry.engines import EngineChoice
from prior3d.splat.lifting import Lifted
from prior3d.splat.operator import cell_areas, render_scenes


class FeatureTargets(NamedTuple):
    """Lifted features rendered from one view, or from V views, on a grid of h x w cells.

    Attributes:
        values: [(V,) C, h, w] mean over a cell of sum of w f, over mean of sum of w; 0 where the mass is 0
        mass: [(V,) h, w] mean weight of the used Gaussians in a cell: the share of it that they cover, in [0, 1)
        views: [(V,) h, w] average number of views that saw the used Gaussians; 0 where the mass is 0
    """

    values: Tensor
    mass: Tensor
    views: Tensor


@torch.no_grad()
def render_feature_targets(
    gaussians: Gaussians,
    lifted: Lifted,
    intrinsics: Tensor,
    world_from_camera: Tensor,
    size: tuple[int, int],
    grid: tuple[int, int],
    *,
    min_views: int = 3,
    engine: str | EngineChoice = "torch",
) -> FeatureTargets:
    """Render lifted features finely and average them over the cells of a feature grid, normalized by coverage.

    Gaussians seen by fewer than `min_views` views hide what is behind them but contribute nothing: with one view, the
    target would be that image's own feature.

    Args:
        gaussians: Gaussians that carry the features.
        lifted: features and number of views that saw each Gaussian.
        intrinsics: [3, 3] pixels of `size`
        world_from_camera: [4, 4] rigid, OpenCV axes, meters
        size: (height, width) of the rendering in pixels, a few pixels per cell.
        grid: (h, w) in cells.
        min_views: minimum number of views that must have seen a Gaussian.
        engine: engine that renders; see `view_operator`.

    Returns:
        The targets; compare features only where the mass is high.

    Raises:
        ValueError: if shapes do not fit, or the grid is finer than the rendering.
        UserError: if the engine is not available.

    >>> from prior3d.splat import lift_average
    >>> from prior3d.splat import gaussians_from_depth, view_operator
    >>> intrinsics = torch.tensor([[20.0, 0, 8], [0, 20, 6], [0, 0, 1]])
    >>> pose = torch.eye(4)
    >>> depth = torch.full((1, 12, 16), 2.0)
    >>> gaussians = gaussians_from_depth(depth, intrinsics, pose[None])
    >>> operator = view_operator(gaussians, intrinsics, pose, (12, 16), grid=(3, 4))
    >>> lifted = lift_average([(operator, torch.ones(5, 3, 4))])
    >>> targets = render_feature_targets(gaussians, lifted, intrinsics, pose, (12, 16), (3, 4), min_views=1)
    >>> targets.values.shape
    torch.Size([5, 3, 4])
    """
    if len(lifted.features) != len(gaussians):
        raise ValueError(f"expected features of {len(gaussians)} Gaussians, got {len(lifted.features)}")
    columns = target_columns(lifted, min_views)
    views = intrinsics.expand(1, 3, 3), world_from_camera.expand(1, 4, 4)
    rendered = render_columns([gaussians], [columns], [1], *views, size, grid, engine)
    return FeatureTargets(*(part[0] for part in rendered))


def target_columns(lifted: Lifted, min_views: int = 3) -> Tensor:
    """Return what targets sum for each Gaussian: its features, 1 and its number of views, or 0 with too few views.

    Args:
        lifted: features and number of views that saw each Gaussian.
        min_views: minimum number of views that must have seen a Gaussian.

    Returns:
        [N, C + 2]

    >>> lifted = Lifted(torch.tensor([[5.0], [7.0]]), torch.ones(2), torch.tensor([4, 2]))
    >>> target_columns(lifted, min_views=3).tolist()
    [[5.0, 1.0, 4.0], [0.0, 0.0, 0.0]]
    """
    trusted = (lifted.views >= min_views).to(lifted.features)[:, None]
    columns = torch.cat([lifted.features, torch.ones_like(trusted), lifted.views.to(trusted)[:, None]], -1)
    return columns * trusted


def render_columns(
    scenes: Sequence[Gaussians],
    columns: Sequence[Tensor],
    views: Sequence[int],
    intrinsics: Tensor,
    world_from_camera: Tensor,
    size: tuple[int, int],
    grid: tuple[int, int],
    engine: str | EngineChoice = "torch",
) -> FeatureTargets:
    """Render the targets of views of several scenes from the columns of each, as `render_feature_targets` does for one.

    Args:
        scenes: Gaussians of each scene.
        columns: [N, C + 2] of each scene, from `target_columns`, which need not be computed for every view.
        views: number of views of each scene, V in all; see `render_scenes`.
        intrinsics: [V, 3, 3] pixels of `size`
        world_from_camera: [V, 4, 4] rigid, OpenCV axes, meters
        size: (height, width) of the rendering in pixels, a few pixels per cell.
        grid: (h, w) in cells.
        engine: engine that renders; see `view_operator`.

    Returns:
        The targets of all views.

    Raises:
        ValueError: if shapes do not fit, or the grid is finer than the rendering.
        UserError: if the engine is not available.

    >>> from prior3d.splat import gaussians_from_depth
    >>> intrinsics = torch.tensor([[20.0, 0, 8], [0, 20, 6], [0, 0, 1]]).repeat(2, 1, 1)
    >>> poses = torch.eye(4).repeat(2, 1, 1)
    >>> scene = gaussians_from_depth(torch.full((1, 12, 16), 2.0), intrinsics[:1], poses[:1])
    >>> lifted = Lifted(torch.ones(len(scene), 5), torch.ones(len(scene)), torch.full((len(scene),), 3))
    >>> render_columns([scene], [target_columns(lifted)], [2], intrinsics, poses, (12, 16), (3, 4)).values.shape
    torch.Size([2, 5, 3, 4])
    """
    sums = render_scenes(scenes, columns, views, intrinsics, world_from_camera, size, grid, engine=engine)
    mass = sums[:, -2]
    means = sums / mass.clamp(min=torch.finfo(mass.dtype).tiny)[:, None]
    return FeatureTargets(means[:, :-2], mass / cell_areas(size, grid, mass), means[:, -1])
