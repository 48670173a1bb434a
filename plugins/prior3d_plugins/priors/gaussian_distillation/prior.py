"""Gaussian distillation: features match the teacher's view of the same place from many views (FiT3D)."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

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
    """Pull features toward view-consistent targets: a teacher's features, lifted to Gaussians and rendered per view.

    Gaussians lie on the surfaces that posed depth maps show. The teacher's features of a scene's views are lifted onto
    them once. In each step, some of the batch's views get targets rendered at the feature grid for their own crop.
    A Gaussian that fewer than `min_views` views have seen gives no target: it would return that image's own feature.

    With pre-trained weights, the teacher is the `reference` and scenes are lifted before training, once for all runs
    (`prior3d-prepare`). With random weights, there is nothing to lift at first: let other priors start, and lift from
    the moving average (`teacher: ema`, with `backbone.ema`) from `start_step` on. Until then the loss and the logged
    scalar `active` are 0.

    Args:
        backbone: specification of the features.
        teacher: source of the lifted features: the initial backbone (`reference`) or the moving average (`ema`).
        start_step: step at which the moving average is first lifted; only with `teacher: ema`.
        refresh_every: steps between repeated lifts; 0 for no repeats; only with `teacher: ema`.
        refreshes: maximum number of repeated lifts.
        stride: stride, in pixels per cell, of the encoder map that teaches and learns; null for the backbone's dense
            features.
        lift: `average`: mean of the views' features, weighted by how much of a Gaussian each view sees. `cg`: least
            squares by conjugate gradients, sharper where depth is exact.
        frames: maximum number of views to lift a scene from, evenly spaced.
        spacing: distance in meters between Gaussians; null for the distance between rendered pixels at the median
            depth.
        fineness: rendered pixels per side of a feature cell. On slanted surfaces, targets are off by up to half a
            rendered pixel.
        min_views: minimum number of views that must have seen a Gaussian.
        min_coverage: minimum share of a cell that these Gaussians must cover.
        views_per_step: views of a batch that get targets, drawn in each step; null for all.
        distance: loss between features and targets: `cosine`, `smooth_l1` in units of the targets' spread, or `both`
            (their sum).
        head: layer between features and targets: `linear`, which starts as the identity, or `identity` for none.
        anchor: weight of the same distance to the initial backbone's features, at all cells. 0 saves the forward pass
            of the initial backbone, and is right with random weights.
        engine: engine that renders views, for lifting and for targets: `auto`, or the name of an engine (`torch`,
            `gsplat`), with or without the prefix `splat/`. Engines agree within rounding.

    Reference:
        Yue et al., Improving 2D Feature Representations by 3D-Aware Fine-Tuning, ECCV 2024, arXiv 2407.20229.
        Differences: Gaussians come from depth instead of 30,000 steps of optimization (there too, features never move
        them); features are lifted in closed form, without a bottleneck of 64 channels and a decoder per scene; targets
        are rendered at the grid for the augmented view, divided by the coverage, with their length restored; masks; the
        cosine term; the anchor; the moving average as a teacher. FiT3D uses plain L1 on all views, which makes the
        features alone worse at depth; only original and new features side by side were better there.
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
            option = "start_step" if start_step else "refresh_every"
            raise UserError("needs teacher: ema; the reference never changes", option)
        if stride is not None and stride not in backbone.encoder_channels:
            strides = ", ".join(map(str, sorted(backbone.encoder_channels)))
            raise UserError(f"{backbone.name} has no map of stride {stride}; its strides are {strides}", "stride")
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
        self._scenes = LiftedScenes(folders, self.min_views)

    def forward(self, batch: Batch, features: Mapping[str, Features]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss, its terms, the share of cells with a target and the cosine at these cells."""
        feature, zero = features["image"], self.zero(features)
        if self._scenes is None:
            return zero, {"active": torch.zeros(())}
        maps = self._map(feature)
        chosen = self._views(batch, self._choose(maps.shape[0] * maps.shape[1]))
        targets = self._render(batch, chosen)
        with torch.autocast(maps.device.type, enabled=False):
            students = self.head(_select(maps.flatten(0, 1), chosen.rows).float())
        terms = {}
        terms["target"], cosine = compare(students, *targets, self.distance)
        loss = terms["target"]
        if self.anchor:
            terms["anchor"] = self._pull_back(feature)
            loss = loss + self.anchor * terms["anchor"]
        scalars = {"active": torch.ones(()), "covered": targets.known.float().mean(), "cosine": cosine}
        return loss + zero, {**terms, **scalars}

    def plot(self, batch: Batch, features: Mapping[str, Features]) -> dict[str, Figure]:
        """Plot the first views of the batch, their targets, features and mask, once there are targets."""
        if self._scenes is None:
            return {}
        maps = self._map(features["image"])
        chosen = self._views(batch, torch.arange(min(_DRAWN, maps.shape[0])) * maps.shape[1])
        targets = self._render(batch, chosen)
        images, students = (values.flatten(0, 1)[chosen.rows] for values in (batch["image"], maps))
        students = self.head(students.float())
        return {"targets": plot_distillation(images, *targets, students)}

    def _map(self, feature: Features) -> Tensor:
        return feature.encoder[self.stride] if self.stride else feature.dense

    def _choose(self, total: int) -> Tensor:
        """Draw the batch's views that get targets, [N] int64, on the host, where their scenes are looked up."""
        return torch.rand(total).topk(min(self.views_per_step or total, total)).indices

    def _views(self, batch: Batch, chosen: Tensor) -> "_Views":
        device = batch["intrinsics"].device
        scenes = batch["scene"].cpu()[chosen // batch["intrinsics"].shape[1]]
        if device.type == "cpu":  # in the order of the draw: sums over views keep their last bits
            return _Views(scenes.tolist(), chosen)
        scenes, order = scenes.sort(stable=True)
        return _Views(scenes.tolist(), chosen[order].pin_memory().to(device, non_blocking=True))

    def _render(self, batch: Batch, chosen: "_Views") -> Targets:
        runs = [(scene, len(list(views))) for scene, views in groupby(chosen.scenes)]
        scenes = [self._scenes.on(chosen.rows.device, scene) for scene, _ in runs]
        cameras = (batch[name].flatten(0, 1)[chosen.rows] for name in ("intrinsics", "world_from_camera"))
        views = [count for _, count in runs]
        return render_targets(scenes, views, *cameras, self.grid, self.min_coverage, self.lifting.engine)

    def _pull_back(self, feature: Features) -> Tensor:
        maps, initial = self._map(feature).flatten(0, 1), self._map(feature.reference).flatten(0, 1)
        everywhere = torch.ones_like(maps[:, 0], dtype=torch.bool)
        return compare(maps, initial, everywhere, self.distance)[0]


class _Views(NamedTuple):
    """Views of a batch: the scene of each, known on the host, and their rows b * V + v [N] on the batch's device."""

    scenes: list[int]
    rows: Tensor


def _select(maps: Tensor, rows: Tensor) -> Tensor:
    """Return `maps[rows]` in the layout of the maps [N, C, h, w]; on a GPU, the gradient of an index would sort."""
    last = maps.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if last else torch.contiguous_format
    return maps.index_select(0, rows).contiguous(memory_format=layout)


def _linear(channels: int) -> nn.Conv2d:
    head = nn.Conv2d(channels, channels, 1)
    nn.init.dirac_(head.weight)
    nn.init.zeros_(head.bias)
    return head
