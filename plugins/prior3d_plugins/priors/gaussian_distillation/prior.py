"""Gaussian distillation: features shall be what the same place looks like to the teacher from many views (FiT3D)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Le
from matplotlib.figure import Figure
from torch import Tensor, nn

from prior3d import BackboneSpec, Batch, Features, Prior, Scene, Teacher, UserError
from prior3d.splat import EngineChoice
from prior3d_plugins.priors.gaussian_distillation.lifting import Grid, LiftedScenes, Lifting, lift_scene
from prior3d_plugins.priors.gaussian_distillation.pictures import plot_distillation
from prior3d_plugins.priors.gaussian_distillation.targets import Distance, Targets, compare, render_targets

Count = Annotated[int, Ge(1), Le(10**6)]
Steps = Annotated[int, Ge(0), Le(10**9)]

_DRAWN = 3


class GaussianDistillation(Prior):
    """Pull features to view-consistent ones: a teacher's, lifted onto a scene's Gaussians and rendered for each view.

    Gaussians lie on what posed depth maps show. The teacher's features of a scene's views are gathered on them once;
    each step some of the batch's views, as they were cropped, get their targets rendered at the feature grid. What
    fewer than `min_views` views have seen has no target: it would be that image's own feature.

    With pre-trained weights the teacher is the `reference`, and scenes are lifted before training, once for all runs
    (`prior3d-prepare`). From random weights there is nothing to lift at first: let other priors begin, and lift from
    the moving average (`teacher: ema`, with `backbone.ema`) from `start_step` on. Until then the loss is 0 and the
    curve `active` too.

    Args:
        backbone: what the features look like.
        teacher: whose features are lifted: the `reference`'s (the initial backbone's) or those of its moving average.
        start_step: step at which `ema` is lifted first; of `teacher: ema` only.
        refresh_every: steps after which it is lifted anew; 0 for never; of `teacher: ema` only.
        refreshes: how often it is lifted anew at most.
        stride: of the encoder map that teaches and learns, pixels per cell; null for the backbone's dense features.
        lift: `average` of what the views say, weighted by how much they see; or least squares by conjugate gradients
            (`cg`), sharper where depth is exact.
        frames: views a scene is lifted from at most, evenly spaced.
        spacing: metres between Gaussians; null for that of rendered pixels at the middle depth.
        fineness: rendered pixels along a feature cell; on slanted surfaces targets lie up to half of one aside.
        min_views: views that must have seen a Gaussian.
        min_coverage: share of a cell that such Gaussians must cover.
        views_per_step: views of a batch that get targets, drawn anew each step; null for all.
        distance: cosine, smooth_l1 in units of the targets' spread, or the sum of both.
        head: `linear` puts one between features and targets, beginning as the identity; `identity` puts nothing.
        anchor: weight of the same distance from the initial backbone's features, at all cells. 0 spares its pass, and
            is right from random weights.
        engine: who renders views, to lift and for targets: `auto`, or the name of an engine (`torch`, `gsplat`), with
            or without `splat/` before it. They agree within rounding.

    Reference:
        Yue et al., Improving 2D Feature Representations by 3D-Aware Fine-Tuning, ECCV 2024, arXiv 2407.20229.
        Differences: Gaussians from depth instead of 30,000 steps of optimisation (there too, features never move them);
        features gathered in closed form, without a bottleneck of 64 channels and a decoder per scene; targets rendered
        at the grid for the augmented view, divided by what is covered, their length restored; masks; the cosine term;
        the anchor; the moving average as a teacher. Theirs: plain L1 on all views, which makes features alone worse at
        depth; only original and new ones side by side were better.
    """

    prepares = ("image", "depth", "intrinsics", "world_from_camera")
    prepared_version = 1
    prepared_options = ("stride", "lift", "frames", "spacing", "fineness", "min_views", "engine")

    def __init__(
        self,
        backbone: BackboneSpec,
        *,
        teacher: Literal["reference", "ema"] = "reference",
        start_step: Steps = 0,
        refresh_every: Steps = 0,
        refreshes: Count = 1,
        stride: Count | None = None,
        lift: Literal["average", "cg"] = "average",
        frames: Count = 40,
        spacing: Annotated[float, Gt(0)] | None = None,
        fineness: Count = 2,
        min_views: Count = 3,
        min_coverage: Annotated[float, Gt(0), Le(1)] = 0.5,
        views_per_step: Count | None = 8,
        distance: Distance = "both",
        head: Literal["identity", "linear"] = "identity",
        anchor: Annotated[float, Ge(0)] = 0.1,
        engine: str = "auto",
    ) -> None:
        super().__init__(backbone)
        if teacher == "reference" and (start_step or refresh_every):
            raise UserError("start_step and refresh_every are of teacher: ema; the reference never changes")
        if stride is not None and stride not in backbone.encoder_channels:
            strides = ", ".join(map(str, sorted(backbone.encoder_channels)))
            raise UserError(f"stride {stride}: the maps of {backbone.name} have stride {strides}")
        self.stride = stride
        self.grid = Grid.of(backbone, stride, fineness)
        self.lifting = Lifting(lift, frames, spacing, min_views, self.grid, EngineChoice("splat", engine))
        self.min_views, self.min_coverage = min_views, min_coverage
        self.views_per_step = views_per_step
        self.distance: Distance = distance
        self.anchor = anchor
        if teacher == "ema":
            again = range(1, refreshes + 1) if refresh_every else ()
            self.refresh_steps = (start_step, *(start_step + number * refresh_every for number in again))
        self.needs = ("image", "intrinsics", "world_from_camera", "scene")
        self.reads = frozenset({"encoder" if stride else "dense", *(["reference"] if anchor else [])})
        channels = backbone.encoder_channels[stride] if stride else backbone.dense_channels
        self.head = _linear(channels) if head == "linear" else nn.Identity()
        self._scenes: LiftedScenes | None = None

    def prepare(self, scene: Scene, teacher: Teacher, folder: Path) -> None:
        """Lift the teacher's features of a scene and write them."""
        lift_scene(scene, lambda images: self._map(teacher(images)), self.lifting).save(folder)

    def attach(self, folders: Sequence[Path]) -> None:
        """Render targets from these scenes from now on."""
        self._scenes = LiftedScenes(folders)

    def forward(self, batch: Batch, features: Mapping[str, Features]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss, its terms, the share of cells with a target and the cosine there."""
        feature, zero = features["image"], self.zero(features)
        if self._scenes is None:
            return zero, {"active": torch.zeros(())}
        maps = self._map(feature)
        chosen = self._choose(maps.shape[0] * maps.shape[1], maps.device)
        targets = self._render(batch, chosen)
        with torch.autocast(maps.device.type, enabled=False):
            students = self.head(maps.flatten(0, 1)[chosen].float())
        terms = {}
        terms["target"], cosine = compare(students, *targets, self.distance)
        loss = terms["target"]
        if self.anchor:
            terms["anchor"] = self._pull_back(feature)
            loss = loss + self.anchor * terms["anchor"]
        scalars = {"active": torch.ones(()), "covered": targets.known.float().mean(), "cosine": cosine}
        return loss + zero, {**terms, **scalars}

    def plot(self, batch: Batch, features: Mapping[str, Features]) -> dict[str, Figure]:
        """Draw the first views of the batch, their targets, their features and the mask, once there are targets."""
        if self._scenes is None:
            return {}
        maps = self._map(features["image"])
        chosen = torch.arange(min(_DRAWN, maps.shape[0]), device=maps.device) * maps.shape[1]
        targets = self._render(batch, chosen)
        images, students = batch["image"].flatten(0, 1)[chosen], self.head(maps.flatten(0, 1)[chosen].float())
        return {"targets": plot_distillation(images, *targets, students)}

    def _map(self, feature: Features) -> Tensor:
        return feature.encoder[self.stride] if self.stride else feature.dense

    def _choose(self, total: int, device: torch.device) -> Tensor:
        """Draw which of the batch's views get targets, [N] int64."""
        return torch.rand(total, device=device).topk(min(self.views_per_step or total, total)).indices

    def _render(self, batch: Batch, chosen: Tensor) -> Targets:
        scenes = batch["scene"].repeat_interleave(batch["intrinsics"].shape[1])[chosen].tolist()
        cameras = (batch[name].flatten(0, 1)[chosen] for name in ("intrinsics", "world_from_camera"))
        options = self.grid, self.min_views, self.min_coverage, self.lifting.engine
        views = [
            render_targets(self._scenes.on(chosen.device, scene), *camera, *options)
            for scene, *camera in zip(scenes, *cameras, strict=True)
        ]
        return Targets(*(torch.stack(parts) for parts in zip(*views, strict=True)))

    def _pull_back(self, feature: Features) -> Tensor:
        maps, initial = self._map(feature).flatten(0, 1), self._map(feature.reference).flatten(0, 1)
        everywhere = torch.ones_like(maps[:, 0], dtype=torch.bool)
        return compare(maps, initial, everywhere, self.distance)[0]


def _linear(channels: int) -> nn.Conv2d:
    head = nn.Conv2d(channels, channels, 1)
    nn.init.dirac_(head.weight)
    nn.init.zeros_(head.bias)
    return head
