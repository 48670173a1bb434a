"""What the features of a view should be: rendered from the lifted scene, for the view's own camera."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from prior3d.geometry import full_precision
from prior3d.splat import EngineChoice, render_feature_targets
from prior3d_plugins.priors.gaussian_distillation.lifting import Grid, LiftedScene

Distance = Literal["cosine", "smooth_l1", "both"]
"""How features are compared: `both` is the sum of the other two."""

_LEAST_SPREAD = 0.01
"""Share of the targets' length that counts as spread at least: collapsed features have none to divide by."""


class Targets(NamedTuple):
    """Targets [N, C, h, w] of N views, 0 where there is none, and where there is one [N, h, w] bool."""

    values: Tensor
    known: Tensor


@torch.no_grad()
def render_targets(
    scene: LiftedScene,
    intrinsics: Tensor,  # [3, 3] pixels of the augmented image
    world_from_camera: Tensor,  # [4, 4]
    grid: Grid,
    min_views: int,
    min_coverage: float,
    engine: str | EngineChoice = "auto",
) -> tuple[Tensor, Tensor]:
    """Render one view's targets: direction of the lifted features' mean over a cell, length that of the features.

    Args:
        scene: lifted.
        intrinsics: of the view as it was cropped and resized.
        world_from_camera: its pose.
        grid: the cells.
        min_views: Gaussians seen by fewer hide what is behind them and count as not covered.
        min_coverage: share of a cell that the others must cover.
        engine: who renders.

    Returns:
        Targets [C, h, w], 0 where unknown, and where they are known [h, w].
    """
    rendered = render_feature_targets(
        scene.gaussians,
        scene.lifted,
        grid.camera(intrinsics),
        world_from_camera.float(),
        grid.rendered,
        grid.cells,
        min_views=min_views,
        engine=engine,
    )
    length = rendered.values[-1].clamp_min(0)
    known = (rendered.mass >= min_coverage) & (length > 0)
    return F.normalize(rendered.values[:-1], dim=0) * length * known, known


def compare(student: Tensor, target: Tensor, known: Tensor, distance: Distance) -> tuple[Tensor, Tensor]:
    """Measure how far features are from their targets, over the cells that have one.

    `cosine` is 1 - cosine and lets the length of features go; `smooth_l1` is in units of the targets' spread, so that
    it means the same for any scale of features.

    Args:
        student: [N, C, h, w].
        target: [N, C, h, w].
        known: [N, h, w] bool.
        distance: cosine, smooth_l1 or both.

    Returns:
        The distance, float32, 0 where nothing is known, and the mean cosine, to look at.
    """
    with full_precision(student.device):
        student, target = student.float(), target.detach().float()
        cosines = F.cosine_similarity(student, target, dim=1)
        apart = _mean(1 - cosines, known)
        unit = _spread(target, known)
        l1 = _mean(F.smooth_l1_loss(student / unit, target / unit, reduction="none").mean(1), known)
    return {"cosine": apart, "smooth_l1": l1, "both": apart + l1}[distance], _mean(cosines.detach(), known)


def _spread(target: Tensor, known: Tensor) -> Tensor:
    """Standard deviation of the targets about their mean over cells, all channels together."""
    middle = _mean(target.movedim(1, 0), known).view(-1, 1, 1)
    variance = _mean((target - middle).square().mean(1), known)
    return (variance + (_LEAST_SPREAD**2) * _mean(target.square().mean(1), known)).sqrt().clamp_min(1e-12)


def _mean(values: Tensor, known: Tensor) -> Tensor:
    """Mean over the known cells of values [..., N, h, w]; 0 where there is none."""
    return torch.where(known, values, 0).sum((-3, -2, -1)) / known.sum().clamp_min(1)
