"""Targets for the features of views, rendered from the lifted scenes with the views' own cameras."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from prior3d.geometry import full_precision
from prior3d.splat import EngineChoice, render_columns
from prior3d_plugins.priors.gaussian_distillation.lifting import Grid, ShownScene

Distance = Literal["cosine", "smooth_l1", "both"]
"""Distance between features: `both` is the sum of the other two."""

_LEAST_SPREAD = 0.01
"""Minimum spread as a share of the targets' length: collapsed features have no spread to divide by."""


class Targets(NamedTuple):
    """Targets [N, C, h, w] of N views, 0 where unknown, and a mask [N, h, w] bool, true where known."""

    values: Tensor
    known: Tensor


@torch.no_grad()
def render_targets(
    scenes: Sequence[ShownScene],
    views: Sequence[int],
    intrinsics: Tensor,  # [V, 3, 3] pixels of the augmented image
    world_from_camera: Tensor,  # [V, 4, 4]
    grid: Grid,
    min_coverage: float,
    engine: str | EngineChoice = "auto",
) -> Targets:
    """Render the targets of views: the direction of the mean lifted feature in a cell, scaled to the lifted length.

    Args:
        scenes: lifted scenes.
        views: number of views of each scene, one after the other, V in all.
        intrinsics: [V, 3, 3] intrinsics of the views after crop and resize.
        world_from_camera: [V, 4, 4] poses of the views.
        grid: cells of the feature map.
        min_coverage: minimum share of a cell that Gaussians seen by enough views must cover.
        engine: engine that renders.
    """
    rendered = render_columns(
        *([scene.gaussians for scene in scenes], [scene.columns for scene in scenes], views),
        *(grid.camera(intrinsics), world_from_camera.float(), grid.rendered, grid.cells),
        engine=engine,
    )
    length = rendered.values[:, -1].clamp_min(0)
    known = (rendered.mass >= min_coverage) & (length > 0)
    values = F.normalize(rendered.values[:, :-1], dim=1) * (length * known)[:, None]
    return Targets(values.contiguous(), known)  # engines lay channels out last; sums over them follow the layout


def compare(student: Tensor, target: Tensor, known: Tensor, distance: Distance) -> tuple[Tensor, Tensor]:
    """Measure the distance between features and their targets, over the cells that have a target.

    `cosine` is 1 - cosine and ignores the length of features. `smooth_l1` is in units of the targets' spread, so it
    means the same at any scale of features.

    Args:
        student: [N, C, h, w].
        target: [N, C, h, w].
        known: [N, h, w] bool.
        distance: `cosine`, `smooth_l1` or `both`.

    Returns:
        The distance, float32, 0 where nothing is known, and the mean cosine, for logging only.
    """
    with full_precision(student.device):
        student, target = student.float(), target.detach().float()
        cosines = F.cosine_similarity(student, target, dim=1)
        apart = _mean(1 - cosines, known)
        unit = _spread(target, known)
        l1 = _mean(F.smooth_l1_loss(student / unit, target / unit, reduction="none").mean(1), known)
    return {"cosine": apart, "smooth_l1": l1, "both": apart + l1}[distance], _mean(cosines.detach(), known)


def _spread(target: Tensor, known: Tensor) -> Tensor:
    """Return the standard deviation of the targets about their mean over cells, over all channels."""
    middle = _mean(target.movedim(1, 0), known).view(-1, 1, 1)
    variance = _mean((target - middle).square().mean(1), known)
    return (variance + (_LEAST_SPREAD**2) * _mean(target.square().mean(1), known)).sqrt().clamp_min(1e-12)


def _mean(values: Tensor, known: Tensor) -> Tensor:
    """Return the mean over the known cells of values [..., N, h, w]; 0 if no cell is known."""
    return torch.where(known, values, 0).sum((-3, -2, -1)) / known.sum().clamp_min(1)
